"""Which run is better, and can these test rows tell? Paired tests on the same examples, read from run folders alone.

Right and wrong answers are compared by the mid-p McNemar test (Fagerland et al. 2013), everything else, and rows in
groups, by the paired bootstrap; several pairs by Shaffer's method (Shaffer 1986), which is Holm's for pairs. No winner is
named that is not separated at the 5 % level. docs/comparison.md compares it with Holm's method and with Hsu's.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.core.wording import describe, percent
from hftransfer.evaluation import bootstrap
from hftransfer.evaluation.intervals import Draws, Measured, measure
from hftransfer.evaluation.kinds import higher_is_better
from hftransfer.evaluation.masks import statistics_of
from hftransfer.runs.reader import Part, RecordedRun, open_all
from hftransfer.tasks import Task

if TYPE_CHECKING:
    from rich.console import Group

_RIGHT_OR_WRONG = {"accuracy", "subset_accuracy"}
_ALPHA, _POWER = 0.05, 0.8


@dataclass(frozen=True)
class Entry:
    """One run in the comparison."""

    name: str
    strategy: str
    checkpoint: str
    metrics: dict[str, Measured]
    seconds: float
    trainable_share: float
    model_bytes: int


@dataclass(frozen=True)
class Pair:
    """`second` against `first`: a positive `difference` means that the metric of `second` is higher.

    `gained` are the ids that only `second` has right, `lost` those that only `first` has. `rows_needed` is the number
    of test rows that shows a difference of this size with 80 % power; None when it is separated, or exactly zero.
    `p_holm` is `p_value` after the correction for all pairs.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    separated: bool
    rows_needed: int | None
    gained: list[str]
    lost: list[str]

    def seen_from(self, name: str) -> "Pair":
        """Return the same pair with the run `name` in second place."""
        if self.second == name:
            return self
        return replace(
            self, first=self.second, second=self.first, difference=0.0 - self.difference, low=-self.high, high=-self.low,
            gained=self.lost, lost=self.gained,
        )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Runs on the same `rows` test examples, best first by `metric`; `notes` say where the runs saw different data."""

    metric: str
    rows: int
    runs: list[Entry]
    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)

    @property
    def level_with_best(self) -> list[str]:
        """The best run and every run that cannot be told from it."""
        rivals = {pair.first for pair in self.pairs_of_best if not pair.separated}
        return [run.name for run in self.runs if run.name == self.runs[0].name or run.name in rivals]

    @property
    def pairs_of_best(self) -> list[Pair]:
        """The best run against each other one."""
        best = self.runs[0].name
        return [pair.seen_from(best) for pair in self.pairs if best in (pair.first, pair.second)]

    @property
    def verdict(self) -> str:
        level = self.level_with_best
        if len(level) == 1:
            return f"{level[0]} is best: {self.metric} separates it from every other run on {self.rows} test rows."
        needed = [pair.rows_needed for pair in self.pairs_of_best if not pair.separated and pair.rows_needed]
        advice = f" The nearest difference would show with about {min(needed):,} test rows in all." if needed else ""
        return f"No winner: {self.rows} test rows do not separate {' and '.join(level)} by {self.metric}.{advice}"

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self) | {"level_with_best": self.level_with_best, "verdict": self.verdict}


def compare(run_folders: Sequence[str | Path], metric: str | None = None, resamples: int = 2000) -> Comparison:
    """Compare finished runs on their common test rows.

    Rows that a patch took out of one run's test part, or gave another label there, are left out of all, and named.

    Args:
        metric: the one that decides; by default accuracy, micro-F1 or RMSE, as the task has it.

    Raises `UserError` when the runs have different tasks or different test rows, or the metric is not one of the task's.
    """
    runs = open_all(run_folders)
    names = _distinct_names(runs)
    parts, notes = _as_patched(runs, names)
    notes += [_describe_headline(run, name) for run, name in zip(runs, names, strict=True) if run.headline != "test"]
    parts = _aligned(runs, parts)
    task, metric = runs[0].task, metric or runs[0].task.headline
    measured = [measure(task, p.targets, p.scores, p.groups, resamples=resamples) for p in parts]
    if metric not in measured[0]:
        raise UserError(
            f"The metric {metric!r} is not measured for {task.type} tasks.{did_you_mean(metric, measured[0])}"
        )
    entries = [_entry(*triple) for triple in zip(runs, names, measured, strict=True)]
    pairs = _Pairs(task, parts, names, metric, [m[metric].value for m in measured], resamples).all()
    entries.sort(key=lambda entry: entry.metrics[metric].value, reverse=higher_is_better(metric))
    return Comparison(metric, len(parts[0]), entries, pairs, notes)


def _distinct_names(runs: list[RecordedRun]) -> list[str]:
    """Folder names, or whole paths where two folders have the same name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _describe_headline(run: RecordedRun, name: str) -> str:
    """Say which other number a run is told by: only the test rows, which all runs share, are compared here."""
    metric, found = next(iter(run.metrics.parts[run.headline].items()))
    title = run.metrics.describe_part(run.headline)
    value = f"{metric.replace('_', ' ')} {found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})"
    return f"The headline of {name} is {title}: {value}. The test rows are compared here."


