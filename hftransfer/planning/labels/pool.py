"""The command `next`: unlabelled inputs in, a table of those to label next out, with the reason for each."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from hftransfer.config import checked
from hftransfer.core.errors import UserError
from hftransfer.data import LabelledData, inputs_modality, load_inputs
from hftransfer.data.inputs import Own
from hftransfer.modalities import kind_of
from hftransfer.modalities.inspection import Inspection, digest
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import load_checkpoint
from hftransfer.pipeline.run_context import prepare
from hftransfer.planning.labels.choice import Choice, choose, doubt, expected
from hftransfer.prediction.predictor import load
from hftransfer.probe.fit import plain_features
from hftransfer.runs.reader import RecordedRun
from hftransfer.runtime import devices
from hftransfer.runtime.launch import World
from hftransfer.tasks import SingleLabel, Task

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)
SHOWN = 20  # rows of the table in a terminal


@dataclass(frozen=True)
class Seen:
    """What a model sees in the rows of a pool: features (N, D), and probabilities (N, C) where it knows the task."""

    features: np.ndarray
    task: Task | None = None
    probabilities: np.ndarray | None = None

    @property
    def doubts(self) -> np.ndarray:
        if self.task is None:
            return np.ones(len(self.features))
        return doubt(self.task, self.probabilities)


def next_to_label(
    pool: str, count: int, run: str | None, model: str | None, columns: list[str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Return the `count` rows of `pool` whose labels should tell most: rank, id, reason, and what was predicted.

    With a finished `run` those are in doubt and unlike each other; a checkpoint `model` alone, without labels, can only
    spread them out. Rows that the run has labels for, copies and unreadable inputs are left out. Raises `UserError`.
    """
    if bool(run) == bool(model):
        raise UserError(
            "Name what looks at the pool: --run RUN (a finished run), or --model REF to begin without labels."
        )
    if run:
        predictor = load(run)
        predictor.require("next")
        name = predictor.modality.kind.name
        frame, _ = _new_rows(pool, name, columns, _labelled(run, name), predictor.own)
        logits, features = predictor.read(frame)
        seen = Seen(features, predictor.task, predictor.task.probabilities(logits))
        if not predictor.task.has_classes:
            log.info(
                "A regression gives no doubt of its own: the rows are chosen to be unlike each other, nothing more."
            )
    else:
        modality = inputs_modality(pool, columns)
        frame, inspections = _new_rows(pool, modality, columns, set())
        seen = Seen(_features(model, modality, frame, inspections, seed))
        log.info("Without a run there is no doubt: the rows are chosen to be unlike each other, nothing more.")
    if count >= len(frame):
        log.info("%d rows were asked for, the pool has %d: all are taken.", count, len(frame))
    return table(frame, seen, choose(seen.features, seen.doubts, count, seed))


def _labelled(run: str, modality: str) -> set[str]:
    """Content hashes of the rows that the run has labels for; a model folder has none."""
    if not (Path(run) / "splits.parquet").is_file():
        return set()
    rows = RecordedRun.open(run).splits
    if "digest" in rows:
        return set(rows["digest"])
    if kind_of(modality).files:
        files = [Path(name) for name in rows["input"] if name]
        return {digest(file.read_bytes()) for file in files if file.is_file()}
    columns = [name for name in ("input", "input_pair") if name in rows]
    return {digest(*texts) for texts in rows[columns].itertuples(index=False)}


