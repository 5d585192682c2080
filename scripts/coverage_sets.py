"""Measure the coverage of prediction sets and intervals: the tables of docs/calibration.md.

    python scripts/coverage_sets.py [--draws 200]

Every draw fits thresholds on one sample and counts coverage on a fresh one of 2,000 examples. `before` is the rule of commit
e791147: classes with fewer than 20 calibration examples take the quantile of all classes, and the temperature is fitted
on the examples of the thresholds.
"""

import argparse

import numpy as np

from hftransfer.evaluation.calibration import (
    apply_temperature,
    calibrated_log_loss,
    cross_fitted_scores,
    fit_temperature,
)
from hftransfer.evaluation.conformal import fit_thresholds, prediction_sets
from hftransfer.tasks import Task, make_task

LEVELS, FRESH, STEPS = (0.8, 0.9, 0.95), 2000, 8
SIZES = {"5 x 100": [100] * 5, "2 x 100, 10 x 10": [100] * 2 + [10] * 10, "100, 30, 25, 20, 5": [100, 30, 25, 20, 5],
         "20 x 5": [5] * 20}  # fmt: skip
FEW = (30, 50, 100, 500)


def named(kind: str, count: int) -> Task:
    return make_task(kind, tuple(f"c{number}" for number in range(count)))


def draw(random: np.random.Generator, classes: np.ndarray, count: int, kind: str, rare_skill: float = 1.5):
    """Logits (N, C), 3 times too sure, and targets; class 0 is the easiest. Several labels: each example has two."""
    skill = np.linspace(3, rare_skill, count)
    if kind == "single_label":
        actual = np.eye(count)[classes]
    else:
        actual = np.maximum(np.eye(count)[classes], np.eye(count)[random.permutation(classes)])
    logits = 3 * (random.normal(size=actual.shape) + actual * skill - (kind == "multi_label") * 1.5)
    return logits, classes if kind == "single_label" else actual


def before(task: Task, logits: np.ndarray, targets: np.ndarray, level: float) -> np.ndarray:
    """Thresholds (C,) as e791147 fitted them."""
    actual = task.one_hot(targets)
    rows, classes = np.nonzero(actual)
    scores = 1 - apply_temperature(task, logits, fit_temperature(task, logits, targets))[rows, classes]

    def quantile(part: np.ndarray) -> float:
        rank = int(np.ceil((len(part) + 1) * level - 1e-9))
        return np.sort(part)[rank - 1] if rank <= len(part) else np.inf

    by_class = [quantile(part if len(part := scores[classes == c]) >= 20 else scores) for c in range(task.head_size)]
    return np.clip(1 - np.array(by_class), 0, 1)


def now(task: Task, logits: np.ndarray, targets: np.ndarray, level: float) -> np.ndarray:
    return fit_thresholds(task, cross_fitted_scores(task, logits, targets, None), targets, level)


def unequal_classes(kind: str, title: str, level: float, draws: int, random: np.random.Generator) -> str:
    """Return a line of the table: marginal coverage, and that of the classes below 20 examples and of the worst class."""
    sizes = np.array(SIZES[title])
    task, found = named(kind, len(sizes)), {before: [], now: []}
    for _ in range(draws):
        logits, targets = draw(random, np.repeat(np.arange(len(sizes)), sizes), len(sizes), kind)
        fresh, truth = draw(random, random.choice(len(sizes), FRESH, p=sizes / sizes.sum()), len(sizes), kind)
        actual = np.eye(len(sizes))[truth] if kind == "single_label" else truth
        scores = apply_temperature(task, fresh, fit_temperature(task, logits, targets))
        for rule, counts in found.items():
            held = prediction_sets(task, scores, rule(task, logits, targets, level)) * actual
            counts.append((held.sum(0), actual.sum(0)))
    cells = []
    for counts in found.values():
        held, true = np.sum(counts, axis=0)
        small = sizes < 20
        rare = f"{held[small].sum() / true[small].sum():.3f}" if small.any() else "–"
        cells += [f"{held.sum() / true.sum():.3f}", rare, f"{(held / true).min():.3f}"]
    return f"| {kind.replace('_', ' ')} | {title} | {level:.0%} | " + " | ".join(cells) + " |"


