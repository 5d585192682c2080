"""What a run knows about its own limits: prediction sets and intervals, and inputs that are none of the classes.

Made at the end of a run, kept beside the model, applied to every new input. A run without `reference.safetensors` (the
features of its training rows, which not everybody wants to give away) tells unknown inputs by the energy of the logits.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hftransfer.evaluation.calibration import calibration_report, cross_fitted_scores
from hftransfer.evaluation.conformal import (
    achievable_coverage,
    fit_thresholds,
    measure_sets,
    prediction_sets,
    threshold_examples,
)
from hftransfer.evaluation.intervals import Groups
from hftransfer.evaluation.unknown import energy, knn_distance, unknown_threshold
from hftransfer.inference import Machine, in_order, passes
from hftransfer.modalities import Modality
from hftransfer.predictions import Predictions
from hftransfer.probe import Probe
from hftransfer.readout import read_answers
from hftransfer.run_folder import read_json, write_json
from hftransfer.tasks import Task
from hftransfer.work import Work, judged_rows

log = logging.getLogger(__name__)

MOST_ROWS = 5000  # of the reference: beyond, the search costs more than the further rows tell
THRESHOLDS, REFERENCE = "trust.json", "reference.safetensors"


@dataclass(frozen=True)
class Trust:
    """Fitted limits of a model.

    `thresholds` (C,) are the probabilities at which a class enters the prediction set of `level`; of a regression they
    are the half-widths (K,) of its prediction intervals, and nothing else is known. `examples` (C,) is how many
    calibration examples each of them comes from; None in runs of earlier versions. An input is unknown
    when its distance to the `reference` (M, D) lies above `distance`, or without a reference its energy above `energy`.
    `ids` (M,) say which training rows the reference is; the distance is that to the `neighbours`-th of them.
    """

    level: float
    thresholds: np.ndarray
    distance: float
    energy: float
    reference: np.ndarray | None = None
    ids: Sequence[str] = ()
    neighbours: int = 10
    examples: np.ndarray | None = None

    @classmethod
    def fit(
        cls,
        task: Task,
        level: float,
        logits: np.ndarray,
        targets: np.ndarray,
        distances: np.ndarray,
        reference: np.ndarray,
        neighbours: int = 10,
        scores: np.ndarray | None = None,
    ) -> "Trust":
        """From calibrated logits (N, C), targets, and distances (M,) to the reference of rows that are not in it.

        All three belong to rows that the weights were not fitted on. The thresholds are fitted on `scores` (N, C), whose
        choices did not see their own example; by default on the calibrated ones.
        """
        scores = task.probabilities(logits) if scores is None else scores
        limits = unknown_threshold(distances), unknown_threshold(energy(logits))
        found = cls.of_scores(task, level, scores, targets)
        return replace(found, distance=limits[0], energy=limits[1], reference=reference, neighbours=neighbours)

    @classmethod
    def of_scores(cls, task: Task, level: float, scores: np.ndarray, targets: np.ndarray) -> "Trust":
        """Return thresholds or half-widths alone: no input is unknown."""
        thresholds, examples = fit_thresholds(task, scores, targets, level), threshold_examples(task, targets, level)
        return cls(level, thresholds, np.inf, np.inf, examples=examples)

    def strangeness(self, features: np.ndarray) -> np.ndarray:
        """The distance (N,) to the reference."""
        return distance(features, self.reference, self.neighbours)

    def columns(self, task: Task, logits: np.ndarray, features: np.ndarray) -> dict[str, Sequence[Any]]:
        """`set` (names joined by "|"), `unknown`, and the `distance` (or `energy`) that decided it, of each row.

        Of a regression `lower:` and `upper:` of each target.
        """
        sets = prediction_sets(task, task.probabilities(logits), self.thresholds)
        if task.type == "regression":
            ends = product(enumerate(task.names), enumerate(("lower", "upper")))
            return {f"{end}:{name}": sets[:, column, side] for (column, name), (side, end) in ends}
        names = ["|".join(name for name, held in zip(task.names, row, strict=True) if held) for row in sets]
        if self.reference is None:
            strangeness, limit, measure = energy(logits), self.energy, "energy"
        else:
            strangeness, limit, measure = self.strangeness(features), self.distance, "distance"
        return {"set": names, "unknown": strangeness > limit, measure: strangeness}

    def achievable(self, task: Task) -> dict[str, dict[str, float]]:
        """Return `examples`, `low` and `high` of each class or target: where coverage lies with so many examples."""
        ends = achievable_coverage(self.examples, self.level)
        rows = zip(task.names, self.examples, ends, strict=True)
        return {name: {"examples": int(n), "low": float(low), "high": float(high)} for name, n, (low, high) in rows}

    def nearest(self, features: np.ndarray, count: int) -> list[str]:
        """Ids of the training rows nearest to one row of features (D,), by the distance that tells unknown inputs."""
        if self.reference is None or not self.ids:
            return []
        middle = self.reference.mean(0)
        gaps = unit(unit(features[None]) - middle) - unit(self.reference - middle)
        return [self.ids[row] for row in np.argsort(np.linalg.norm(gaps, axis=1))[:count]]

    def write(self, folder: Path, task: Task) -> None:
        """`trust.json`, and the reference in float16 with its ids: a file that no push takes along."""
        from safetensors.numpy import save_file

        if self.reference is not None:
            temporary = folder / f".{REFERENCE}.tmp"
            about = {"ids": json.dumps(list(self.ids), ensure_ascii=False)}
            save_file({"features": self.reference.astype(np.float16)}, temporary, metadata=about)
            os.replace(temporary, folder / REFERENCE)
        thresholds = dict(zip(task.names, map(_or_null, self.thresholds.tolist()), strict=True))
        examples = None if self.examples is None else dict(zip(task.names, self.examples.tolist(), strict=True))
        unknown = {"distance": _or_null(self.distance), "energy": _or_null(self.energy), "neighbours": self.neighbours}
        write_json(
            folder / THRESHOLDS,
            {"level": self.level, "thresholds": thresholds, "examples": examples, "unknown": unknown},
        )

    @classmethod
    def read(cls, folder: Path, task: Task) -> "Trust | None":
        """What `write` left in the folder; None where there is nothing (models made elsewhere)."""
        if not (folder / THRESHOLDS).is_file():
            return None
        found = read_json(folder / THRESHOLDS)
        thresholds = np.array([_from_null(found["thresholds"][name]) for name in task.names])
        unknown, (reference, ids) = found["unknown"], _read_reference(folder / REFERENCE)
        limits = [_from_null(unknown[name]) for name in ("distance", "energy")]
        examples = found.get("examples") and np.array([found["examples"][name] for name in task.names])
        neighbours = unknown.get("neighbours", cls.neighbours)  # runs of earlier versions name none
        return cls(found["level"], thresholds, *limits, reference, ids, neighbours, examples)


def _or_null(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _from_null(value: float | None) -> float:
    """JSON has no infinity: a limit that nothing was fitted to is null."""
    return float("inf") if value is None or np.isnan(value) else value


def _read_reference(file: Path) -> tuple[np.ndarray | None, Sequence[str]]:
    """Features and ids; runs of earlier versions hold no ids."""
    from safetensors import safe_open

    if not file.is_file():
        return None, ()
    with safe_open(file, "numpy") as stored:
        return stored.get_tensor("features").astype(np.float32), json.loads((stored.metadata() or {}).get("ids", "[]"))


def answers(
    model: nn.Module, modality: Modality, items: Sequence[Any], machine: Machine
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and the features (N, D) that the last layer reads, from one pass in this process alone."""
    model.eval()
    size = model.config.num_labels
    results = passes(
        modality, items, range(len(items)), machine, lambda batch: torch.cat(read_answers(model, batch), 1), "predict"
    )
    both = in_order(((positions, found.float().cpu().numpy()) for positions, found in results), len(items), size)
    return both[:, :size], both[:, size:]


