"""A run and other labelled data -> the metrics of one split, with intervals."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.core.errors import UnreadableInput, UserError
from hftransfer.data.columns import as_written, is_called_label
from hftransfer.data.values import is_missing, without_point
from hftransfer.prediction.fused import FusedPredictor
from hftransfer.prediction.predictor import Predictor, load
from hftransfer.runs.reader import RecordedRun
from hftransfer.tasks import Task

log = logging.getLogger(__name__)


def evaluate(path: str | Path, data: str, columns: dict[str, Any], config: Any) -> dict[str, Any]:
    """Measure a run on other labelled data: one split of `metrics.json`. Raises `UserError`.

    `columns` (input, label) are those of the run where none are given and the data have them. Of data that come divided
    the test part counts. Examples without a label, with an unreadable input, or from the run's own training are left out
    and named in the log.
    """
    from hftransfer.data.config import DataConfig
    from hftransfer.data.masks import usable_masks
    from hftransfer.data.read import read_rows
    from hftransfer.evaluation import evaluate_predictions

    predictor = load(path)
    task, columns = predictor.task, _columns_of_the_run(Path(path), data, columns)
    read = read_rows(DataConfig(train=data, task=task.type, **columns | predictor.reads))
    frame = read.frame
    if task.by_pixel:
        frame, faults = usable_masks(frame, predictor.modality.kind.inspect(frame))
        where = [f"{name} ({faults[row]})" if row in faults else name for row, name in enumerate(frame["where"])]
        broken = pd.Series([row in faults for row in range(len(frame))], index=frame.index)
        frame = _without(frame.assign(where=where), broken, "a mask that cannot be used", data)
    frame = _usable(frame, predictor, data, RecordedRun(Path(path)))
    frame, logits, places = _answered(predictor, frame, data)
    targets = task.targets([_as_known(label, task) for label in frame["label"]], places)
    scores = task.probabilities(logits)
    groups = None if frame["group"].isna().all() else list(frame["group"])
    return evaluate_predictions(task, targets, scores, groups, config)


def _usable(frame: pd.DataFrame, predictor: Predictor | FusedPredictor, data: str, run: RecordedRun) -> pd.DataFrame:
    """Return the rows of `data` that can be evaluated fairly; what is left out is logged with its number and reason."""
    if {"test"} < set(frame["split"].dropna()):
        log.info(
            "Of %s the test part is evaluated: %d of %d examples.", data, (frame["split"] == "test").sum(), len(frame)
        )
        frame = frame[frame["split"] == "test"]
    frame = _without(frame, frame["label"].map(is_missing), "no label", data)
    digests = pd.Series(predictor.digests(frame), index=frame.index)
    return _without(frame, digests.isin(run.trained_on), "been trained on by this run", data)


def _answered(
    predictor: Predictor | FusedPredictor, frame: pd.DataFrame, data: str
) -> tuple[pd.DataFrame, np.ndarray, list[Any]]:
    """Return the rows whose input can be read, their logits, and the places of their units.

    Images are decoded once unless one is broken.
    """
    if predictor.decodes:
        try:
            return frame, predictor.logits(frame), [None] * len(frame)
        except UnreadableInput:
            pass
    frame = _without(frame, predictor.errors(frame).notna(), "no usable input", data)
    if predictor.task.by_word:
        return frame, *predictor.by_word(frame)
    return frame, predictor.logits(frame), [None] * len(frame)


def _without(frame: pd.DataFrame, wrong: pd.Series, reason: str, data: str) -> pd.DataFrame:
    """Return the rows that are not `wrong`. Logs how many are; raises `UserError` where all are."""
    wrong = wrong.astype(bool)
    if wrong.any():
        log.warning("%d of %d examples have %s, and are left out: %s%s", wrong.sum(), len(frame), reason,
                    ", ".join(frame["where"][wrong].head(3)), ", …" if wrong.sum() > 3 else ".")  # fmt: skip
    if wrong.all():
        raise UserError(f"Nothing is left of {data} to evaluate: the last {len(frame)} examples have {reason}.")
    return frame[~wrong].reset_index(drop=True)


def _as_known(label: Any, task: Task) -> Any:
    """Return a label as the run calls it: of numbered classes, 1.0 is the class 1."""
    if not task.exclusive or str(label) in task.names:
        return label
    whole = without_point(str(label))
    return whole if whole in task.names else label


def _columns_of_the_run(folder: Path, data: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that are `given`, and what the run knows of its own where `data` has them; nothing of a model folder.

    Raises `UserError` for data without labels.
    """
    from hftransfer.config import RunConfig
    from hftransfer.data.readers import read_source

    if not (folder / "config.yaml").is_file():
        return given
    own = RunConfig.from_yaml(folder / "config.yaml").data
    frame = next(iter(read_source(data).parts.values()))
    found = RecordedRun(folder).columns
    named = {"input": own.input or found.get("input"), "label": own.label or found.get("label")}
    known = {role: name for role, name in named.items() if name and _has(frame, name)} | given
    masks = {"classes": own.classes} if own.classes is not None else {}  # their column and folders are found
    if named["label"] and "label" not in known and not masks and not is_called_label(frame.columns):
        labels = [named["label"]] if isinstance(named["label"], str) else named["label"]
        raise UserError(
            f"{data} has no column {', '.join(map(repr, labels))}, which holds the labels of the run. Name another with "
            f"--label (there are {', '.join(map(repr, frame.columns))}), or ask for predictions: "
            f"hftransfer predict {folder} {data}."
        )
    known |= masks | ({"separator": own.separator} if own.separator else {})
    group = own.split.group
    return known | ({"split": {"group": group}} if group and _has(frame, group) else {})


def _has(frame: pd.DataFrame, names: str | list[str]) -> bool:
    return all(as_written(name, frame) in frame for name in ([names] if isinstance(names, str) else names))