def _entry(run: RecordedRun, name: str, metrics: dict[str, Measured]) -> Entry:
    source = str(run.record.checkpoint.source)
    return Entry(name, run.record.strategy, source, metrics, run.seconds, run.trainable_share, run.model_bytes)


def _as_patched(runs: list[RecordedRun], names: list[str]) -> tuple[list[Part], list[str]]:
    """Return the test parts, without rows that the patch of a run took out or relabelled, and a description of the patch."""
    parts, patches = [run.part("test") for run in runs], [run.record.data.patch for run in runs]
    trained = "{} was trained with the patch {}: {}.".format
    notes = [
        trained(name, patch["file"], describe(patch) or "nothing changed")
        for name, patch in zip(names, patches, strict=True)
        if patch
    ]
    if not any(patch and describe(patch, "test") for patch in patches):
        return parts, notes
    for name, part in zip(names[1:], parts[1:], strict=True):
        notes += _differences(names[0], parts[0], name, part)
    labels = [dict(zip(part.ids, map(str, part.frame["label"]), strict=True)) for part in parts]
    shared = [row for row in labels[0] if len({found.get(row) for found in labels}) == 1]
    if not shared:
        raise UserError(f"{' and '.join(names)} have no test row with one label in all: there is nothing to compare.")
    return [part.rows(np.isin(part.ids, shared)) for part in parts], notes


def _differences(first: str, part: Part, second: str, other: Part) -> list[str]:
    """Return what two test parts do not share, in words."""
    labels = dict(zip(part.ids, map(str, part.frame["label"]), strict=True))
    relabelled = [
        row
        for row, label in zip(other.ids, map(str, other.frame["label"]), strict=True)
        if labels.get(row, label) != label
    ]
    alone = set(part.ids) ^ set(other.ids)
    notes = [(relabelled, f"test rows have another label in {second} than in {first}"),
             (sorted(alone), f"test rows are in {first} or in {second} only")]  # fmt: skip
    return [f"{len(rows)} {what}, such as {rows[0]!r}: left out." for rows, what in notes if rows]


def _aligned(runs: list[RecordedRun], parts: list[Part]) -> list[Part]:
    """Return the test parts, all in the order of the first run's. Raises `UserError` when rows or labels differ."""
    order, labels = parts[0].ids, dict(zip(parts[0].ids, parts[0].frame["label"], strict=True))
    aligned = []
    for run, part in zip(runs, parts, strict=True):
        if set(part.ids) != set(order):
            raise UserError(
                f"Runs can be compared only on the same test rows: {runs[0].folder} has {len(order)}, {run.folder} has "
                f"{len(part)}, and {len(set(order) & set(part.ids))} are in both. "
                f"Train again with data.split.file={runs[0].folder / 'splits.parquet'}."
            )
        changed = [row for row, label in zip(part.ids, part.frame["label"], strict=True) if labels[row] != label]
        if changed:
            raise UserError(
                f"{len(changed)} test rows have another label in {run.folder} than in {runs[0].folder}, "
                f"such as {changed[0]!r}: the runs saw different data."
            )
        place = {row: i for i, row in enumerate(part.ids)}
        rows = np.array([place[row] for row in order])
        aligned.append(part.rows(rows))
    return aligned


def compare_parts(
    task: Task, parts: Sequence[Part], names: Sequence[str], metric: str, resamples: int = 2000
) -> list[Pair]:
    """Every pair of several answers to the same rows, which stand in the same order in all `parts`."""
    values = [value_of(task, part, metric) for part in parts]
    return _Pairs(task, list(parts), list(names), metric, values, resamples).all()


def value_of(task: Task, part: Part, metric: str) -> float:
    """One metric of some answers, many times as fast as all of them by scikit-learn."""
    every_row_once = np.ones((1, len(part)), dtype=np.float32)
    return float(bootstrap.statistics(task, part.targets, part.scores)(every_row_once)[metric][0])


