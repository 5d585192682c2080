"""Define a modality: what kind of input it is (`ModalityKind`), and a processor of that kind at work (`Modality`).

Importing this package loads neither torch nor transformers: data and report read it too.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd

from hftransfer.core.errors import UnreadableInput, UserError, did_you_mean
from hftransfer.modalities.duplicates import NO_PAIRS
from hftransfer.modalities.inspection import Inspection, digest, each_in_threads

if TYPE_CHECKING:
    import torch
    from PIL import Image

INPUTS = ("input", "input_pair")  # the columns of a frame that hold inputs
_SURROGATE = re.compile("[\ud800-\udfff]")

# The gain of a strategy of which no results on other data sets are known: none, and a wide spread (mean, deviation).
ASSUMED_GAINS = dict.fromkeys(
    ("best-layer", "frozen", "lora", "full", "frozen, best layer", "lora, best layer", "full, best layer"), (0.0, 0.1)
)


class ModalityKind:
    """A kind of input. A new one is a subclass in one file, and one `register` of an object of it.

    Other packages ask for these attributes and methods, never for a name. What a kind cannot do is None or False here.
    """

    # --- words: in the report, the card, the terminal and on the pages
    name: str  # as in data.modality
    noun: str  # of one input: "image"
    plural: str

    # --- where inputs come from
    files = False  # an input is a file (its path or its encoded bytes); else it is the value in the table, as text
    arrays = False  # `transformers.pipeline` takes them as arrays: see `pipeline_input`
    pairs = False  # an example may be a pair of inputs
    suffixes: frozenset[str] = frozenset()  # of files that hold one input each, in lower case
    column_names: frozenset[str] = frozenset()  # usual names of a column of them, in lower case
    source_columns: frozenset[str] = frozenset(
        "patient patient_id subject subject_id participant participant_id person person_id user user_id author author_id "
        "photographer".split()
    )  # usual names of a column that tells from whom an input is, in lower case
    feature: str | None = None  # the feature type by which a `datasets` column declares them

    # --- the network
    encoder: "ModalityKind | None" = None  # the kind whose checkpoints become the encoder of a network for this one
    auto_class_name: str  # the class of transformers that loads a model with a head for them
    processor_class: str  # the class of transformers that loads the saved processor
    pipeline_task: str  # the task name of `transformers.pipeline`
    example_checkpoints: str  # for error messages
    default_checkpoints: tuple[str, ...] = ()  # of `model.name: auto`, in order of preference
    model_settings: tuple[str, ...] = ()  # fields of `ModelConfig` that this kind alone knows
    tower: str | None = None  # the entry of a two-tower config (CLIP) that describes the network for this kind

    # --- training
    learning_rates: Mapping[
        str, float
    ] = {}  # by strategy, where one was measured; else the strategy's own cautious rate
    # Over the probe, and of "…, best layer" over that head: mean, standard deviation; `scripts/prior.py`.
    batch_size: int | None = None  # of training, where the usual one is not right
    prior_gains: Mapping[str, tuple[float, float]] = {}
    prior_measured = True  # by results on other data sets; else `prior_gains` is an assumption
    solves_head = True  # the head has a closed solution on frozen features; else it is trained from the start
    random_first: tuple[str, ...] = ()  # strategies whose head begins at random by `auto`; else as the probe's
    rates_need_batchnorm = False  # the rates are those of networks with BatchNorm; without it they are lowered
    augments = False  # training examples, and views of them, can be changed at random

    # --- what the content is to checks, baselines and explanations; None: they are left out
    content: Literal["picture", "sound", "words"] | None = None
    raw_model: str | None = None  # what a linear model without a network is on, as in "a linear bag of words"
    shows: Literal["picture", "sound", "words"] = "words"  # how pages show one, and ask for one
    api_names: tuple[str, ...] = ("input", "second_input")  # of the demo's arguments
    fault_finding = "data-unreadable"  # the doctor's finding about inputs that cannot be read

    @property
    def file_noun(self) -> str:
        """What a folder is said to lack: "image", ".txt file"."""
        return self.noun if self.files else f"{' or '.join(sorted(self.suffixes)) or self.noun} file"

    @property
    def auto_class(self) -> Any:
        import transformers

        return getattr(transformers, self.auto_class_name)

    @property
    def auto_processor(self) -> Any:
        import transformers

        return getattr(transformers, self.processor_class)

    def serves(self, config: Any) -> bool:
        """Return whether a model with this config takes inputs of this kind."""
        auto = self.auto_class
        return type(config) in auto._model_mapping or auto.__name__ in getattr(config, "auto_map", {})

    def describe_input(self, pair: bool = False) -> str:
        """Return one example's input with its article: "an image", "a pair of texts"."""
        article = "an" if self.noun[0] in "aeiou" else "a"
        return f"a pair of {self.plural}" if pair else f"{article} {self.noun}"

    # --- units of prediction

    by_word = False  # an item has several units, each read at a place of its own

    def takes(self, task: Any) -> bool:
        """Return whether a task is one of this kind: words are of texts, pixels of images."""
        return not task.by_part

    def for_task(self, task: Any) -> "ModalityKind":
        """Return this kind as a task reads it: with another class of model where each word is classified."""
        if not self.takes(task):
            of = "words of texts" if task.by_word else "pixels of images"
            raise UserError(f"data.task={task.type} classifies the {of}, and the data are {self.plural}.")
        return self

    def pieces(self, item: Any) -> list[Any]:
        """Return what passes through the network for one item: itself, or the windows of what is too long for it."""
        return [item]

    def places(self, item: Any) -> np.ndarray | None:
        """Return first and last place (W, 2) of the units of an item; None where it is a unit itself."""
        return None

    def read(self, pieces: Sequence[Any], values: Any) -> Any:
        """Return what a batch (B, …) has for the units of its pieces: itself, or a list with the units (w, …) of each."""
        return values

    def labels(self, pieces: Sequence[Any], targets: Any, batch: Mapping[str, Any]) -> Any:
        """Return the targets of pieces as the loss reads them beside what the network has for their `batch`."""
        return targets

    def shares(self, item: Any) -> list[int]:
        """Return how many of an item's units are read from each of its pieces."""
        return [1]

    # --- columns and files

    def recognises(self, sample: Sequence[Any]) -> bool:
        """Return whether all values of a column (at least one, none missing) are inputs of this kind."""
        return False

    def foreign(self, sample: Sequence[Any]) -> str | None:
        """Return what a column that was chosen holds in truth ("pictures written as base64"); None where it fits."""
        return None

    def is_file_name(self, name: str) -> bool:
        return Path(name).suffix.lower() in self.suffixes

    def encoded(self, value: Any) -> Any:
        """Return an input of a table or a data set as a path or as encoded bytes, where it is an array in memory."""
        return value

    def bytes_of(self, source: str | bytes) -> bytes:
        """Return the encoded bytes of one input that is a file. Raises `UnreadableInput`."""
        raise NotImplementedError

    def suffix_of(self, content: bytes) -> str:
        """Return the suffix, without point, of a file that holds these encoded bytes."""
        raise NotImplementedError

    def describe_passed_over(self, names: list[str]) -> str | None:
        """Return a warning about files of a folder that are none of this kind; None where there is none to give."""
        return None

    # --- one look at each input

    def inspect(self, frame: pd.DataFrame) -> list[Inspection]:
        """Return an `Inspection` of every example of `frame` (columns `input`, for pairs `input_pair`)."""
        columns = [frame[name] for name in INPUTS if name in frame]
        return [self.inspection(*values) for values in zip(*columns, strict=True)]

    def digests(self, frame: pd.DataFrame) -> list[str]:
        """Return the content hash of every example, as `inspect` has it, without decoding; "" where it cannot be read."""
        if not self.files:
            return [inspection.digest for inspection in self.inspect(frame)]
        return each_in_threads(self._digest, list(frame["input"]), f"reading {self.plural}")

    def _digest(self, source: str | bytes) -> str:
        try:
            return digest(self.bytes_of(source))
        except UnreadableInput:
            return ""

    def inspection(self, *values: Any) -> Inspection:
        """Content hash and fault of one example."""
        fault = next((fault for value in values if (fault := self.fault(value))), None)
        return Inspection("", fault) if fault else Inspection(digest(*values))

    def fault(self, value: Any) -> str | None:
        """Return what is wrong with one input; None where nothing is."""
        if not value.strip():
            return f"the {self.noun} is empty"
        if _SURROGATE.search(value):
            return f"the {self.noun} is no valid Unicode (it holds half of a surrogate pair)"
        return None

    def near_duplicates(self, frame: pd.DataFrame, inspections: Sequence[Inspection]) -> np.ndarray:
        """Pairs (P, 2) of example numbers whose inputs are nearly equal."""
        return NO_PAIRS

    def traits(self, inspection: Inspection) -> dict[str, Any]:
        """Return what of a file a network can notice although it is not its matter, by name."""
        return {}

    def raw_features(self, inputs: Sequence[Any]) -> np.ndarray:
        """Return numbers (N, D) that describe inputs without a network, for the baseline of `advise`."""
        raise NotImplementedError

    # --- pages

    def picture(self, source: str | bytes, side: int) -> "Image.Image":
        """Return a picture of one input, about `side` pixels wide. Raises `UnreadableInput`."""
        raise NotImplementedError

    def sound(self, source: str | bytes) -> bytes | None:
        """Return the MP3 that a page plays for one input; None for what cannot be heard. Raises `UnreadableInput`."""
        return None

    # --- the processor

    def foreign_settings(self) -> dict[str, str]:
        """Field of `ModelConfig` -> the plural of the kind that it is for, of all other kinds."""
        return {
            field: other.plural
            for other in MODALITIES.values()
            for field in other.model_settings
            if field not in self.model_settings
        }

    def fitted(self, model: Any, inspections: Sequence[Inspection]) -> Any:
        """Return the `ModelConfig` with what it leaves to the inputs (`inspections` of the training part) made definite."""
        return model

    def prepare_config(self, model_config: Any, keep_head: bool) -> None:
        """Change a checkpoint's config before its network is made, in place."""

    def check_processor(self, processor: Any, model: Any, name: str) -> None:
        """Raise `UserError` where the processor of the checkpoint `name` cannot be used with `model`."""

    def adjust(self, model: Any, processor: Any, config: Any, name: str) -> tuple[Any, Any]:
        """Return model and processor as the `ModelConfig` wants them: another image size, a limit of length."""
        return model, processor

    def bind(self, processor: Any, augmentation: Any = None) -> "Modality":
        """Return the modality around a checkpoint's processor."""
        raise NotImplementedError

    # --- use of the finished model

    def pipeline_options(self, outputs: int) -> dict[str, Any]:
        """Options of a `transformers.pipeline` call that returns a score for each of so many outputs."""
        return {"top_k": outputs}

    def pipeline_input(self, source: str, processor: Any) -> Any:
        """Return a file as `transformers.pipeline` and the processor take it."""
        return source

    def usage(self, pair: bool) -> str:
        """Return an input as Python code, for the call that the model card shows."""
        return f'"{self.noun}"'


