"""A trained model that answers many people: one question at a time, and a broken input costs nobody else."""

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.apps import uploads
from hftransfer.core.errors import UnreadableInput, UserError
from hftransfer.core.files import read_json
from hftransfer.data.named_inputs import NamedInputs
from hftransfer.modalities import MODALITIES, ModalityKind, kind_of
from hftransfer.prediction.explain import Explanation, explain
from hftransfer.prediction.fused import FusedPredictor
from hftransfer.prediction.predictor import Predictor, load
from hftransfer.probe import fused
from hftransfer.runs.reader import RecordedRun, plain_label
from hftransfer.runs.several import LACKS
from hftransfer.tasks import Task

log = logging.getLogger(__name__)


@dataclass
class Served:
    """A model that answers one question at a time (tokenizers are not thread-safe), and what is known about it."""

    folder: Path
    predictor: Predictor | FusedPredictor
    columns: tuple[str, ...]  # names of the inputs in the training data; two for pairs
    examples: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)  # training rows that can be shown
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """Of the run: a folder as it is pushed may have another name."""
        facts = self.folder / "task.json"
        return read_json(facts)["name"] if facts.is_file() else self.folder.resolve().name

    @property
    def task(self) -> Task:
        return self.predictor.task

    @property
    def several(self) -> bool:
        """Whether an example has several inputs, each with a field of its own."""
        return isinstance(self.predictor, FusedPredictor)

    @property
    def kind(self) -> ModalityKind:
        """The kind of the input; of several, that of the first file."""
        if self.several:
            return next(kind_of(kind) for kind in self.predictor.kinds.values() if kind in self.predictor.files)
        return self.predictor.modality.kind

    def lacks(self, command: str) -> bool:
        """Return whether a command does not take this model."""
        return command in self.task.lacks or self.several and command in LACKS

    def frame(self, *inputs: Any) -> tuple[pd.DataFrame, str]:
        """One row of the inputs, and a remark on them. Raises `UserError`."""
        if self.several:
            return self._frame_of_several(*inputs)
        if self.kind.shows == "picture":
            remark = uploads.check_image(inputs[0])
        elif self.kind.files:
            remark = uploads.check_file(inputs[0], self.kind)
        else:
            if named := self.predictor.named:
                inputs = (named.text(dict(zip(named.kinds, inputs, strict=True))),)
            inputs, remark = tuple(uploads.check_text(text) for text in inputs), ""
        return pd.DataFrame([("", *inputs)], columns=["id", "input", "input_pair"][: len(inputs) + 1]), remark

    def _frame_of_several(self, *inputs: Any) -> tuple[pd.DataFrame, str]:
        """One row of several inputs, of which some may be left empty. Raises `UserError`."""
        given = {name: value for name, value in zip(self.columns, inputs, strict=True) if value not in (None, "")}
        if not given:
            raise UserError(f"Give at least one of {', '.join(self.columns)}.")
        remarks = [self._remark(self.predictor.kinds[name], value) for name, value in given.items()]
        return self.predictor.frame([given]), " ".join(filter(None, remarks))

    def _remark(self, kind: str, value: Any) -> str:
        """Return a remark on one of several inputs. Raises `UserError` where it cannot be read."""
        if kind not in MODALITIES:
            return ""
        if kind_of(kind).shows == "picture":
            return uploads.check_image(value)
        if kind_of(kind).files:
            return uploads.check_file(value, kind_of(kind))
        uploads.check_text(value)
        return ""

    def nearest(self, frame: pd.DataFrame, count: int = 3) -> list[dict[str, Any]]:
        """Return the training rows (id, label, input, input_pair) nearest to one row; none where they are not at hand."""
        if not self.examples:
            return []
        with self.lock:
            _, features = self.predictor.read(frame)
        found = self.predictor.reliability.nearest(features[0], count)
        return [self.examples[id_] for id_ in found if id_ in self.examples]

    def explain(self, frame: pd.DataFrame) -> Explanation:
        """Return what in one row of inputs spoke for its largest output. Raises `UserError` where the model has no such map."""
        with self.lock:
            return explain(self.predictor, frame)[0]

    def entities(self, frame: pd.DataFrame) -> list[list[dict[str, Any]]]:
        """Return the entities of each text (`Tokens.entities`)."""
        with self.lock:
            return self.predictor.table(frame)["prediction"].tolist()

    def masks(self, frame: pd.DataFrame) -> list[bytes]:
        """Return the predicted mask of each image (`core.mask_files`)."""
        with self.lock:
            return self.predictor.table(frame)["mask"].tolist()

    def ask(self, frame: pd.DataFrame) -> tuple[np.ndarray, dict[str, Sequence[Any]]]:
        """Calibrated probabilities, or values, (N, C), and what the run knows of its limits (`Reliability.columns`)."""
        with self.lock:
            logits, features = self.predictor.read(frame)
        reliability = self.predictor.reliability
        return self.task.probabilities(logits), reliability.columns(self.task, logits, features) if reliability else {}