def paired_shares(gained: int, lost: int, rows: int) -> tuple[float, float]:
    """Middle and standard error of a difference of two shares of the same rows, `gained` by one and `lost` by it.

    Half a row is added to each cell of the 2 x 2 table (Agresti & Min 2005, sec. 2), so that few rows keep their coverage.
    """
    error = np.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (rows + 2)) / (rows + 2)
    return (gained - lost) / (rows + 2), float(error)


def mid_p(gained: int, lost: int) -> float:
    """Return the two-sided mid-p value of McNemar's test from the two counts of disagreement.

    The exact test counts the observed table whole and rejects far less often than its level says; half of it is counted
    here (Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13:91).
    """
    count, fewer = gained + lost, min(gained, lost)
    if gained == lost:
        return 1.0
    return float(2 * stats.binom.cdf(fewer, count, 0.5) - stats.binom.pmf(fewer, count, 0.5))


class _Pairs:
    """All pairs of runs, tested on one metric."""

    def __init__(self, task, parts: list[Part], names: list[str], metric: str, values: list[float], resamples: int):
        self.task, self.parts, self.names, self.metric, self.values = task, parts, names, metric, values
        self.targets = parts[0].targets
        self.right = [self._right(part) for part in parts]
        # Class frequencies are a sample too: docs/comparison.md.
        self.draws = Draws(len(self.targets), parts[0].groups, resamples=resamples)
        self.index = list(combinations(range(len(parts)), 2))

    def _right(self, part: Part) -> np.ndarray:
        """Which rows are answered exactly right; for regression none can be."""
        if not self.task.has_classes:
            return np.zeros(len(part), dtype=bool)
        if self.task.by_pixel:
            counts = statistics_of(self.targets, part.scores, len(self.task.names))
            return counts.hit.sum(1) == counts.present.sum(1)
        if self.task.by_word:
            decided = self.task.decide(part.scores)
            return np.array([np.array_equal(*each) for each in zip(decided, part.targets, strict=True)])
        return (self.task.decide(part.scores) == part.targets).reshape(len(part), -1).all(1)

    @cached_property
    def resampled(self) -> list[np.ndarray]:
        """The metric of every run in every resample; McNemar's test needs none."""
        made = [bootstrap.statistics(self.task, part.targets, part.scores) for part in self.parts]
        return [self.draws.resample(statistics)[self.metric] for statistics in made]

    def all(self) -> list[Pair]:
        tests = [self._test(i, j) for i, j in self.index]
        adjusted = adjust_pairs([p_value for *_, p_value in tests], len(self.parts))
        return [self._pair(*pair, *test, p) for pair, test, p in zip(self.index, tests, adjusted, strict=True)]

    def _test(self, i: int, j: int) -> tuple[float, float, float, float]:
        """Difference, its standard error, the middle of its interval, and the p-value."""
        if self.metric in _RIGHT_OR_WRONG and not self.draws.grouped:
            return self._mcnemar(
                int((self.right[j] & ~self.right[i]).sum()), int((self.right[i] & ~self.right[j]).sum())
            )
        difference = self.values[j] - self.values[i]
        error = float(np.nanstd(self.resampled[j] - self.resampled[i]))
        p_value = 2 * stats.t.sf(abs(difference) / error, max(1, self.draws.count - 1)) if error > 0 else 1.0
        return difference, error, difference, float(p_value)

    def _mcnemar(self, gained: int, lost: int) -> tuple[float, float, float, float]:
        """Return the mid-p test (Fagerland et al. 2013, sec. 2.3), and the interval of `paired_shares`."""
        p_value = mid_p(gained, lost)
        middle, error = paired_shares(gained, lost, len(self.targets))
        return (gained - lost) / len(self.targets), error, middle, p_value

    def _pair(self, i: int, j: int, difference: float, error: float, middle: float, p: float, p_holm: float) -> Pair:
        reach = stats.t.ppf(1 - _ALPHA / 2, max(1, self.draws.count - 1)) * error
        ids = np.array(self.parts[0].ids)
        separated = p_holm < _ALPHA
        return Pair(
            self.names[i], self.names[j], difference, middle - reach, middle + reach, p, p_holm, separated,
            None if separated else self._rows_needed(difference, error),
            ids[self.right[j] & ~self.right[i]].tolist(), ids[self.right[i] & ~self.right[j]].tolist(),
        )  # fmt: skip

    def _rows_needed(self, difference: float, error: float) -> int | None:
        """Rows that show the observed difference with 80 % power at the level each pair has (Connor 1987, eq. 2).

        The error under "no difference" is wider than the observed one by the square of the difference.
        """
        if difference == 0 or error == 0:
            return None
        rows = len(self.targets)
        null = np.sqrt(error**2 * rows + difference**2)
        level, power = stats.norm.ppf(1 - _ALPHA / len(self.index) / 2), stats.norm.ppf(_POWER)
        needed = ((level * null + power * error * np.sqrt(rows)) / difference) ** 2
        return max(rows + 1, int(np.ceil(needed)))


