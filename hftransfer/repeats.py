"""The same run again: on other folds, or from other seeds; what the scores say together."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from hftransfer import run_folder
from hftransfer.config import RunConfig
from hftransfer.convex import make_folds, solve_head
from hftransfer.errors import UserError
from hftransfer.evaluation import EvaluationConfig, evaluate_predictions
from hftransfer.strategies.head import HeadConfig
from hftransfer.tasks import Task

log = logging.getLogger(__name__)

Once = Callable[[RunConfig], dict[str, Any]]  # makes one run folder; returns its metrics
FEW_ROWS = 1000
VALIDATION_FOLDS = 7  # one of seven parts of the training rows chooses, about the default share


def check_repeats(config: RunConfig) -> None:
    """Raises `UserError` for a cross-validation that a further setting makes impossible."""
    if config.evaluation.folds and (config.data.train_examples or config.data.test):
        named = "data.train_examples" if config.data.train_examples else "data.test"
        raise UserError(f"evaluation.folds divides all rows anew: leave {named} out, or evaluation.folds.")
    if (config.evaluation.folds or config.evaluation.seeds > 1) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "evaluation.folds and evaluation.seeds repeat a run in one process: leave them out of a launch."
        )


def check_parts(config: RunConfig, splits: pd.Series) -> None:
    """Raise `UserError` where runs of several seeds have no examples to be compared on."""
    if config.evaluation.seeds > 1 and not splits.isin(["test", "validation"]).any():
        raise UserError(
            f"evaluation.seeds={config.evaluation.seeds} compares runs on test or validation examples; there are none. "
            "Give data.split.test a share, or leave evaluation.seeds out."
        )


def offer_folds(config: RunConfig, rows: int, given: tuple[str, ...]) -> None:
    """Say which option makes more of few rows, where the test part was merely cut off from them."""
    settled = "test" in given or config.data.split.file or config.data.train_examples or config.evaluation.folds
    if not settled and rows < FEW_ROWS:
        log.info("Only %d labelled rows: evaluation.folds=5 tests the model on every one of them in turn.", rows)


def repeat(config: RunConfig, once: Once) -> dict[str, dict[str, Any]]:
    """`cross_validation` (`evaluation.folds`) and `seeds` (`evaluation.seeds`): each metric's mean with its interval.

    Folds share training rows, which the interval allows for (Nadeau & Bengio 2003). The run itself stays as it is; its
    `splits.parquet` is what is divided anew. What `cross_validate_head` has measured already is not repeated.
    """
    if not config.evaluation.folds and config.evaluation.seeds == 1:
        return {}
    from hftransfer.evaluation.resampling import spread

    found = {}
    metrics = run_folder.read_json(config.output_folder / "metrics.json")
    if config.evaluation.folds and "cross_validation" not in metrics:
        found["cross_validation"] = _cross_validated(config, once)
    if config.evaluation.seeds > 1:
        split = "test" if "test" in metrics else "validation"
        runs = [_again(config, once, split, seed=config.seed + 1 + k) for k in range(config.evaluation.seeds - 1)]
        found["seeds"] = _together([metrics[split], *runs], spread)
    return found


def cross_validate_head(
    task: Task, features: Sequence[tuple[np.ndarray, np.ndarray]], targets: np.ndarray, groups: np.ndarray | None,
    head: HeadConfig, intercept: bool, config: EvaluationConfig, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Repeated cross-validation of a head on frozen features: each fold chooses readout, penalty and temperature anew.

    Args:
        features: (N, D) of all rows by each readout that a fold may choose: what it is compared by, and what its head reads.
    """
    from hftransfer.evaluation.calibration import MIN_ROWS_FOR_TEMPERATURE, fit_temperature

    scores = []
    divided = divisions(task, targets, groups, config.folds, config.repeats or _repeats(config.folds), seed)
    for train, held_out in tqdm(divided, desc="cross-validation", unit="fold", disable=None, leave=False):
        fitted = (task.with_balance(targets[train]) if task.weights else task).with_scale(targets[train])
        inner = make_folds(task, targets[train], None if groups is None else groups[train], head.folds, seed)
        wanted = fitted.standardised(targets[train])
        solve = partial(solve_head, targets=wanted, task=fitted, folds=inner, solver=head.solver, intercept=intercept)
        found = [solve(compared[train]) for compared, _ in features]
        best, (compared, read) = min(zip(found, features, strict=True), key=lambda pair: pair[0].loss)
        best = best if read is compared else solve(read[train])
        logits = fitted.in_units(best.logits(read[held_out]))
        if task.type != "regression" and len(train) >= MIN_ROWS_FOR_TEMPERATURE:
            logits = logits / fit_temperature(task, best.out_of_fold, targets[train])
        own = None if groups is None else list(groups[held_out])
        few = config.model_copy(update={"resamples": 100})  # only the values are read
        scores.append(evaluate_predictions(task, targets[held_out], task.probabilities(logits), own, few)["metrics"])
    return _over_folds(scores, len(targets), config.folds)