def fit_trust(
    work: Work, model: nn.Module, predictions: Predictions, probe: Probe | None, steps: Sequence[np.ndarray] = ()
) -> Trust | None:
    """The limits of a finished `model`, whose `predictions` are settled; None with nothing to fit on.

    A head alone leaves the features as they were: all rows it was fitted on are the reference, and each is measured
    against the others. A network that trained draws its own training rows together: validation rows are measured.
    """
    task, level = work.data.task, work.config.evaluation.conformal_level
    judged = judged_rows(work, predictions)
    if not judged.any():
        log.info("No held-out examples: no prediction sets or intervals, no unknown inputs")
        return None
    positions = predictions.positions[judged]
    scores = _honest_scores(work, predictions, probe, steps, judged)
    if task.type == "regression":
        trust = Trust.of_scores(task, level, scores, work.targets[positions])
        log.info("Regression: prediction intervals at %.0f %% from %d held-out examples, half-width %s; no unknown inputs",
                 100 * level, len(positions), ", ".join(f"{width:.3g}" for width in trust.thresholds))  # fmt: skip
        return trust
    rows = _some(work, work.positions("train") if work.trains else work.fitted)
    neighbours = neighbours_of(task, work.targets[rows])
    if work.trains:
        reference, distances = _trained(work, model, rows, positions, neighbours)
    else:
        reference, distances = _frozen(work, probe, rows, neighbours)
    trust = Trust.fit(
        task, level, predictions.logits[judged], work.targets[positions], distances, reference, neighbours, scores
    )
    log.info("Prediction sets at %.0f %%; unknown: farther than %.3g from %d training rows",
             100 * level, trust.distance, len(reference))  # fmt: skip
    if not work.config.evaluation.reference:
        log.info("evaluation.reference=false: no features of training rows are kept, the energy tells unknown inputs")
        return replace(trust, reference=None)
    return replace(trust, ids=work.data.frame["id"].iloc[rows].tolist())


