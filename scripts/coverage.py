"""Measure how often the 95 % intervals of `metrics.json` cover the truth, and write the table of docs/coverage.md.

    python scripts/coverage.py --out docs/coverage.md          # about an hour on one core
    python scripts/coverage.py --quick                         # a few cells, two minutes

Each cell is a kind of test set: number of examples, classes, the size of the smallest class, groups. For each of
`--populations` random populations (difficulty, classes of unequal difficulty, noise) the truth of every metric comes from
a sample of 20,000 to 100,000 examples with the class frequencies of the cell; then test sets are drawn and measured. Reported
is the share of intervals that cover the truth, and the share of test sets for which the interval is not known.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from hftransfer.evaluation.calibration import brier
from hftransfer.evaluation.intervals import measure, per_class
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.tasks import Regression, make_task

RESAMPLES = 300
SINGLE = {
    "20 examples, 2 x 10": [10, 10],
    "20 examples, 15 + 5": [15, 5],
    "20 examples, 18 + 2": [18, 2],
    "50 examples, 5 x 10": [10] * 5,
    "100 examples, 97 + 3": [97, 3],
    "100 examples, 95 + 5": [95, 5],
    "100 examples, 90 + 10": [90, 10],
    "100 examples, 10 x 10": [10] * 10,
    "100 examples, 4 unequal": [60, 25, 10, 5],
    "200 examples, 190 + 10": [190, 10],
    "200 examples, 50 x 4": [4] * 50,
    "200 examples, 180 + 20": [180, 20],
    "500 examples, 50 x 10": [10] * 50,
    "500 examples, 10 unequal": [150, 100, 80, 60, 40, 30, 20, 10, 5, 5],
    "2,000 examples, 2 x 1,000": [1000, 1000],
    "2,000 examples, 1,990 + 10": [1990, 10],
    "2,000 examples, 50 x 40": [40] * 50,
}
GROUPED = {"200 examples, 2 x 100": [100, 100], "300 examples, 3 unequal": [200, 70, 30]}
GROUPS = (2, 3, 5, 10, 30)
OTHERS = (20, 50, 100, 200, 500, 2000)
QUICK = ("20 examples, 2 x 10", "100 examples, 95 + 5")


class Tally:
    """How often the intervals of each metric cover, and how often they are not known."""

    def __init__(self):
        self.covered, self.known, self.asked = defaultdict(int), defaultdict(int), defaultdict(int)

    def add(self, name, found, truth):
        self.asked[name] += 1
        if found is None or not np.isfinite(truth) or not np.isfinite(found.low):
            return
        self.known[name] += 1
        self.covered[name] += found.low - 1e-9 <= truth <= found.high + 1e-9

    def cell(self, name):
        if self.known[name] < 0.05 * self.asked[name] or not self.asked[name]:
            return "not known"
        share = f"{100 * self.covered[name] / self.known[name]:.1f}"
        known = self.known[name] / self.asked[name]
        return share if known > 0.995 else f"{share} (known {known:.0%})"


class Classes:
    """A population of classes: Gaussian logits whose true entry stands out by a class's own skill."""

    def __init__(self, random, count, multi=False):
        self.skill = random.uniform(0.5, 5.0) + 0.7 * random.normal(size=count)
        self.shift = 0.5 * random.normal(size=count)
        self.heat, self.multi = np.exp(0.3 * random.normal()), multi
        self.task = make_task(
            "multi_label" if multi else "single_label", tuple(f"c{number}" for number in range(count))
        )

    def draw(self, random, sizes, group_effects=None):
        """Targets and probabilities of a set with these class sizes; `group_effects` (N,) shift the skill of each row."""
        targets = np.repeat(np.arange(len(sizes)), sizes)
        logits = random.normal(size=(len(targets), len(sizes))) + self.shift
        effect = 0.0 if group_effects is None else group_effects
        logits[np.arange(len(targets)), targets] += self.skill[targets] + effect
        return targets, self.task.probabilities(self.heat * logits)

    def draw_labels(self, random, rows, shares):
        targets = (random.random((rows, len(shares))) < shares).astype(np.float32)
        logits = 1.2 * random.normal(size=targets.shape) + self.skill * (targets - 0.5)
        return targets, self.task.probabilities(self.heat * logits)


def proportional(sizes, rows):
    """The same class frequencies at about `rows` examples."""
    return np.maximum(1, np.round(np.array(sizes) * rows / sum(sizes))).astype(int)