def serve(path: str | Path, examples: bool = True) -> Served:
    """Return the model of a run folder, of a model folder, or of a model repository on the Hub. Raises `UserError`.

    `examples`: training rows may be shown, where a run folder has them.
    """
    folder = _local(path)
    predictor = load(folder)
    # Worker processes pay for data sets, not for one question, and must not be forked from a server's threads.
    predictor = predictor.without_workers()
    shown = _examples(folder, predictor) if examples and isinstance(predictor, Predictor) else {}
    served = Served(folder, predictor, _columns(folder), shown)
    log.info("%s: %s, %s, %d names.", served.name, served.kind.name, served.task.type, len(served.task.names))
    return served


def _local(path: str | Path) -> Path:
    if Path(path).exists() or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        return Path(path)
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(str(path)))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HFValidationError) as error:
        raise UserError(f"There is no folder {path}, and the Hub has none ({type(error).__name__}).") from None


def _examples(folder: Path, predictor: Predictor) -> dict[str, dict[str, Any]]:
    """Return the rows of the reference by id. A pushed model has neither them nor their features."""
    if predictor.reliability is None or not predictor.reliability.ids or not (folder / "splits.parquet").is_file():
        return {}
    rows = RecordedRun(folder).splits
    rows = rows[rows["id"].isin(predictor.reliability.ids) & (rows["input"] != "")]
    return {row["id"]: row | {"label": plain_label(row["label"])} for row in rows.to_dict("records")}


def _columns(folder: Path) -> tuple[str, ...]:
    """Return the input columns that the model was trained on; one unnamed input where nothing is written down."""
    found = RecordedRun(folder).input_setting
    if isinstance(found, dict):
        return tuple(found) if (folder / fused.ABOUT).is_file() else (NamedInputs(found).title,)
    names = (found,) if isinstance(found, str) else tuple(found or ("input",))
    return ("first text", "second text") if len(names) == 1 and _of_pairs(folder) else names


def _of_pairs(folder: Path) -> bool:
    """Whether a run that found its columns itself was trained on pairs; `task.json` is what a push leaves."""
    import pyarrow.parquet

    if (folder / "task.json").is_file():
        return read_json(folder / "task.json").get("inputs") == 2
    file = folder / "splits.parquet"
    return file.is_file() and "input_pair" in pyarrow.parquet.read_schema(file).names


def answered(model: Served, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with prediction, limits, error and scores; one broken picture costs its own row, not the batch."""
    try:
        if model.kind.shows == "picture":
            for path in frame["input"]:
                uploads.check_image(path)
        if model.task.by_word:
            found = [json.dumps(entities, ensure_ascii=False) for entities in model.entities(frame)]
            return _inputs(model, frame).assign(prediction=found, error="")
        if model.task.by_pixel:
            areas = model.task.answers(model.masks(frame), (), ())
            shares = {f"area:{name}": [each.get(name, 0.0) for each in areas] for name in model.task.names}
            return _inputs(model, frame).assign(prediction=["|".join(each) for each in areas], error="", **shares)
        scores, limits = model.ask(frame)
    except UserError as error:
        if len(frame) > 1:
            return pd.concat([answered(model, frame.iloc[[row]]) for row in range(len(frame))])
        return _inputs(model, frame).assign(prediction="", error=_reason(error))
    decided = [model.task.decode(row) for row in model.task.decide(scores)]
    predictions = ["|".join(row) if model.task.several else row for row in decided]
    columns = {f"score:{name}": scores[:, number] for number, name in enumerate(model.task.names)}
    return _inputs(model, frame).assign(prediction=predictions, **limits, error="", **columns)


def _inputs(model: Served, frame: pd.DataFrame) -> pd.DataFrame:
    """Return what identifies a row: texts stand beside their answer, the place of an unpacked picture says nothing."""
    return frame.drop(columns="input") if model.kind.files else frame


def _reason(error: UserError) -> str:
    return error.reason if isinstance(error, UnreadableInput) else str(error)
