"""A run or model folder and inputs -> predictions. Reads the folder alone; nothing of the training is needed."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hftransfer import compute, run_folder
from hftransfer.data import load_inputs
from hftransfer.errors import UserError
from hftransfer.evaluation.recorded import RecordedRun
from hftransfer.inference import Machine, predict_logits
from hftransfer.modalities import AugmentationConfig, Modality, make_modality
from hftransfer.predictions import prediction_table
from hftransfer.tasks import Task
from hftransfer.trust import Trust, answers

log = logging.getLogger(__name__)

NONE_OF_THESE = "none of these"
TASK_TYPES = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


@dataclass(frozen=True)
class Predictor:
    """A trained model, ready to answer. Made by `load`."""

    model: torch.nn.Module
    modality: Modality
    task: Task
    machine: Machine
    trust: Trust | None = None

    def logits(self, frame: pd.DataFrame, views: int = 0) -> np.ndarray:
        """Logits (N, C) of rows with `input` (and `input_pair`); the mean over `views` augmented views if there are any."""
        items = self.modality.encode(frame)
        if views == 0:
            return predict_logits(self.model, self.modality, items, self.machine)
        if self.modality.name != "image":
            raise UserError("Augmented views exist for images; texts are read once: leave --views out.")
        drawn = [
            predict_logits(self.model, self.modality, items, self.machine, training=True, seed=view)
            for view in range(views)
        ]
        return np.mean(drawn, axis=0)

    def read(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, C) and the features (N, D) under the last layer, of rows with `input` (and `input_pair`)."""
        return answers(self.model, self.modality, self.modality.encode(frame), self.machine)

    def predict(self, inputs: str | Sequence[str], columns: list[str] | None = None, views: int = 0) -> pd.DataFrame:
        """One row per input: id, prediction, and a `score:` and `logit:` column per name.

        A run folder of a classifier adds what the run knows of its limits: the `answer`, which is "none of these" for an
        input that is unknown and else the prediction, and `Trust.columns` (the prediction `set`, whether the input is
        `unknown`, and the `distance` that says so).

        `inputs` are files, folders, globs, a table (`columns` names its inputs), or texts. Raises `UserError`.
        """
        return self.table(self.frame(inputs, columns), views)

    def frame(self, inputs: str | Sequence[str], columns: list[str] | None = None) -> pd.DataFrame:
        """The rows (`id`, `input`, and for pairs `input_pair`) that `inputs` stand for. Raises `UserError`."""
        return load_inputs([inputs] if isinstance(inputs, str) else list(inputs), self.modality.name, columns)

    def table(self, frame: pd.DataFrame, views: int = 0) -> pd.DataFrame:
        """The answers to the rows of `frame`, as `predict` gives them."""
        logits, features = self.read(frame)
        if views:
            logits = self.logits(frame, views)
        table = prediction_table(frame["id"].tolist(), self.task, logits)
        if self.trust is None:
            return table
        limits = self.trust.columns(self.task, logits, features)
        answer = [
            NONE_OF_THESE if unknown else "|".join([prediction] if isinstance(prediction, str) else prediction)
            for unknown, prediction in zip(limits["unknown"], table["prediction"], strict=True)
        ]
        for place, (name, values) in enumerate(({"answer": answer} | limits).items(), start=2):
            table.insert(place, name, values)
        return table


def load(
    path: str | Path, use_cpu: bool = False, batch_size: int = 16, trust_remote_code: bool | None = None
) -> Predictor:
    """Load the model of a run folder, or of a model folder in the layout of transformers.

    `trust_remote_code` lets Python code of the folder run; None allows what the run's own configuration allowed. Raises
    `UserError` for a folder without a model, and for code that is not allowed.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

    from hftransfer.checkpoints import quiet_transformers
    from hftransfer.weights import AUTO_CLASS

    folder = model_folder(path)
    remote = RecordedRun(Path(path)).runs_own_code if trust_remote_code is None else trust_remote_code
    device = compute.choose_device(use_cpu=use_cpu)
    with quiet_transformers(), _refusing_own_code(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
        auto = AUTO_CLASS["image"]
        is_image = type(config) in auto._model_mapping or auto.__name__ in getattr(config, "auto_map", {})
        name = "image" if is_image else "text"
        reader = AutoImageProcessor if is_image else AutoTokenizer
        processor = reader.from_pretrained(folder, trust_remote_code=remote)
        model = AUTO_CLASS[name].from_pretrained(folder, dtype=torch.float32, trust_remote_code=remote)
    model = model.to(device).eval()
    # The keys of id2label are read in the order of the file, where 10 may stand before 2.
    names = tuple(config.id2label[key] for key in sorted(config.id2label))
    task = Task(TASK_TYPES[config.problem_type or _guessed(config)], names)
    workers = compute.thread_plan(device).workers
    modality = make_modality(name, processor, AugmentationConfig(level="light"))
    machine = Machine(device, workers=workers, batch_size=batch_size)
    return Predictor(model, modality, task, machine, Trust.read(Path(path), task))


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


def _guessed(config: Any) -> str:
    """Folders that were not made here may lack the problem type: transformers' own rule decides then."""
    return "regression" if config.num_labels == 1 else "single_label_classification"


def model_folder(path: str | Path) -> Path:
    """Where the model lies in a run folder; a model folder is its own. Raises `UserError`."""
    folder = Path(path)
    return folder if (folder / "config.json").is_file() else run_folder.open_run(folder) / "model"


def predict(
    path: str | Path, inputs: str | Sequence[str], columns: list[str] | None = None, views: int = 0
) -> pd.DataFrame:
    """`load(path).predict(inputs)` in one call."""
    return load(path).predict(inputs, columns, views)


def evaluate(path: str | Path, data: str, columns: dict[str, Any], config: Any) -> dict[str, Any]:
    """The metrics of a run on other labelled data: as one split of `metrics.json`. Raises `UserError`.

    `columns` (input, label) are those of the run where none are given and the data have them.
    """
    from hftransfer.data.config import DataConfig
    from hftransfer.data.read import read_rows
    from hftransfer.evaluation import evaluate_predictions

    predictor = load(path)
    task, columns = predictor.task, _columns_of_the_run(Path(path), data) | columns
    frame = read_rows(DataConfig(train=data, task=task.type, modality=predictor.modality.name, **columns)).frame
    targets = task.encode_all(list(frame["label"]))
    scores = task.probabilities(predictor.logits(frame))
    return evaluate_predictions(task, targets, scores, None, config)


def _columns_of_the_run(folder: Path, data: str) -> dict[str, Any]:
    """What the run's configuration says of its columns, where `data` has them too; nothing of a model folder."""
    from hftransfer.config import RunConfig
    from hftransfer.data.readers import read_source

    if not (folder / "config.yaml").is_file():
        return {}
    own = RunConfig.from_yaml(folder / "config.yaml").data
    there = set(next(iter(read_source(data).parts.values())).columns)
    named = {"input": own.input, "label": own.label}
    known = {
        role: name for role, name in named.items() if name and set([name] if isinstance(name, str) else name) <= there
    }
    return known | ({"separator": own.separator} if own.separator else {})
