"""A run or model folder and inputs -> predictions. Reads the folder alone; nothing of the training is needed."""

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from hftransfer.core.errors import UserError
from hftransfer.data import load_inputs
from hftransfer.data.named_inputs import NamedInputs
from hftransfer.features.passes import ComputeConfig, predict_logits
from hftransfer.modalities import AugmentationConfig, Modality, first_kind
from hftransfer.models.heads import final_linear
from hftransfer.prediction.readable import answered, faults
from hftransfer.prediction.reliability import Reliability, answers
from hftransfer.probe import fused
from hftransfer.runs import folder as run_folder
from hftransfer.runs.predictions import prediction_table
from hftransfer.runs.reader import RecordedRun
from hftransfer.runtime import devices
from hftransfer.runtime.launch import World
from hftransfer.tasks import TASKS, Regression, SingleLabel, Task
from hftransfer.tasks.tokens import ragged

if TYPE_CHECKING:
    from hftransfer.prediction.fused import FusedPredictor

log = logging.getLogger(__name__)

NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class Predictor:
    """A trained model, ready to answer. Made by `load`."""

    model: torch.nn.Module
    modality: Modality
    task: Task
    compute_config: ComputeConfig
    reliability: Reliability | None = None
    columns: tuple[str, ...] = ()  # of the table that the run was trained on; two for pairs; () where nobody knows
    named: NamedInputs | None = None  # the columns that are one text together

    @property
    def own(self) -> tuple[str, ...] | NamedInputs:
        """What a table is asked for."""
        return self.named or self.columns

    @property
    def decodes(self) -> bool:
        """Whether reading the inputs is what finds faults: files are decoded once unless one is broken."""
        return self.modality.kind.files

    @property
    def reads(self) -> dict[str, Any]:
        """What tells which inputs other data have, as `DataConfig` takes it."""
        return {"modality": self.modality.kind.name}

    def without_workers(self) -> "Predictor":
        """Return a predictor that reads inputs in its own process, as a server does."""
        return replace(self, compute_config=replace(self.compute_config, workers=0))

    def require(self, command: str) -> None:
        """Raise `UserError` where a command does not take this model."""
        self.task.require(command)

    def digests(self, frame: pd.DataFrame) -> list[str]:
        """Return the content hash of each row, by which a run knows its training examples."""
        return self.modality.kind.digests(frame)

    def _repr_html_(self) -> str:
        """Return the predictor as a notebook shows it: what it reads, and what it answers."""
        from hftransfer.core.notebook import as_card

        task, kind = self.task, self.modality.kind
        rows = {
            "reads": kind.describe_input(pair=len(self.columns) > 1),
            "answers": f"{task.type.replace('_', ' ')}, {len(task.names)} {task.outputs}: {', '.join(task.names[:20])}",
            "network": type(self.model).__name__,
        }
        return as_card("Predictor", rows, f"predict([{kind.usage(len(self.columns) > 1)}])")

    def logits(self, frame: pd.DataFrame, views: int = 0) -> np.ndarray:
        """Logits (N, C) of rows with `input` (and `input_pair`); the mean over `views` augmented views if there are any."""
        items = self.modality.encode(frame)
        if views == 0:
            return self._logits(items)
        kind = self.modality.kind
        if not kind.augments or self.task.by_pixel:
            what = "masks are predicted" if self.task.by_pixel else f"{kind.plural} are read"
            raise UserError(f"Augmented views exist for classes of images; {what} once: leave --views out.")
        drawn = [
            predict_logits(self.model, self.modality, items, self.compute_config, training=True, seed=view)
            for view in range(views)
        ]
        return np.mean(drawn, axis=0)

    def _logits(self, items: list[Any]) -> np.ndarray:
        return predict_logits(self.model, self.modality, items, self.compute_config)

    def by_word(self, frame: pd.DataFrame) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits (N,) of (W, C), and the places (W, 2) of the words of each text."""
        items = self.modality.encode(frame)
        return self._logits(items), [self.modality.kind.places(item) for item in items]

    def read(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, C) and the features (N, D) under the last layer, of rows with `input` (and `input_pair`)."""
        return answers(self.model, self.modality, self.modality.encode(frame), self.compute_config)

    def predict(
        self, inputs: str | PathLike[str] | Sequence[Any], columns: list[str] | None = None, views: int = 0
    ) -> pd.DataFrame:
        """One row per input: id, prediction, and a `score:` and `logit:` column per name.

        Of token classification the prediction is a list of entities (start, end, label, text, score), and the others hold a
        list with one entry for each word, which is from `starts` to `ends`. Of segmentation the prediction names the
        classes in an image, largest first, `area:` columns have their shares, and `mask` is a PNG (`core.mask_files`).

        A run folder of a classifier adds what the run knows of its limits: the `answer`, which is "none of these" for an
        input that is unknown and else the prediction, and `Reliability.columns` (the prediction `set`, whether the input is
        `unknown`, and the `distance` that says so). One of a regression adds the ends of the prediction interval,
        `lower:` and `upper:` of each target.

        `inputs` are files, folders, globs, a table (`columns` names its inputs), texts, or a list of Pillow images, arrays
        of pixels, or, for a run whose input is several columns, mappings from their names. Raises `UserError`.
        """
        return self.table(self.frame(inputs, columns), views)

    def frame(self, inputs: str | PathLike[str] | Sequence[Any], columns: list[str] | None = None) -> pd.DataFrame:
        """Return the rows (`id`, `input`, and for pairs `input_pair`) that `inputs` stand for.

        Raises `UserError`, also for one text where the run reads pairs, or two where it reads one.
        """
        sources = [inputs] if isinstance(inputs, str | PathLike) else list(inputs)
        frame = load_inputs(sources, self.modality.kind.name, columns, self.own, self.task.by_pixel)
        found = 2 if "input_pair" in frame else 1
        if self.columns and found != len(self.columns):
            wanted = f"{len(self.columns)} input{'s' if len(self.columns) > 1 else ''} per example"
            raise UserError(
                f"This model reads {wanted} ({', '.join(self.columns)}), and {found} per example were given. Give a table "
                f"and name its columns: {' '.join(f'--column {shlex.quote(name)}' for name in self.columns)}."
            )
        return frame

    def table(self, frame: pd.DataFrame, views: int = 0) -> pd.DataFrame:
        """Return the answers to the rows of `frame`, as `predict` gives them.

        An input that cannot be read has no answer: its reason stands in the column `error`, which is there only then.
        Raises `UserError` where no input can be read.
        """
        table = answered(self.modality.kind, frame, lambda rows: self.answers(rows, views))
        if "error" in table and table["error"].notna().all():
            raise UserError(
                f"None of the {len(frame)} inputs can be read. The first: {frame['id'].iloc[0]}: {table['error'].iloc[0]}."
            )
        return table

    def example_table(self) -> pd.DataFrame:
        """Return the answer to one invented row: the columns and types that `table` gives, whatever can be read."""
        if self.task.by_word:
            logits = ragged([np.eye(1, self.task.head_size, 1)])
            return prediction_table(["a"], self.task, logits, (["a"], [np.array([[0, 1]])]))
        features = np.zeros((1, final_linear(self.model).in_features), np.float32)
        logits = np.ones((1, self.task.head_size), np.float32)  # so that labels apply, where several can
        return with_limits(self.task, self.reliability, ["a"], logits, features)

    def errors(self, frame: pd.DataFrame) -> pd.Series:
        """Why each row of `frame` cannot be read; None for those that can."""
        return faults(self.modality.kind, frame)

    def answers(self, frame: pd.DataFrame, views: int = 0) -> pd.DataFrame:
        """Return what `table` does, of rows that can all be read. Raises `UnreadableInput`."""
        if self.task.by_word:
            if views:
                raise UserError("Augmented views exist for classes of images; texts are read once: leave --views out.")
            logits, places = self.by_word(frame)
            return prediction_table(frame["id"].tolist(), self.task, logits, (frame["input"].tolist(), places))
        if self.task.by_pixel:
            return prediction_table(frame["id"].tolist(), self.task, self.logits(frame, views))
        logits, features = self.read(frame)
        if views:
            logits = self.logits(frame, views)
        return with_limits(self.task, self.reliability, frame["id"].tolist(), logits, features)