def _honest_scores(
    work: Work, predictions: Predictions, probe: Probe | None, steps: Sequence[np.ndarray], judged: np.ndarray
) -> np.ndarray:
    """Return scores (N, C) of the evaluated examples that their own labels helped to choose as little as can be.

    Of a probe, the feature source of each fold is chosen by the other folds; of a training, the step is, from the
    logits of the validation part at each (`loop.Trained.steps_logits`). The temperature is always cross-fitted.
    """
    task, positions = work.data.task, predictions.positions[judged]
    logits = predictions.logits[judged] * predictions.temperature
    if predictions.out_of_fold.any() and probe is not None and probe.cross_validated is not None:
        logits = task.in_units(probe.cross_validated[np.searchsorted(work.fitted, positions)])
    groups = None if work.groups is None else work.groups[positions]
    return cross_fitted_scores(task, logits, work.targets[positions], groups, [task.in_units(step) for step in steps])


def neighbours_of(task: Task, targets: np.ndarray) -> int:
    """Which neighbour is measured: a tenth of the rows of the middle class, from 1 to 10.

    The tenth nearest of a class of ten rows is one of another class, and says nothing of this one (docs/unknowns.md).
    """
    counts = np.bincount(targets) if task.type == "single_label" else targets.sum(0)
    return int(np.clip(np.median(counts[counts > 0]) // 10, 1, 10))


def _frozen(work: Work, probe: Probe, rows: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of fitted rows, and the distance of each to all others, those of its own group left out."""
    features, groups = unit(probe.features[rows]), work.groups
    apart = np.arange(len(rows)) if groups is None else np.unique(groups[rows].astype(str), return_inverse=True)[1]
    return features, distance(features, features, neighbours, apart)


def _trained(
    work: Work, model: nn.Module, rows: np.ndarray, held_out: np.ndarray, neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features of training rows, and the distance of the held-out rows to them."""
    wanted = np.concatenate([rows, held_out])
    _, features = answers(model, work.modality, [work.items[row] for row in wanted], work.machine)
    reference = unit(features[: len(rows)])
    return reference, distance(features[len(rows) :], reference, neighbours)


def _some(work: Work, rows: np.ndarray) -> np.ndarray:
    if len(rows) <= MOST_ROWS:
        return rows
    return np.sort(np.random.default_rng(work.config.seed).choice(rows, MOST_ROWS, replace=False))


def distance(
    features: np.ndarray, reference: np.ndarray, neighbours: int = 10, groups: np.ndarray | None = None
) -> np.ndarray:
    """`knn_distance` (N,) of features (N, D) to a reference of length 1, both seen from the middle of the reference.

    Pooled activations are positive and share one large direction, beside which the differences are small. What this
    gains and loses is in docs/unknowns.md.
    """
    middle = reference.mean(0)
    return knn_distance(unit(features) - middle, reference - middle, neighbours, groups)


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1: the distance knows directions alone, and float16 holds them whatever the scale."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def trust_metrics(
    task: Task, trust: Trust | None, part: Predictions, targets: np.ndarray, groups: Groups
) -> dict[str, Any]:
    """What `metrics.json` says of the test part: `calibration` before and after the temperature, `conformal` sets.

    `conformal` also has the coverage that is `achievable` with the calibration examples (`achievable_coverage`), of each
    class or target. `targets` and `groups` belong to the rows of `part`. Empty where the part is; regression has no
    `calibration`.
    """
    if not len(part.positions):
        return {}
    found = {}
    if task.type != "regression":
        report = calibration_report(task, part.logits * part.temperature, targets, part.temperature, groups)
        found["calibration"] = {"test": report}
    if trust is not None and (task.type != "multi_label" or targets.any()):
        sets = prediction_sets(task, task.probabilities(part.logits), trust.thresholds)
        measured = measure_sets(task, sets, targets, groups) | {"achievable": trust.achievable(task)}
        found["conformal"] = {"test": {"level": trust.level} | measured}
    return _plain(found)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return asdict(value)
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value
