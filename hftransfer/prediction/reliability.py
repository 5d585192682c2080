"""What a run knows about its own limits: prediction sets and intervals, and inputs that are none of the classes.

Made at the end of a run, kept beside the model, applied to every new input. A run without `reference.safetensors` (the
features of its training rows, which not everybody wants to give away) tells unknown inputs by the energy of the logits.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hftransfer.core.files import read_json, replacing, write_json
from hftransfer.evaluation.conformal import (
    achievable_coverage,
    fit_thresholds,
    prediction_sets,
    threshold_examples,
)
from hftransfer.evaluation.unknown import energy, knn_distance, unknown_threshold
from hftransfer.features.passes import ComputeConfig, in_order, passes
from hftransfer.features.sources import read_answers
from hftransfer.modalities import Modality
from hftransfer.tasks import Task

log = logging.getLogger(__name__)

THRESHOLDS, REFERENCE = "trust.json", "reference.safetensors"


@dataclass(frozen=True)
class Reliability:
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
    ) -> "Reliability":
        """From calibrated logits (N, C), targets, and distances (M,) to the reference of rows that are not in it.

        All three belong to rows that the weights were not fitted on. The thresholds are fitted on `scores` (N, C), whose
        choices did not see their own example; by default on the calibrated ones.
        """
        scores = task.probabilities(logits) if scores is None else scores
        limits = unknown_threshold(distances), unknown_threshold(energy(logits))
        found = cls.of_scores(task, level, scores, targets)
        return replace(found, distance=limits[0], energy=limits[1], reference=reference, neighbours=neighbours)

    @classmethod
    def of_scores(cls, task: Task, level: float, scores: np.ndarray, targets: np.ndarray) -> "Reliability":
        """Return thresholds or half-widths alone: no input is unknown."""
        thresholds, examples = fit_thresholds(task, scores, targets, level), threshold_examples(task, targets, level)
        return cls(level, thresholds, np.inf, np.inf, examples=examples)

    def ood_score(self, features: np.ndarray) -> np.ndarray:
        """Return the distance (N,) to the reference."""
        return distance(features, self.reference, self.neighbours)

    def columns(self, task: Task, logits: np.ndarray, features: np.ndarray) -> dict[str, Sequence[Any]]:
        """`set` (names joined by "|"), `unknown`, and the `distance` (or `energy`) that decided it, of each row.

        Of a regression `lower:` and `upper:` of each target.
        """
        sets = prediction_sets(task, task.probabilities(logits), self.thresholds)
        if not task.has_classes:
            ends = product(enumerate(task.names), enumerate(("lower", "upper")))
            return {f"{end}:{name}": sets[:, column, side] for (column, name), (side, end) in ends}
        names = ["|".join(name for name, held in zip(task.names, row, strict=True) if held) for row in sets]
        if self.reference is None:
            ood_score, limit, measure = energy(logits), self.energy, "energy"
        else:
            ood_score, limit, measure = self.ood_score(features), self.distance, "distance"
        return {"set": names, "unknown": ood_score > limit, measure: ood_score}

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
            about = {"ids": json.dumps(list(self.ids), ensure_ascii=False)}
            with replacing(folder / REFERENCE) as temporary:
                save_file({"features": self.reference.astype(np.float16)}, temporary, metadata=about)
        thresholds = dict(zip(task.names, map(_or_null, self.thresholds.tolist()), strict=True))
        examples = None if self.examples is None else dict(zip(task.names, self.examples.tolist(), strict=True))
        unknown = {"distance": _or_null(self.distance), "energy": _or_null(self.energy), "neighbours": self.neighbours}
        write_json(
            folder / THRESHOLDS,
            {"level": self.level, "thresholds": thresholds, "examples": examples, "unknown": unknown},
        )

    @classmethod
    def read(cls, folder: Path, task: Task) -> "Reliability | None":
        """Return what `write` left in the folder; None where there is nothing (models made elsewhere)."""
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
    model: nn.Module, modality: Modality, items: Sequence[Any], compute_config: ComputeConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and the features (N, D) that the last layer reads, from one pass in this process alone."""
    model.eval()
    size = model.config.num_labels
    results = passes(
        modality,
        items,
        range(len(items)),
        compute_config,
        lambda batch: torch.cat(read_answers(model, batch), 1),
        "predict",
    )
    both = in_order(((positions, found.float().cpu().numpy()) for positions, found in results), len(items), size)
    return both[:, :size], both[:, size:]


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
    with np.errstate(over="ignore"):  # where training diverged
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
