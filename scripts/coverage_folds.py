"""Measure how often the interval of a cross-validation covers the accuracy of the model that is kept.

    python scripts/coverage_folds.py [--draws 300] [--cells 0 3 5]

Gaussian classes in 20 dimensions and a ridge classifier. The truth is the metric on 20,000 fresh examples of the classifier
that is fitted on all examples. `before`: the corrected resampled t interval of 20 fold scores (Nadeau & Bengio 2003). `now`:
pooled out-of-fold predictions (`evaluation.resampling.over_repeats`). Groups, where there are any, share an offset.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from hftransfer.evaluation.intervals import measure
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.evaluation.resampling import corrected_t_interval, over_repeats
from hftransfer.probe.solver import make_folds
from hftransfer.tasks import SingleLabel, Task

WIDTH, FRESH = 20, 20_000


@dataclass(frozen=True)
class Cell:
    """`counts` examples per class, `distance` between class centres, `groups` (0: none), folds and repeats."""

    counts: tuple[int, ...]
    distance: float
    folds: int = 5
    repeats: int = 4
    groups: int = 0

    @property
    def title(self) -> str:
        counts = (
            "/".join(map(str, self.counts)) if len(set(self.counts)) > 1 else f"{len(self.counts)} x {self.counts[0]}"
        )
        return f"{counts}{f', {self.groups} groups' if self.groups else ''}"


CELLS = [
    Cell((15, 15), 1.5), Cell((15, 15), 4), Cell((15, 15), 12), Cell((50, 50), 2), Cell((50, 50), 6), Cell((140, 140), 2),
    Cell((8,) * 5, 4), Cell((30,) * 5, 4), Cell((10,) * 20, 6), Cell((100, 100, 2), 3), Cell((40, 40, 5), 3),
    Cell((50, 50), 2, 5, 1), Cell((30,) * 5, 4, 5, 1), Cell((50, 50), 2, groups=10), Cell((50, 50), 2, groups=20),
]  # fmt: skip
METRICS = ("accuracy", "macro_f1", "log_loss")


def draw(cell: Cell, centres: np.ndarray, targets: np.ndarray, random: np.random.Generator, groups: int):
    """Features (N, D) and the group of each example."""
    features = centres[targets] + random.standard_normal((len(targets), WIDTH))
    if not groups:
        return features, None
    own = random.integers(groups, size=len(targets))
    return features + 0.7 * random.standard_normal((groups, WIDTH))[own], own.astype(str)


def fit(features: np.ndarray, targets: np.ndarray, classes: int):
    """Ridge regression on the classes, its answers taken for logits."""
    wanted, mean = 4 * np.eye(classes)[targets], features.mean(0)
    centred = features - mean
    weight = np.linalg.solve(centred.T @ centred + 10 * np.eye(WIDTH), centred.T @ (wanted - wanted.mean(0)))
    return lambda rows: wanted.mean(0) + (rows - mean) @ weight


def one(cell: Cell, seed: int) -> dict[str, tuple[float, tuple, tuple]]:
    random = np.random.default_rng(seed)
    classes = len(cell.counts)
    task = SingleLabel(tuple(f"c{c}" for c in range(classes)))
    centres = random.standard_normal((classes, WIDTH))
    centres *= cell.distance / np.sqrt(2 * WIDTH)
    targets = np.repeat(np.arange(classes), cell.counts)
    features, groups = draw(cell, centres, targets, random, cell.groups)
    truth = _truth(cell, centres, fit(features, targets, classes), task, random)
    pooled, scores, ratio = [], [], 0.0
    for repeat in range(cell.repeats):
        folds = make_folds(task, targets, groups, cell.folds, repeat)
        answers = np.zeros((len(targets), classes))
        for train, held_out in folds:
            answers[held_out] = task.probabilities(fit(features[train], targets[train], classes)(features[held_out]))
            scores.append(compute_metrics(task, targets[held_out], answers[held_out]))
        ratio = sum(len(h) for _, h in folds) / sum(len(t) for t, _ in folds)
        pooled.append(measure(task, targets, answers, None if groups is None else list(groups), resamples=300))
    now, rows = over_repeats(pooled, ratio), len(targets)
    before = {
        name: corrected_t_interval([s[name] for s in scores], rows - rows // cell.folds, rows // cell.folds)
        for name in METRICS
    }
    return {name: (truth[name], before[name], now[name]) for name in METRICS}


def _truth(cell: Cell, centres: np.ndarray, answer, task: Task, random: np.random.Generator) -> dict[str, float]:
    shares = np.array(cell.counts) / sum(cell.counts)
    targets = random.choice(len(shares), size=FRESH, p=shares)
    fresh, _ = draw(cell, centres, targets, random, FRESH // 10 if cell.groups else 0)
    return compute_metrics(task, targets, task.probabilities(answer(fresh)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--cells", type=int, nargs="+", default=range(len(CELLS)), help="numbers of the cells, from 0")
    asked = parser.parse_args()
    draws = asked.draws
    print(
        "| examples | folds x repeats | accuracy | "
        + " | ".join(f"{m}: before, now" for m in METRICS)
        + " | width: before, now |"
    )
    print("|---" * (4 + len(METRICS)) + "|")
    for cell in [CELLS[number] for number in asked.cells]:
        found = [one(cell, seed) for seed in range(draws)]
        parts = []
        for name in METRICS:
            covered = [np.mean([f[name][k].low <= f[name][0] <= f[name][k].high for f in found]) for k in (1, 2)]
            parts.append(f"{covered[0]:.1%}, {covered[1]:.1%}")
        widths = [np.mean([f["accuracy"][k].high - f["accuracy"][k].low for f in found]) for k in (1, 2)]
        accuracy = np.mean([f["accuracy"][0] for f in found])
        print(f"| {cell.title} | {cell.folds} x {cell.repeats} | {accuracy:.2f} | " + " | ".join(parts)
              + f" | {widths[0]:.3f}, {widths[1]:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
