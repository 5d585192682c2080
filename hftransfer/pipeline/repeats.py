"""The same run again: on other folds, or from other seeds; what the scores say together."""

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.config import RunConfig
from hftransfer.core.bars import Bar
from hftransfer.core.errors import UserError
from hftransfer.core.files import replacing
from hftransfer.evaluation import EvaluationConfig, evaluate_predictions
from hftransfer.modalities import ModalityKind, kind_of
from hftransfer.probe.solver import make_folds, solve_head
from hftransfer.runs.predictions import outputs_of, places_of
from hftransfer.runs.record import MetricsRecord, RunRecord
from hftransfer.runtime import launch
from hftransfer.strategies.head import HeadConfig
from hftransfer.tasks import Task

log = logging.getLogger(__name__)

Once = Callable[[RunConfig], dict[str, Any]]  # makes one run folder; returns its metrics
OFFERED_BELOW = 1000  # examples: with fewer, cross-validation is offered
HEADLINE_BELOW = 300  # examples: with fewer, a test part says too little, and cross-validation is the headline
DEFAULT_FOLDS = 5
VALIDATION_FOLDS = 7  # one of seven parts of the training rows chooses, about the default share


def check_repeats(config: RunConfig) -> None:
    """Raise `UserError` for a cross-validation that a further setting makes impossible."""
    if config.evaluation.folds and (config.data.train_examples or config.data.test):
        named = "data.train_examples" if config.data.train_examples else "data.test"
        raise UserError(f"evaluation.folds divides all rows anew: leave {named} out, or evaluation.folds.")
    if (config.evaluation.folds or config.evaluation.seeds > 1) and launch.process_count() > 1:
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


def own_test_part(config: RunConfig, given: tuple[str, ...]) -> bool:
    """Return whether the user chose the division: then its test part is the headline."""
    return bool("test" in given or config.data.test or config.data.split.file or config.data.train_examples)


def folds_of(config: RunConfig, rows: int, given: tuple[str, ...], kind: ModalityKind) -> int:
    """Return into how many folds a run of `rows` examples is divided; 0 for none.

    Left open, it is 5 below 300 examples where only a head is solved: this costs seconds. Trainings are only offered it.
    """
    asked = config.evaluation.folds
    if asked is not None or own_test_part(config, given) or rows >= HEADLINE_BELOW:
        return asked or 0
    return DEFAULT_FOLDS if _solved_at_once(config, kind) else 0


def _solved_at_once(config: RunConfig, kind: ModalityKind) -> bool:
    """Return whether folds need the features of examples alone; else each fold is a run of its own."""
    return config.strategy.defaults(kind) is None and not kind.by_word


def headline_of(config: RunConfig, rows: int, given: tuple[str, ...], metrics: dict[str, Any]) -> str | None:
    """Return which part of `metrics` is the headline of a run: "cross_validation", "test", "validation", or None.

    Cross-validation is it below 300 examples, and where there is no test part. A test part of the user's is always kept.
    """
    few = rows < HEADLINE_BELOW or "test" not in metrics
    if metrics.get("cross_validation") and few and not own_test_part(config, given):
        return "cross_validation"
    return next((part for part in ("test", "validation") if part in metrics), None)


def offer_folds(config: RunConfig, rows: int, given: tuple[str, ...], kind: ModalityKind) -> None:
    """Log what makes more of few examples, where the test part was merely cut off from them."""
    if own_test_part(config, given) or config.evaluation.folds is not None or rows >= OFFERED_BELOW:
        return
    if folds_of(config, rows, given, kind):
        log.info(
            "Only %d labelled examples: the headline is a repeated %d-fold cross-validation of all of them "
            "(evaluation.folds=0 leaves it out).", rows, DEFAULT_FOLDS,
        )  # fmt: skip
        return
    cost = "" if _solved_at_once(config, kind) else " It costs five more trainings."
    log.info("Only %d labelled rows: evaluation.folds=5 tests the model on every one of them in turn.%s", rows, cost)


