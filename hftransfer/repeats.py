"""The same run again: on other folds, or from other seeds; what the scores say together."""

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hftransfer import run_folder
from hftransfer.config import RunConfig
from hftransfer.convex import make_folds
from hftransfer.errors import UserError
from hftransfer.evaluation.resampling import corrected_t_interval, spread
from hftransfer.tasks import Task

log = logging.getLogger(__name__)

Once = Callable[[RunConfig], dict[str, Any]]  # makes one run folder; returns its metrics
VALIDATION_FOLDS = 7  # one of seven parts of the training rows chooses, about the default share


def check_repeats(config: RunConfig) -> None:
    """Raises `UserError` for a cross-validation that a further setting makes impossible."""
    if config.evaluation.folds and (config.data.train_examples or config.data.test):
        named = "data.train_examples" if config.data.train_examples else "data.test"
        raise UserError(f"evaluation.folds divides all rows anew: leave {named} out, or evaluation.folds.")
    if (config.evaluation.folds or config.evaluation.seeds > 1) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("evaluation.folds and evaluation.seeds repeat a run in one process: leave them out of a launch.")


def repeat(config: RunConfig, once: Once) -> dict[str, dict[str, Any]]:
    """`cross_validation` (`evaluation.folds`) and `seeds` (`evaluation.seeds`): each metric's mean with its interval.

    Folds share training rows, which the interval allows for (Nadeau & Bengio 2003). The run itself stays as it is; its
    `splits.parquet` is what is divided anew.
    """
    found = {}
    if config.evaluation.folds:
        found["cross_validation"] = _cross_validated(config, once)
    if config.evaluation.seeds > 1:
        runs = [_again(config, once, seed=config.seed + 1 + k) for k in range(config.evaluation.seeds - 1)]
        own = run_folder.read_json(config.output_folder / "metrics.json")["test"]
        found["seeds"] = _together([own, *runs], lambda scores: spread(scores))
    return found


def _cross_validated(config: RunConfig, once: Once) -> dict[str, Any]:
    folder = config.output_folder
    rows = pd.read_parquet(folder / "splits.parquet")
    about = run_folder.read_json(folder / "run.json")["task"]
    task = Task(about["type"], tuple(about["names"]))
    targets = task.encode_all([list(x) if isinstance(x, np.ndarray) else x for x in rows["label"]])
    groups = None if rows["group"].isna().all() else rows["group"].fillna(rows["id"]).to_numpy()
    folds = make_folds(task, targets, groups, config.evaluation.folds, config.seed)
    scores = []
    for number, (train, held_out) in enumerate(folds, start=1):
        log.info("Fold %d of %d", number, len(folds))
        split = np.full(len(rows), "train", dtype=object)
        split[held_out] = "test"
        inner = make_folds(task, targets[train], None if groups is None else groups[train], VALIDATION_FOLDS, config.seed)
        split[train[inner[0][1]]] = "validation"
        scores.append(_again(config, once, rows=rows.assign(split=split)))
    sizes = len(rows) - len(rows) // len(folds), len(rows) // len(folds)
    return _together(scores, lambda values: corrected_t_interval(values, *sizes))


def _again(config: RunConfig, once: Once, seed: int | None = None, rows: pd.DataFrame | None = None) -> dict[str, Any]:
    """The test metrics of one more run, whose folder is not kept."""
    with tempfile.TemporaryDirectory() as place:
        changes: dict[str, Any] = {"output": str(Path(place) / "run")}
        if seed is not None:
            changes["seed"] = seed
        if rows is not None:
            rows.to_parquet(Path(place) / "splits.parquet", index=False)
            split = config.data.split.model_copy(update={"file": str(Path(place) / "splits.parquet")})
            changes["data"] = config.data.model_copy(update={"split": split})
        return once(config.model_copy(update=changes))["test"]


def _together(runs: list[dict[str, Any]], interval: Callable[[list[float]], Any]) -> dict[str, Any]:
    names = [name for name in runs[0] if all(name in found for found in runs)]
    return {name: asdict(interval([found[name]["value"] for found in runs])) for name in names}