def divisions(
    task: Task, targets: np.ndarray, groups: np.ndarray | None, folds: int, repeats: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train and held-out row numbers of `repeats` divisions into folds, each a different one.

    Large groups may allow few divisions: the same one again would be no further evidence, and is left out with a line.
    """
    found: dict[frozenset[bytes], list] = {}
    for number in range(repeats):
        division = make_folds(task, targets, groups, folds, seed + number)
        found.setdefault(frozenset(np.sort(held_out).tobytes() for _, held_out in division), division)
    if len(found) < repeats:
        log.info("Folds: the groups allow %d different divisions of the %d asked for", len(found), repeats)
    return [fold for division in found.values() for fold in division]


def _repeats(folds: int) -> int:
    """Of a head, which costs seconds: 20 scores, beyond which the interval hardly narrows."""
    return max(1, round(20 / folds))


def _cross_validated(config: RunConfig, once: Once) -> dict[str, Any]:
    """Each fold a run of its own: of strategies that train the network."""
    rows = pd.read_parquet(config.output_folder / "splits.parquet")
    about = run_folder.read_json(config.output_folder / "run.json")["task"]
    task = Task(about["type"], tuple(about["names"]))
    targets = task.encode_all([list(x) if isinstance(x, np.ndarray) else x for x in rows["label"]])
    groups = None if rows["group"].isna().all() else rows["group"].fillna(rows["id"]).to_numpy()
    folds = divisions(task, targets, groups, config.evaluation.folds, config.evaluation.repeats or 1, config.seed)
    scores = []
    for number, (train, held_out) in enumerate(folds, start=1):
        log.info("Fold %d of %d", number, len(folds))
        split = np.full(len(rows), "train", dtype=object)
        split[held_out] = "test"
        inner = make_folds(
            task, targets[train], None if groups is None else groups[train], VALIDATION_FOLDS, config.seed
        )
        split[train[inner[0][1]]] = "validation"
        scores.append(_again(config, once, "test", rows=rows.assign(split=split)))
    return _over_folds(scores, len(rows), config.evaluation.folds)


def _over_folds(scores: list[dict[str, Any]], rows: int, folds: int) -> dict[str, Any]:
    from hftransfer.evaluation.resampling import corrected_t_interval

    sizes = rows - rows // folds, rows // folds
    return _together(scores, lambda values: corrected_t_interval(values, *sizes))


def _again(
    config: RunConfig, once: Once, split: str, seed: int | None = None, rows: pd.DataFrame | None = None
) -> dict[str, Any]:
    """The metrics of `split` of one more run, whose folder is not kept."""
    with tempfile.TemporaryDirectory() as place:
        changes: dict[str, Any] = {"output": str(Path(place) / "run")}
        if seed is not None:
            changes["seed"] = seed
        if rows is not None:
            rows.to_parquet(Path(place) / "splits.parquet", index=False)
            stored = config.data.split.model_copy(update={"file": str(Path(place) / "splits.parquet")})
            changes["data"] = config.data.model_copy(update={"split": stored})
        return once(config.model_copy(update=changes))[split]


def _together(runs: list[dict[str, Any]], interval: Callable[[list[float]], Any]) -> dict[str, Any]:
    names = [name for name in runs[0] if all(name in found for found in runs)]
    return {name: asdict(interval([found[name]["value"] for found in runs])) for name in names}