def adjust_pairs(p_values: Sequence[float], runs: int) -> list[float]:
    """Adjust the p-values of all pairs of `runs` runs, so that one false difference in all is rarer than the level.

    Holm's method multiplies the smallest by the number of pairs, the next by one less. Not every number of pairs can be
    equal at once: if one of three runs differs, only one pair is left. The factor is the largest possible number
    (Shaffer 1986, "Modified sequentially rejective multiple test procedures", procedure S1).
    """
    order, possible = np.argsort(p_values), equal_pairs(runs)
    factors = [max(count for count in possible if count <= left) for left in range(len(order), 0, -1)]
    result = np.empty(len(order))
    result[order] = np.minimum(np.maximum.accumulate(np.array(p_values)[order] * factors), 1)
    return result.tolist()


@cache
def equal_pairs(runs: int) -> frozenset[int]:
    """Return how many pairs can be equal when `runs` runs fall into sets of equal ones: {0, 1, 3} of three."""
    if runs < 2:
        return frozenset({0})
    return frozenset(size * (size - 1) // 2 + rest for size in range(1, runs + 1) for rest in equal_pairs(runs - size))


def as_table(comparison: Comparison) -> "Group":
    """Return the comparison for a terminal: runs, the pairs with the best run, and the verdict."""
    from rich.console import Group
    from rich.text import Text

    changes = [Text(_changes(pair)) for pair in comparison.pairs_of_best if pair.gained or pair.lost]
    notes = [Text(note, "yellow") for note in comparison.notes]
    return Group(_run_table(comparison), _pair_table(comparison), *changes, *notes, Text(comparison.verdict, "bold"))


def _run_table(comparison: Comparison):
    from rich.table import Table

    table = Table(title=f"{comparison.rows} test rows, 95 % intervals", title_justify="left")
    others = [name for name in ("log_loss", "r2") if name in comparison.runs[0].metrics and name != comparison.metric]
    for column in ("run, strategy", comparison.metric, *others, "seconds", "trained", "size"):
        first, interval = column.startswith("run"), column in (comparison.metric, *others)  # these two may break
        side, least = ("left", 12) if first else ("right", None)
        table.add_column(column, justify=side, no_wrap=not (first or interval), min_width=least, overflow="fold")
    for run in comparison.runs:
        shown = [_span(run.metrics[name]) if name in run.metrics else "" for name in (comparison.metric, *others)]
        size, share = f"{run.model_bytes / 1e6:,.1f} MB", percent(run.trainable_share)
        table.add_row(f"{run.name}, {run.strategy}", *shown, f"{run.seconds:,.1f}", share, size)
    return table


def _pair_table(comparison: Comparison):
    from rich.table import Table

    title = f"{comparison.metric} of {comparison.runs[0].name} less that of each other run"
    table = Table(title=title, title_justify="left")
    for column in ("against", "difference", "95 % interval", "p (adjusted)", "separated", "rows needed"):
        table.add_column(column, justify="left" if column == "against" else "right", overflow="fold")
    for pair in comparison.pairs_of_best:
        needed = f"{pair.rows_needed:,}" if pair.rows_needed else ""
        interval, answer = f"{pair.low:+.4f} … {pair.high:+.4f}", "yes" if pair.separated else "no"
        table.add_row(pair.first, f"{pair.difference:+.4f}", interval, f"{pair.p_holm:.3g}", answer, needed)
    return table


def _changes(pair: Pair, shown: int = 5) -> str:
    def side(name: str, ids: list[str]) -> str:
        examples = f" ({', '.join(ids[:shown])}{', …' if len(ids) > shown else ''})" if ids else ""
        return f"Right in {name} only: {len(ids)}{examples}."

    return f"{side(pair.second, pair.gained)} {side(pair.first, pair.lost)}"


def _span(found: Measured) -> str:
    known = np.isfinite(found.low)
    return (
        f"{found.value:.3f} ({found.low:.3f}–{found.high:.3f})" if known else f"{found.value:.3f} (interval not known)"
    )