class Modality(Protocol):
    """Turns rows of the data frame (`input`, and `input_pair` for pairs) into the tensors a model takes."""

    kind: ModalityKind
    truncated_share: float  # of the rows last encoded, how many lost their end
    mixes_lengths: bool  # examples of different lengths may share a batch; else only those of equal length do
    augmentation: Any  # the `AugmentationConfig` of training batches; None where examples are never changed

    def encode(self, frame: pd.DataFrame) -> list[Any]:
        """One light item a row: the image's source, or the token ids. What `collate` takes."""
        ...

    def lengths(self, items: Sequence[Any]) -> list[int]:
        """Return the cost of each item in tokens (1 where all items cost the same): batches are made of like lengths."""
        ...

    def collate(self, items: Sequence[Any], training: bool = False) -> dict[str, "torch.Tensor"]:
        """Return the model's inputs for a batch; `training` applies the augmentation, otherwise the transform that is saved."""
        ...

    def plain_batch(self, processor: Any, frame: pd.DataFrame) -> dict[str, "torch.Tensor"]:
        """Return raw inputs as an outside user's `processor` reads them, in one batch."""
        ...

    def recorded(self, value: Any) -> str:
        """Return an input as a run records it, whatever the working directory: a text, a path, "" where there is none."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that decides the tensors `collate` makes for evaluation: part of the feature store's key."""
        ...

    def skeleton(self, items: Sequence[Any]) -> dict[str, "torch.Tensor"]:
        """Return a batch without what only the stem reads: enough to run a model from stored activations."""
        ...


MODALITIES: dict[str, ModalityKind] = {}  # in order of registration


def register(kind: ModalityKind) -> ModalityKind:
    """Add a modality. Of two kinds that recognise a column, the one that was registered later gets it."""
    MODALITIES[kind.name] = kind
    return kind


def kind_of(name: str) -> ModalityKind:
    """Return the modality called `name`. Raises `UserError` with the nearest name."""
    if name not in MODALITIES:
        raise UserError(f"There is no modality {name!r}.{did_you_mean(name, MODALITIES)}")
    return MODALITIES[name]


def by_preference() -> list[ModalityKind]:
    """Return all kinds in the order in which they are asked; the last one takes what no other recognises."""
    return list(reversed(MODALITIES.values()))


def first_kind(fits: Callable[[ModalityKind], bool]) -> ModalityKind:
    """Return the first kind by preference that `fits`; the last one where none before it does."""
    *others, last = by_preference()
    return next(filter(fits, others), last)