def with_limits(
    task: Task, reliability: Reliability | None, ids: list[str], logits: np.ndarray, features: np.ndarray
) -> pd.DataFrame:
    """Return a table of predictions, with what the run knows of its limits."""
    table = prediction_table(ids, task, logits)
    if reliability is None:
        return table
    limits = reliability.columns(task, logits, features)
    if "unknown" in limits:
        limits = {"answer": _answers(table["prediction"], limits["unknown"])} | limits
    for place, (name, values) in enumerate(limits.items(), start=2):
        table.insert(place, name, values)
    return table


def _answers(predictions: Sequence[str | list[str]], unknown: Sequence[bool]) -> list[str]:
    """Return the prediction of each example, or "none of these" where it is unknown."""
    joined = ("|".join([each] if isinstance(each, str) else each) for each in predictions)
    return [NONE_OF_THESE if is_unknown else name for name, is_unknown in zip(joined, unknown, strict=True)]


def load(
    path: str | Path,
    use_cpu: bool = False,
    batch_size: int = 16,
    trust_remote_code: bool | None = None,
    world: World = World(),
) -> "Predictor | FusedPredictor":
    """Load the model of a run folder, or of a model folder in the layout of transformers.

    `trust_remote_code` lets Python code of the folder run; None allows what the run's own configuration allowed. `world`
    chooses the accelerator of one process among several, which answer apart. Raises `UserError` for a folder without a
    model, and for code that is not allowed. A run on several inputs has a model for each (`prediction.fused`).
    """
    if (Path(path) / fused.ABOUT).is_file():
        from hftransfer.prediction.fused import load_fused

        return load_fused(Path(path), use_cpu, batch_size, trust_remote_code, world)
    return load_one(path, use_cpu, batch_size, trust_remote_code, world)


