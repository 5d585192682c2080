"""Corrections that users of the demo send, kept in a patch file beside the run."""

import math
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from hftransfer.apps.serving import Served
from hftransfer.core.errors import UserError
from hftransfer.core.files import strict_json
from hftransfer.tasks import Task

# A stranger cannot fill the disk: lines of a patch file, and bytes of it with the pictures beside it.
MAX_CORRECTIONS, MAX_BYTES = 10_000, 2**30


def keep_correction(patch: Path, model: Served, frame: pd.DataFrame, label: Any) -> None:
    """Append one line: time, input (a file is copied beside it), prediction, label. Raises `UserError`."""
    right = _right_label(model.task, label)
    _check_room(patch)
    predicted = model.task.decode(model.task.decide(model.ask(frame)[0])[0])
    given = frame.drop(columns="id").iloc[0].to_dict()
    if model.kind.files:
        given["input"] = kept_file(patch, given["input"])
    time = datetime.now(UTC).isoformat(timespec="seconds")
    line = strict_json({"time": time, **given, "prediction": predicted, "label": right})
    with patch.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _check_room(patch: Path) -> None:
    lines = sum(1 for _ in patch.open(encoding="utf-8")) if patch.is_file() else 0
    files = [patch, *patch.with_suffix("").glob("*")]
    if lines >= MAX_CORRECTIONS or sum(file.stat().st_size for file in files if file.is_file()) >= MAX_BYTES:
        limits = f"{MAX_CORRECTIONS:,} corrections or {MAX_BYTES / 2**30:.0f} GiB"
        raise UserError(f"{patch.name} is full ({limits}): its owner has to look at them first.")


def _right_label(task: Task, label: Any) -> Any:
    if label is None or label == "":
        raise UserError("Say what is right first.")
    if task.has_classes:
        return label
    try:
        values = [float(word) for word in str(label).replace(",", " ").split()]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise UserError(f"Expected numbers, found {label!r}.")
    if len(values) != len(task.names):
        raise UserError(f"Expected {len(task.names)} numbers ({', '.join(task.names)}), found {len(values)}.")
    return values[0] if len(values) == 1 else values


def kept_file(patch: Path, source: str) -> str:
    """Copy a file beside the patch; return the copy's path as seen from the patch file's folder."""
    place = patch.with_suffix("")
    place.mkdir(exist_ok=True)
    copy = place / f"{uuid.uuid4().hex}{Path(source).suffix.lower()}"
    shutil.copyfile(source, copy)
    return f"{place.name}/{copy.name}"