def repeat(config: RunConfig, once: Once) -> dict[str, dict[str, Any]]:
    """Measure `cross_validation` (`evaluation.folds`) and `seeds` (`evaluation.seeds`): each metric with its interval.

    The run itself stays as it is; its `splits.parquet` is what is divided. What `cross_validate_head` has measured
    already is not repeated.
    """
    if not config.evaluation.folds and config.evaluation.seeds == 1:
        return {}
    from hftransfer.evaluation.resampling import spread

    found: dict[str, Any] = {}
    metrics = MetricsRecord.read(config.output_folder).as_dict()
    if config.evaluation.folds and "cross_validation" not in metrics:
        found |= _cross_validated(config, once)
        data = RunRecord.read(config.output_folder).data
        found["headline"] = headline_of(config, sum(data.counts.values()), data.given or (), metrics | found)
    if config.evaluation.seeds > 1:
        split = "test" if "test" in metrics else "validation"
        runs = [_again(config, once, split, config.seed + 1 + k) for k in range(config.evaluation.seeds - 1)]
        found["seeds"] = _together([metrics[split], *runs], spread)
    return found


def cross_validate_head(
    task: Task, features: Sequence[tuple[np.ndarray, np.ndarray]], targets: np.ndarray, groups: np.ndarray | None,
    head: HeadConfig, intercept: bool, config: EvaluationConfig, seed: int, blocks: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Repeated cross-validation of a head on frozen features: each fold chooses its own feature source, penalty and temperature.

    Args:
        features: (N, D) of all rows by each feature source that a fold may choose.
        blocks: (D,) the input that each feature is of, where there are several (`solver.standardiser`).
    """
    from hftransfer.evaluation.calibration import MIN_ROWS_FOR_TEMPERATURE, fit_temperature

    scores = []
    times = config.repeats or _repeats(config.folds, len(features))
    divided = divisions(task, targets, groups, config.folds, times, seed)
    for train, held_out in Bar(divided, desc="cross-validation", unit="fold"):
        fitted = (task.with_balance(targets[train]) if task.weights else task).with_scale(targets[train], intercept)
        inner = make_folds(task, targets[train], None if groups is None else groups[train], head.folds, seed)
        wanted = fitted.standardised(targets[train])
        solve = partial(solve_head, targets=wanted, task=fitted, folds=inner, intercept=intercept, blocks=blocks)
        found = [solve(compared[train]) for compared, _ in features]
        best, (compared, read) = min(zip(found, features, strict=True), key=lambda pair: pair[0].loss)
        best = best if read is compared else solve(read[train])
        logits = fitted.in_units(best.logits(read[held_out]))
        if task.has_classes and len(train) >= MIN_ROWS_FOR_TEMPERATURE:
            logits = logits / fit_temperature(task, best.out_of_fold, targets[train])
        scores.append(task.probabilities(logits))
    trained_on = [len(train) for train, _ in divided]
    return _pooled(task, targets, groups, [held_out for _, held_out in divided], scores, trained_on, config)


def _pooled(
    task: Task, targets: np.ndarray, groups: np.ndarray | None, held_out: list[np.ndarray], scores: list[np.ndarray],
    trained_on: list[int], config: EvaluationConfig,
) -> dict[str, Any]:  # fmt: skip
    """`cross_validation` and `cross_validation_folds` of `metrics.json`, from the scores of each fold's held-out rows.

    The folds of a division follow each other and hold every row once. `trained_on` are the fitted rows of each fold.
    """
    from hftransfer.evaluation.intervals import Measured
    from hftransfer.evaluation.resampling import over_repeats

    rows = np.concatenate(held_out).reshape(-1, len(targets))
    answers = np.concatenate(scores).reshape(*rows.shape, *scores[0].shape[1:])
    measured = []
    for order, answered in zip(rows, answers, strict=True):
        own = None if groups is None else list(groups[order])
        found = evaluate_predictions(task, targets[order], answered, own, config)["metrics"]
        measured.append({name: Measured(**value) for name, value in found.items()})
    combined = over_repeats(measured, rows.size / sum(trained_on))
    design = {"folds": len(held_out) // len(rows), "repeats": len(rows), "examples": len(targets)}
    return {
        "cross_validation": {name: asdict(value) for name, value in combined.items()},
        "cross_validation_folds": design,
    }


def divisions(
    task: Task, targets: np.ndarray, groups: np.ndarray | None, folds: int, repeats: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train and held-out row numbers of `repeats` divisions into folds, each a different one.

    Large groups may allow few divisions: the same one again would be no further evidence, and is left out with a line.
    Raises `UserError` for a single group: no division holds it out.
    """
    if groups is not None and len(np.unique(groups)) == 1:
        raise UserError(
            f"evaluation.folds holds out whole groups, and all {len(targets)} examples are of one ({groups[0]}). Leave "
            "evaluation.folds or data.split.group out."
        )
    found: dict[frozenset[bytes], list] = {}
    for number in range(repeats):
        division = make_folds(task, targets, groups, folds, seed + number)
        found.setdefault(frozenset(np.sort(held_out).tobytes() for _, held_out in division), division)
    if len(division) < folds:
        log.info("Folds: %d in place of %d, one per group or example", len(division), folds)
    if len(found) < repeats:
        log.info("Folds: the groups allow %d different divisions of the %d asked for", len(found), repeats)
    return [fold for division in found.values() for fold in division]


def _repeats(folds: int, sources: int) -> int:
    """Return how often a head is divided: up to 20 fits, beyond which the interval hardly narrows.

    Once where each fold compares more than two feature sources, as `head.layer=best` does: 24 of them cost minutes.
    """
    return max(1, round(20 / folds)) if sources <= 2 else 1


def _cross_validated(config: RunConfig, once: Once) -> dict[str, Any]:
    """Each fold a run of its own: of strategies that train the network, and of examples with several units."""
    rows = pd.read_parquet(config.output_folder / "splits.parquet")
    record = RunRecord.read(config.output_folder)
    task = record.task.make()
    labels = pd.Series([list(x) if isinstance(x, np.ndarray) else x for x in rows["label"]], dtype=object)
    targets = task.encode_all(labels.tolist())
    groups = None if rows["group"].isna().all() else rows["group"].fillna(rows["id"]).to_numpy()
    folds = divisions(task, targets, groups, config.evaluation.folds, config.evaluation.repeats or 1, config.seed)
    fits_validation = (
        config.strategy.defaults(kind_of(record.modality).for_task(task)) is None
    )  # of a head: only trainings choose a step on it
    scores, truths, trained_on, tables = [], [], [], []
    for number, (train, held_out) in enumerate(folds, start=1):
        log.info("Fold %d of %d", number, len(folds))
        split = np.full(len(rows), "train", dtype=object)
        split[held_out] = "test"
        inner = make_folds(
            task, targets[train], None if groups is None else groups[train], VALIDATION_FOLDS, config.seed
        )
        split[train[inner[0][1]]] = "validation"
        table = _held_out_table(config, once, rows.assign(split=split))
        tables.append(table)
        scores.append(outputs_of(table, task))
        truths.append(task.targets(labels[held_out].tolist(), places_of(table)))
        trained_on.append(len(train) if fits_validation else int((split == "train").sum()))
    _keep_out_of_fold(config.output_folder, pd.concat(tables, ignore_index=True), rows)
    held_out = [rows for _, rows in folds]
    order = np.argsort(np.concatenate(held_out)[: len(rows)])
    truth = np.concatenate(truths)[: len(rows)][order]
    return _pooled(task, truth, groups, held_out, scores, trained_on, config.evaluation)


def _keep_out_of_fold(folder: Path, tables: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Write what the folds say of the training rows into the run folder, where the run has no such predictions of its own."""
    path, trained = folder / "oof.parquet", rows.loc[rows["split"] == "train", "id"]
    if path.exists():
        return
    table = (
        tables[tables["id"].isin(trained)].drop_duplicates("id").drop(columns=["split", "out_of_fold"], errors="ignore")
    )
    with replacing(path) as place:
        table.to_parquet(place, index=False)


def _held_out_table(config: RunConfig, once: Once, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions of the test rows of `rows`, in their order, by one more run whose folder is not kept."""
    with tempfile.TemporaryDirectory() as place:
        rows.to_parquet(Path(place) / "splits.parquet", index=False)
        split = config.data.split.model_copy(update={"file": str(Path(place) / "splits.parquet")})
        data = config.data.model_copy(update={"split": split})
        once(_single(config).model_copy(update={"output": str(Path(place) / "run"), "data": data}))
        table = pd.read_parquet(Path(place) / "run" / "predictions.parquet").set_index("id")
        return table.loc[rows["id"][rows["split"] == "test"]].reset_index()


def _again(config: RunConfig, once: Once, split: str, seed: int) -> dict[str, Any]:
    """Return the metrics of `split` of one more run, whose folder is not kept."""
    with tempfile.TemporaryDirectory() as place:
        return once(_single(config).model_copy(update={"output": str(Path(place) / "run"), "seed": seed}))[split]


def _single(config: RunConfig) -> RunConfig:
    """Return the same run without its repetitions."""
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"folds": 0, "seeds": 1})})


def _together(runs: list[dict[str, Any]], interval: Callable[[list[float]], Any]) -> dict[str, Any]:
    names = [name for name in runs[0] if all(name in found for found in runs)]
    return {name: asdict(interval([found[name]["value"] for found in runs])) for name in names}
