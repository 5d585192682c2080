"""Measure how often the 95 % intervals of `metrics.json` cover the truth, and write the tables of docs/coverage.md.

    python scripts/coverage.py --save now.json                          # all cells; cells in the file are not run again
    python scripts/coverage.py --save now.json --only regression: 18     # the cells whose "title: name" holds one of the words
    python scripts/coverage.py --save now.json --before before.json --out docs/coverage.md

Each cell is a kind of test set: number of examples, classes, the size of the smallest class, groups. For each of
`--populations` random populations (difficulty, classes of unequal difficulty, noise) the truth of every metric comes from
a sample of 20,000 to 100,000 examples with the class frequencies of the cell; then test sets are drawn and measured. Reported
is the share of intervals that cover the truth with its standard error, and how often an interval is known.
The calibration error of a population is that of its sample in as many bins as the test set has.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np

from hftransfer.evaluation import calibration
from hftransfer.evaluation.calibration import brier, expected_calibration_error
from hftransfer.evaluation.intervals import measure, per_class
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.tasks import Regression, Task, make_task

RESAMPLES = 300
# Metrics whose interval takes no resampling; the latter where there are no groups.
DIRECT = {"accuracy", "subset_accuracy", "micro_f1", "log_loss", "brier", "ece", "mae", "rmse"}
DIRECT_ALONE = DIRECT | {"balanced_accuracy", "macro_f1", "mcc", "auroc", "mean_average_precision"}
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
RARE = (2, 3, 5, 10)  # groups that hold the rare class
LABELS = {"20 examples, 6 labels": (20, 6, 0.05, 0.4), "50 examples, 6 labels": (50, 6, 0.05, 0.4),
          "100 examples, 6 labels": (100, 6, 0.05, 0.4), "200 examples, 6 labels": (200, 6, 0.05, 0.4),
          "500 examples, 6 labels": (500, 6, 0.05, 0.4), "2,000 examples, 6 labels": (2000, 6, 0.05, 0.4),
          "100 examples, 20 labels of 10": (100, 20, 0.1, 0.1), "200 examples, 20 labels of 20": (200, 20, 0.1, 0.1),
          "50 examples, 1 label of 5": (50, 1, 0.1, 0.1), "100 examples, 1 label of 5": (100, 1, 0.05, 0.05),
          "100 examples, 1 label of 10": (100, 1, 0.1, 0.1), "200 examples, 1 label of 40": (200, 1, 0.2, 0.2)}  # fmt: skip
OTHERS = (20, 50, 100, 200, 500, 2000)


@dataclass
class Count:
    """Intervals of one metric: asked for, known, with the truth inside, and without a width."""

    asked: int = 0
    known: int = 0
    covered: int = 0
    flat: int = 0
    by_population: dict[int, list[int]] = field(default_factory=dict)  # known and covered

    def add(self, found, truth, population):
        self.asked += 1
        if found is None or not np.isfinite(truth) or not np.isfinite(found.low):
            return
        inside = int(found.low - 1e-9 <= truth <= found.high + 1e-9)
        self.known += 1
        self.covered += inside
        self.flat += int(found.high - found.low <= 1e-6 * abs(found.value))
        own = self.by_population.setdefault(population, [0, 0])
        own[0] += 1
        own[1] += inside

    def error(self) -> float:
        """Return the standard error of the share: between populations, and at least that of independent intervals.

        The latter has two covered and two missed intervals added (Agresti and Coull 1998), so that 100 % has an error too.
        """
        added = (self.covered + 2) / (self.known + 4)
        least = added * (1 - added) / (self.known + 4)
        known, covered = np.array(list(self.by_population.values())).T
        away = covered - self.covered / self.known * known
        between = (away**2).sum() / self.known**2 * len(known) / max(len(known) - 1, 1)
        return float(np.sqrt(max(least, between)))

    def saved(self) -> dict:
        """Return what the table needs; no share where fewer than one in twenty is known."""
        found = {"asked": self.asked, "known": self.known}
        if self.known < 0.05 * self.asked or not self.asked:
            return found
        return found | {"share": self.covered / self.known, "error": self.error(), "flat": self.flat}


class Tally(defaultdict):
    """How often the intervals of each metric cover, and how often they are not known."""

    def __init__(self, metrics):
        super().__init__(Count)
        self.metrics, self.population, self.number = metrics, None, 0

    def wants(self, name):
        return not self.metrics or name in self.metrics

    def add(self, name, found, truth):
        if self.wants(name):
            self[name].add(found, truth, self.number)

    def add_all(self, population, truth, sample, groups):
        """Count every interval that `metrics.json` has for a test set, those of calibration and of classes too."""
        if population is not self.population:
            self.population, self.number = population, self.number + 1
        task, values, classes = population.task, *truth
        alone = DIRECT_ALONE if task.exclusive else DIRECT | {"mean_average_precision"}
        direct = alone if groups is None else DIRECT
        resampled = not self.metrics or not direct.issuperset(self.metrics)
        for name, found in measure(task, *sample, groups, resamples=RESAMPLES if resampled else 2).items():
            self.add(name, found, values[name])
        if not task.has_classes:
            return
        for name, measured in (("brier", brier), ("ece", expected_calibration_error)):
            if self.wants(name):
                self.add(name, measured(task, *sample, groups), values[name])
        if self.metrics:
            return
        for number, entry in enumerate(per_class(task, *sample, groups, resamples=100)):
            for name in ("precision", "recall", "f1"):
                self.add(f"class {name}", entry[name], classes[name][number])


class Classes:
    """A population of classes: Gaussian logits whose true entry stands out by a class's own skill."""

    def __init__(self, random, count, multi=False):
        self.skill = random.uniform(0.5, 5.0) + 0.7 * random.normal(size=count)
        self.shift = 0.5 * random.normal(size=count)
        self.heat, self.multi = np.exp(0.3 * random.normal()), multi
        self.task = make_task(
            "multi_label" if multi else "single_label", tuple(f"c{number}" for number in range(count))
        )

    def draw(self, random, sizes, group_effects=0.0):
        """Targets and probabilities of a set with these class sizes; `group_effects` (N,) shift the skill of each row."""
        targets = np.repeat(np.arange(len(sizes)), sizes)
        logits = random.normal(size=(len(targets), len(sizes))) + self.shift
        logits[np.arange(len(targets)), targets] += self.skill[targets] + group_effects
        return targets, self.task.probabilities(self.heat * logits)

    def draw_labels(self, random, rows, shares, group_effects=0.0):
        """Targets and probabilities of labels; `group_effects` (N, 1) shift the skill of each row."""
        targets = (random.random((rows, len(shares))) < shares).astype(np.float32)
        logits = 1.2 * random.normal(size=targets.shape) + (self.skill + group_effects) * (targets - 0.5)
        return targets, self.task.probabilities(self.heat * logits)

    def truth(self, targets, scores, rows):
        """Return the metrics of a large sample, and those of each class, as a test set of `rows` examples estimates them."""
        actual = np.eye(self.task.head_size)[targets] if targets.ndim == 1 else targets
        said = self.task.decide(scores)
        said = np.eye(self.task.head_size)[said] if targets.ndim == 1 else said
        hit, true, guessed = (actual * said).sum(0), actual.sum(0), said.sum(0)
        square = ((scores - actual) ** 2).sum(1).mean() / (1 if targets.ndim == 1 else self.task.head_size)
        values = compute_metrics(self.task, targets, scores)
        with np.errstate(invalid="ignore"):
            classes = {"precision": hit / guessed, "recall": hit / true, "f1": 2 * hit / (true + guessed)}
        return values | {"brier": square, "ece": self.calibration_error(targets, scores, rows)}, classes

    def calibration_error(self, targets, scores, rows):
        """Return the mean distance of confidence and frequency in as many bins of equal size as a set of `rows` examples has."""
        statements = rows * (self.task.head_size if self.multi else 1)
        count = int(np.clip(statements // calibration._ROWS_PER_BIN, 1, calibration._MOST_BINS))
        confidence = scores.ravel() if self.multi else scores.max(1)
        outcome = targets.ravel() if self.multi else self.task.decide(scores) == targets
        gaps = np.array_split((confidence - outcome)[np.argsort(confidence, kind="stable")], count)
        return sum(abs(gap.sum()) for gap in gaps) / len(confidence)


def proportional(sizes, rows):
    """Return the same class frequencies at about `rows` examples."""
    return np.maximum(1, np.round(np.array(sizes) * rows / sum(sizes))).astype(int)


def single_label(sizes, asked, random):
    tally = Tally(asked.metrics)
    for _ in range(asked.populations):
        population = Classes(random, len(sizes))
        truth = population.truth(*population.draw(random, proportional(sizes, 40_000)), sum(sizes))
        for _ in range(asked.sets):
            tally.add_all(population, truth, population.draw(random, sizes), None)
    return tally


def grouped(sizes, groups, asked, random, rare=None):
    """Whole groups are drawn: each has a skill of its own and a random share of every class.

    The last class lies in `rare` groups only, where it is given.
    """
    tally = Tally(asked.metrics)
    for _ in range(asked.populations):
        population, spread = Classes(random, len(sizes)), random.uniform(0.3, 1.2)
        large = proportional(sizes, 40_000)
        truth = population.truth(*population.draw(random, large, spread * random.normal(size=large.sum())), sum(sizes))
        for _ in range(asked.sets):
            member = random.integers(groups, size=sum(sizes))
            if rare:
                member[-sizes[-1] :] = random.integers(rare, size=sizes[-1])
            effects = spread * random.normal(size=groups)
            sample = population.draw(random, sizes, effects[member])
            tally.add_all(population, truth, sample, [f"g{number}" for number in member])
    return tally


def multi_label(cell, asked, random, groups=0):
    rows, labels, fewest, most = cell
    tally = Tally(asked.metrics)
    for _ in range(asked.populations):
        population, spread = Classes(random, labels, multi=True), random.uniform(0.3, 1.2) if groups else 0.0
        shares = random.uniform(fewest, most, size=labels)
        large = population.draw_labels(random, 50_000, shares, spread * random.normal(size=(50_000, 1)))
        truth = population.truth(*large, rows)
        for _ in range(asked.sets):
            member = random.integers(max(groups, 1), size=rows)
            effects = spread * random.normal(size=(max(groups, 1), 1))[member]
            names = [f"g{number}" for number in member] if groups else None
            tally.add_all(population, truth, population.draw_labels(random, rows, shares, effects), names)
    return tally


@dataclass
class Values:
    """A population of numbers: predictions with heavy-tailed noise, Student's t of 5 degrees of freedom."""

    noise: float
    slope: float
    task: Task = Regression(("y",))

    def draw(self, random, rows, offsets=0.0):
        target = random.normal(size=(rows, 1))
        return target, self.slope * target + self.noise * random.standard_t(5, size=(rows, 1)) + offsets


def regression(rows, asked, random, groups=0):
    """With groups, each has an offset of its own."""
    tally = Tally(asked.metrics)
    for _ in range(asked.populations):
        population = Values(random.uniform(0.2, 1.5), random.uniform(0.5, 1.1))
        spread = random.uniform(0.3, 1.2) * population.noise if groups else 0.0
        large = population.draw(random, 100_000, spread * random.normal(size=(100_000, 1)))
        truth = compute_metrics(population.task, *large), None
        for _ in range(asked.sets):
            member = random.integers(max(groups, 1), size=rows)
            sample = population.draw(random, rows, spread * random.normal(size=(max(groups, 1), 1))[member])
            tally.add_all(population, truth, sample, [f"g{number}" for number in member] if groups else None)
    return tally


CELLS = {
    "Single label": {name: partial(single_label, sizes) for name, sizes in SINGLE.items()},
    "Single label, in groups": {
        f"{name}, {groups} groups": partial(grouped, sizes, groups)
        for name, sizes in GROUPED.items()
        for groups in GROUPS
    },
    "A rare class in few groups": {
        f"200 examples, 160 + 40, 20 groups, {rare} with the rare class": partial(grouped, [160, 40], 20, rare=rare)
        for rare in RARE
    },
    "Several labels": {name: partial(multi_label, cell) for name, cell in LABELS.items()},
    "Several labels, in groups": {
        f"300 examples, 6 labels, {groups} groups": partial(multi_label, (300, 6, 0.05, 0.4), groups=groups)
        for groups in GROUPS
    },
    "Regression": {f"{rows:,} examples": partial(regression, rows) for rows in OTHERS},
    "Regression, in groups": {
        f"300 examples, {groups} groups": partial(regression, 300, groups=groups) for groups in GROUPS
    },
}


def run(asked, cells):
    """Add the cells that are asked for and not there, {title: {cell: {metric: coverage}}}, and save after each."""
    for title, row in CELLS.items():
        for name, measured in row.items():
            wanted = any(words in f"{title}: {name}".lower() for words in asked.only)
            there = cells.setdefault(title, {}).setdefault(name, {})
            if not wanted or any(metric in there for metric in asked.metrics or there):
                continue
            tally = measured(asked, np.random.default_rng([asked.seed, crc32(f"{title} {name}".encode())]))
            there |= {metric: count.saved() for metric, count in tally.items()}
            print(title, name, {metric: shown(there[metric]) for metric in tally}, flush=True)
            if asked.save:
                asked.save.write_text(json.dumps(cells, indent=1), encoding="utf-8")


def shown(found, usual=None):
    """Return the text of a cell: the share in percent with its standard error, and how often the interval is known.

    The number of intervals asked for stands there where it is not the `usual` one of the row.
    """
    asked = f" of {found['asked']:,}" if usual and found["asked"] != usual else ""
    if "share" not in found:
        return f"not known{asked}"
    known = found["known"] / found["asked"]
    flat = f", {found['flat']} without width" if found["flat"] else ""
    rarely = "" if known > 0.995 else f" (known {known:.0%})"
    return f"{100 * found['share']:.1f} ± {100 * found['error']:.1f}{asked}{rarely}{flat}"


def table(title, cells, before):
    """Markdown of {cell: {metric: found}}; with `before`, the coverage then (its share alone) and now."""
    names = list(dict.fromkeys(name for row in cells.values() for name in row))
    lines = [f"### {title}", "", f"| test set | sets | {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines += ["|---|---:|" + "---:|" * len(names)]
    for cell, row in cells.items():
        past, asked = before.get(cell, {}), [found["asked"] for name, found in row.items() if not of_class(name)]
        usual = max(set(asked), key=asked.count)
        then = [f"{100 * past[name]['share']:.1f} → " if "share" in past.get(name, {}) else "" for name in names]
        now = [shown(row[name], None if of_class(name) else usual) if name in row else "" for name in names]
        lines.append(f"| {cell} | {usual} | {' | '.join(map(''.join, zip(then, now, strict=True)))} |")
    return "\n".join(lines) + "\n"


def of_class(name):
    """Return whether a metric is counted once per class and test set."""
    return name.startswith("class ")


def summary(cells, before):
    """Markdown of the mean coverage of each metric over the cells where it is known, and the lowest and highest cell."""
    lines = [
        "### Over all cells",
        "",
        "| table | metric | before: mean, lowest | now: mean, lowest, highest | cells known |",
        "|---|---|---|---|---:|",
    ]
    for title, rows in cells.items():
        for name in dict.fromkeys(name for row in rows.values() for name in row):
            then, now = (known_shares(found.get(title, {}), name) for found in (before, cells))
            past = f"{np.mean(then):.1f}, {min(then):.1f}" if then else ""
            present = f"{np.mean(now):.1f}, {min(now):.1f}, {max(now):.1f}" if now else "not known"
            lines.append(f"| {title} | {name.replace('_', ' ')} | {past} | {present} | {len(now)} of {len(rows)} |")
    return "\n".join(lines) + "\n"


def known_shares(rows, name):
    """Return the shares of a metric in percent, of the cells where it is known."""
    return [100 * row[name]["share"] for row in rows.values() if "share" in row.get(name, {})]


def read(path):
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", type=int, default=60, help="random populations of each cell")
    parser.add_argument("--sets", type=int, default=10, help="test sets drawn from each population")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="words in `title: name` of the cells to measure")
    parser.add_argument(
        "--metrics", nargs="+", default=[], help="count these alone, such as rmse (not those of classes)"
    )
    parser.add_argument("--save", type=Path, help="keep the cells in this file; those already there are not run again")
    parser.add_argument("--before", type=Path, help="cells of another version, shown beside these")
    parser.add_argument("--out", type=Path, help="write the tables into this file, between the marks")
    asked = parser.parse_args()
    cells, before = read(asked.save), read(asked.before)
    run(asked, cells)
    cells = {title: {name: row for name, row in cells[title].items() if row} for title in CELLS if title in cells}
    text = "\n".join(
        [summary(cells, before), *(table(title, rows, before.get(title, {})) for title, rows in cells.items())]
    )
    print(text)
    if asked.out:
        start, _, rest = asked.out.read_text(encoding="utf-8").partition("<!-- coverage -->")
        _, _, after = rest.partition("<!-- end -->")
        asked.out.write_text(f"{start}<!-- coverage -->\n\n{text}\n<!-- end -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