def few_examples(count: int, level: float, draws: int, random: np.random.Generator) -> str:
    """Return a line of the table: one part chooses the step (of 8 equally good ones), the temperature and the thresholds."""
    task, found = named("single_label", 3), {"same": [], "temperature": [], "both": [], "apart": []}
    for _ in range(draws):
        classes, truth = random.integers(3, size=count), random.integers(3, size=FRESH)
        steps = [draw(random, classes, 3, "single_label")[0] for _ in range(STEPS)]
        best = steps[int(np.argmin([calibrated_log_loss(task, logits, classes) for logits in steps]))]
        temperature = fit_temperature(task, best, classes) if count >= 30 else 1.0
        scores = apply_temperature(task, draw(random, truth, 3, "single_label")[0], temperature)
        fresh = random.integers(3, size=count)
        sources = {
            "same": (apply_temperature(task, best, temperature), classes),
            "temperature": (cross_fitted_scores(task, best, classes, None), classes),
            "both": (cross_fitted_scores(task, best, classes, None, steps), classes),
            "apart": (apply_temperature(task, draw(random, fresh, 3, "single_label")[0], temperature), fresh),
        }
        for name, (calibration, labels) in sources.items():
            sets = prediction_sets(task, scores, fit_thresholds(task, calibration, labels, level))
            found[name].append(sets[np.arange(FRESH), truth].mean())
    return f"| {count} | {level:.0%} | " + " | ".join(f"{np.mean(each):.3f}" for each in found.values()) + " |"


def intervals_of_values(count: int, level: float, draws: int, random: np.random.Generator) -> str:
    """Return a line of the table: ridge regression on 10 features, half-widths from the residuals of 5 folds."""
    task, coverage, width = named("regression", 1), [], []
    weights = random.normal(size=(10, 1))

    def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.solve(x.T @ x + np.eye(10), x.T @ y)

    for _ in range(draws):
        x, fresh = random.normal(size=(count, 10)), random.normal(size=(FRESH, 10))
        y, truth = (each @ weights + random.standard_t(4, size=(len(each), 1)) for each in (x, fresh))
        fold, said = np.arange(count) % 5, np.empty((count, 1))
        for number in range(5):
            said[fold == number] = x[fold == number] @ fit(x[fold != number], y[fold != number])
        ends = prediction_sets(task, fresh @ fit(x, y), fit_thresholds(task, said, y, level))
        coverage.append(((ends[..., 0] <= truth) & (truth <= ends[..., 1])).mean())
        width.append((ends[..., 1] - ends[..., 0]).mean())
    return f"| {count} | {level:.0%} | {np.mean(coverage):.3f} | {np.std(coverage):.3f} | {np.mean(width):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    draws, random = parser.parse_args().draws, np.random.default_rng(0)
    print("\n| task | calibration examples | level | all, before | small classes, before | worst class, before "
          "| all | small classes | worst class |\n" + "|---" * 9 + "|", flush=True)  # fmt: skip
    for kind in ("single_label", "multi_label"):
        for title in SIZES:
            for level in LEVELS:
                print(unequal_classes(kind, title, level, draws, random), flush=True)
    print("\n| calibration examples | level | all on the same examples | cross-fitted temperature "
          "| cross-fitted step and temperature | thresholds from other examples |\n" + "|---" * 6 + "|")  # fmt: skip
    for count in FEW:
        for level in LEVELS:
            print(few_examples(count, level, draws, random), flush=True)
    print("\n| examples | level | coverage | spread between draws | width |\n" + "|---" * 5 + "|")
    for count in FEW:
        for level in LEVELS:
            print(intervals_of_values(count, level, draws, random), flush=True)


if __name__ == "__main__":
    main()