def single_label(sizes, asked, random):
    tally = Tally()
    for _ in range(asked.populations):
        population = Classes(random, len(sizes))
        targets, scores = population.draw(random, proportional(sizes, 20_000))
        truth = compute_metrics(population.task, targets, scores)
        recalls = [float((scores[targets == c].argmax(1) == c).mean()) for c in range(len(sizes))]
        quadratic = float(((scores - np.eye(len(sizes))[targets]) ** 2).sum(1).mean())
        for _ in range(asked.sets):
            sample = population.draw(random, sizes)
            for name, found in measure(population.task, *sample, None, resamples=RESAMPLES).items():
                tally.add(name, found, truth[name])
            tally.add("brier", brier(population.task, *sample, None), quadratic)
            for recall, entry in zip(recalls, per_class(population.task, *sample, None, resamples=100), strict=True):
                tally.add("recall", entry["recall"], recall)
    return tally


def grouped(sizes, groups, asked, random):
    """Whole groups are drawn: each has a skill of its own and a random share of every class."""
    tally = Tally()
    for _ in range(asked.populations):
        population, spread = Classes(random, len(sizes)), random.uniform(0.3, 1.2)
        large = proportional(sizes, 40_000)
        targets, scores = population.draw(random, large, spread * random.normal(size=large.sum()))
        truth = compute_metrics(population.task, targets, scores)
        for _ in range(asked.sets):
            member = random.integers(groups, size=sum(sizes))
            effects = spread * random.normal(size=groups)
            sample = population.draw(random, sizes, effects[member])
            names = [f"g{number}" for number in member]
            for name, found in measure(population.task, *sample, names, resamples=RESAMPLES).items():
                tally.add(name, found, truth[name])
    return tally


def multi_label(rows, asked, random, labels=6):
    tally = Tally()
    for _ in range(asked.populations):
        population = Classes(random, labels, multi=True)
        shares = random.uniform(0.05, 0.4, size=labels)
        truth = compute_metrics(population.task, *population.draw_labels(random, 50_000, shares))
        for _ in range(asked.sets):
            sample = population.draw_labels(random, rows, shares)
            for name, found in measure(population.task, *sample, None, resamples=RESAMPLES).items():
                tally.add(name, found, truth[name])
    return tally


def regression(rows, asked, random):
    tally, task = Tally(), Regression(("y",))

    def draw(count, noise, slope):
        truth = random.normal(size=(count, 1))
        return truth, slope * truth + noise * random.standard_t(5, size=(count, 1))

    for _ in range(asked.populations):
        noise, slope = random.uniform(0.2, 1.5), random.uniform(0.5, 1.1)
        truth = compute_metrics(task, *draw(100_000, noise, slope))
        for _ in range(asked.sets):
            for name, found in measure(task, *draw(rows, noise, slope), None, resamples=RESAMPLES).items():
                tally.add(name, found, truth[name])
    return tally


def table(title, cells):
    """Markdown of name -> tally."""
    names = list(dict.fromkeys(name for tally in cells.values() for name in tally.asked))
    lines = [f"### {title}", "", f"| test set | {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines += ["|---|" + "---:|" * len(names)]
    lines += [f"| {cell} | {' | '.join(tally.cell(name) for name in names)} |" for cell, tally in cells.items()]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", type=int, default=60, help="random populations of each cell")
    parser.add_argument("--sets", type=int, default=10, help="test sets drawn from each population")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="two cells of single labels and the smallest of the others"
    )
    parser.add_argument("--out", type=Path, help="write the tables into this file, between the marks")
    asked = parser.parse_args()
    random = np.random.default_rng(asked.seed)
    few = {name: SINGLE[name] for name in QUICK} if asked.quick else SINGLE
    others = OTHERS[:1] if asked.quick else OTHERS
    parts = [table("Single label", {name: single_label(sizes, asked, random) for name, sizes in few.items()})]
    if not asked.quick:
        cells = {
            f"{name}, {groups} groups": grouped(sizes, groups, asked, random)
            for name, sizes in GROUPED.items()
            for groups in GROUPS
        }
        parts.append(table("Single label, in groups", cells))
    parts.append(
        table("Six labels per example", {f"{rows:,} examples": multi_label(rows, asked, random) for rows in others})
    )
    parts.append(table("Regression", {f"{rows:,} examples": regression(rows, asked, random) for rows in others}))
    text = "\n".join(parts)
    print(text)
    if asked.out:
        before, _, rest = asked.out.read_text(encoding="utf-8").partition("<!-- coverage -->")
        _, _, after = rest.partition("<!-- end -->")
        asked.out.write_text(f"{before}<!-- coverage -->\n\n{text}\n<!-- end -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