def _new_rows(
    pool: str, modality: str, columns: list[str] | None, labelled: set[str], own: Own = ()
) -> tuple[pd.DataFrame, list[Inspection]]:
    """Readable rows of the pool, each content once, none with a label already, and what a look at each showed.

    What is left out is logged. Raises `UserError` where nothing is left.
    """
    frame = load_inputs([pool], modality, columns, own)
    if (
        frame["input"].tolist() == [pool] and not Path(pool).expanduser().exists()
    ):  # as `predict` reads it, where a text may stand on the command line
        raise UserError(
            f"There is no {pool!r}: a pool is a folder, a glob, a table, or - for the lines of standard input."
        )
    inspections = kind_of(modality).inspect(frame)
    frame = frame.assign(digest=[inspection.digest for inspection in inspections])
    reasons = {
        "cannot be read": np.array([inspection.fault is not None for inspection in inspections]),
        "have labels already": frame["digest"].isin(labelled).to_numpy(),
        "are copies of others": frame["digest"].duplicated().to_numpy(),
    }
    kept = np.ones(len(frame), dtype=bool)
    for why, left_out in reasons.items():
        if (left_out & kept).any():
            log.info("%d of %d rows of the pool %s: left out.", (left_out & kept).sum(), len(frame), why)
        kept &= ~left_out
    if not kept.any():
        raise UserError(f"{pool} holds nothing new to label: {len(frame)} rows, all left out.")
    return frame[kept].reset_index(drop=True), [inspections[row] for row in np.flatnonzero(kept)]


def _features(model: str, modality: str, frame: pd.DataFrame, inspections: list[Inspection], seed: int) -> np.ndarray:
    """Return what the checkpoint alone makes of the rows. Its new head, which these do not reach, stands for two classes."""
    task = SingleLabel(("0", "1"))
    config = checked({"data": {}, "model": model, "seed": seed})
    rows = frame.assign(split="train", group=None, label="0")
    config = config.model_copy(update={"model": kind_of(modality).fitted(config.model, inspections)})
    checkpoint = load_checkpoint(config.model, kind_of(modality), task)
    with tempfile.TemporaryDirectory() as scratch:
        data = LabelledData(rows, modality, task, fingerprint="")
        context = prepare(config, data, checkpoint, devices.choose_device(), World(), Path(scratch))
        return plain_features(context.frozen(LayerGroups.of(context.model)), context.items, frame["digest"].tolist())


def table(frame: pd.DataFrame, seen: Seen, choice: Choice) -> pd.DataFrame:
    """One row for each choice, the most telling first; texts stand beside their ids."""
    rows = frame.iloc[choice.rows].reset_index(drop=True)
    columns = {"rank": np.arange(1, len(rows) + 1), "id": rows["id"]}
    columns["reason"] = [_reason(seen, row, size) for row, size in zip(choice.rows, choice.stands_for, strict=True)]
    if seen.task is not None:
        decided = seen.task.decide(seen.probabilities[choice.rows])
        columns["prediction"] = [_describe(seen.task.decode(row)) for row in decided]
    if seen.task is not None and seen.task.has_classes:
        columns["doubt"] = seen.doubts[choice.rows].round(4)
    columns["stands_for"] = choice.stands_for
    inputs = {
        name: rows[name] for name in ("input", "input_pair") if name in rows and not rows[name].equals(rows["id"])
    }
    return pd.DataFrame(columns | inputs)


def _describe(value: str | float | Sequence) -> str | float:
    return "|".join(map(str, value)) if isinstance(value, list) else value


def _reason(seen: Seen, row: int, size: int) -> str:
    alike = f"one of {size} alike" if size > 1 else "like no other"
    if seen.task is None or not seen.task.has_classes:
        return alike
    found, names = seen.probabilities[row], seen.task.names
    last = expected(found[None]).item()  # of the answers that are expected, and the first of the others
    at_issue = [f"{names[place]} ({found[place]:.2f})" for place in np.argsort(-found)[max(0, last - 1) : last + 1]]
    return f"{'between' if seen.task.exclusive else 'unsure of'} {' and '.join(at_issue)}; {alike}"


def as_table(found: pd.DataFrame) -> "Table":
    """Return the first rows, for a terminal."""
    from rich.table import Table

    title, more = f"{len(found)} to label next", len(found) - SHOWN
    caption = f"… and {more} more: write all of them with --output next.csv" if more > 0 else None
    how = {"title": title, "title_justify": "left", "caption": caption, "caption_justify": "left"}
    shown = Table("rank", "id", "reason", "prediction", **how)
    for row in found.head(SHOWN).itertuples():
        shown.add_row(str(row.rank), str(row.id)[:60], row.reason, str(getattr(row, "prediction", "")))
    return shown