def load_one(
    path: str | Path, use_cpu: bool, batch_size: int, trust_remote_code: bool | None, world: World
) -> Predictor:
    """Do what `load` does for one model."""
    from transformers import AutoConfig

    from hftransfer.models.loading import quiet_transformers

    folder = model_folder(path)
    remote = RecordedRun(Path(path)).runs_own_code if trust_remote_code is None else trust_remote_code
    device = devices.choose_device(world, use_cpu)
    with quiet_transformers(), _refusing_own_code(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
        # The keys of id2label are read in the order of the file, where 10 may stand before 2.
        task = _task_kind(Path(path), config).of_outputs([config.id2label[key] for key in sorted(config.id2label)])
        kind = first_kind(lambda kind: kind.takes(task) and kind.for_task(task).serves(config)).for_task(task)
        processor = kind.auto_processor.from_pretrained(folder, trust_remote_code=remote)
        model = kind.auto_class.from_pretrained(folder, dtype=torch.float32, trust_remote_code=remote)
    model = model.to(device).eval()
    workers = devices.thread_plan(device, world).workers
    modality = kind.bind(processor, AugmentationConfig(level="light"))
    compute_config = ComputeConfig(device, workers=workers, batch_size=batch_size)
    run = RecordedRun(Path(path))
    named = NamedInputs(run.named_inputs) if run.named_inputs else None
    columns = (named.title,) if named else tuple(run.columns.get("input", ()))
    return Predictor(model, modality, task, compute_config, Reliability.read(Path(path), task), columns, named)


@contextmanager
def _refusing_own_code(folder: Path) -> Iterator[None]:
    """Turn the refusal of transformers to run a folder's own Python code into one sentence."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"The model in {folder} needs Python code of its own, which may do anything. Read that code first. It runs for "
            "a run that was trained with model.trust_remote_code=true, when the run folder is named and not its model; "
            f"from Python: hftransfer.load({str(folder)!r}, trust_remote_code=True)."
        ) from None


def _task_kind(path: Path, config: Any) -> type[Task]:
    """Return the task of a run as it is recorded; of a model alone, that of its class or of its problem type.

    Folders that were not made here may lack the problem type: transformers' own rule decides then.
    """
    if (path / run_folder.COMPLETE).is_file():
        return type(RecordedRun(path).task)
    made = next(iter(config.architectures or ()), "")
    told = next((kind for kind in TASKS.values() if kind.architecture and made.endswith(kind.architecture)), None)
    if told is not None:
        return told
    if config.problem_type is None:
        return Regression if config.num_labels == 1 else SingleLabel
    return next(kind for kind in TASKS.values() if kind.problem_type == config.problem_type)


def model_folder(path: str | Path) -> Path:
    """Where the model lies in a run folder; a model folder is its own. Raises `UserError`."""
    folder = Path(path)
    return folder if (folder / "config.json").is_file() else run_folder.open_run(folder) / "model"


def predict(
    path: str | Path, inputs: str | Sequence[str], columns: list[str] | None = None, views: int = 0
) -> pd.DataFrame:
    """`load(path).predict(inputs)` in one call."""
    return load(path).predict(inputs, columns, views)
