"""What more labels are worth: the learning curves of a data set, read off beyond its rows, in words."""

from dataclasses import asdict, dataclass

import numpy as np
from tqdm.auto import tqdm

from hftransfer.evaluation.intervals import Measured
from hftransfer.planning.labels.curve import REACH, Problem, Scorer, measure_class, measure_curve
from hftransfer.planning.labels.power_law import PowerLaws
from hftransfer.probe.solver import LinearProbe

SHARES = (0.25, 0.5, 1.0)  # of the rows at hand: how many more are asked about where nothing is said
FEWEST = 8  # examples of a class below which nothing is said of it
NOTHING, CLASS_NOTHING = 0.005, 0.001  # half a point; of a mean over classes, a tenth


@dataclass(frozen=True)
class Point:
    """The measured mean at a size, and the law there with its interval."""

    rows: int
    measured: float | None
    law: Measured


@dataclass(frozen=True)
class Gain:
    """What `more` rows (of class `name`, or of the same mix) are worth: by how much the error falls.

    `own` is the gain in recall (F1) of the class itself; `words` says both.
    """

    more: int
    gain: Measured
    words: str
    name: str | None = None
    rows: int = 0
    own: Measured | None = None


@dataclass(frozen=True)
class Forecast:
    """The curve of `metric` with `rows` to learn from and `held` to judge on, and what more rows are worth."""

    metric: str
    rows: int
    held: int
    floor: Measured
    points: list[Point]
    beyond: list[Point]
    gains: list[Gain]
    classes: list[Gain]
    remarks: list[str]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def forecast(
    problem: Problem, head: LinearProbe, more: int | None = None, classes: int = 10, orders: int = 5, seed: int = 0
) -> Forecast:
    """Measure the curves and what `more` rows are worth, together and for each of so many `classes`, the worst first.

    `head` was solved on the whole pool: penalty and solver of the class curves are its own. `orders` random orders of the
    pool are cut at each size.
    """
    rows, remarks = len(problem.pool), []
    curve = measure_curve(problem, orders, seed=seed)
    laws = curve.laws(seed)
    asked = [_within_reach(more, rows, "rows", remarks)] if more else sorted({round_number(rows * s) for s in SHARES})
    points = [
        Point(int(size), float(curve.values[place, :, 0].mean()), curve.at(size, laws))
        for place, size in enumerate(curve.sizes)
    ]
    beyond = [Point(rows + extra, None, curve.at(rows + extra, laws)) for extra in asked]
    gains = []
    for extra in asked:
        gain = curve.gain(extra, laws)
        gains.append(
            Gain(extra, gain, f"+{extra} rows of the same mix: {worth(gain, curve.metric, NOTHING)}", rows=rows)
        )
    found = [] if not problem.task.has_classes else _classes(problem, head, more, classes, remarks, seed)
    if not problem.task.has_classes:
        remarks.append("Numbers have no classes: the curve is of all rows together.")
    return Forecast(
        curve.metric, rows, len(problem.held), _floor(curve.metric, laws), points, beyond, gains, found, remarks
    )


def _within_reach(more: int, rows: int, what: str, remarks: list[str]) -> int:
    """At most as many more as there are: beyond, the law is a guess."""
    most = int(rows * (REACH - 1))
    if more > most:
        remarks.append(
            f"Beyond twice the {rows} {what} at hand the law is a guess: +{most} is shown in place of +{more}."
        )
    return min(more, most)


def round_number(value: float) -> int:
    """One digit and zeros: what people ask about."""
    size = 10 ** max(0, int(np.floor(np.log10(max(value, 1)))))
    return max(1, int(value // size) * size)


def _floor(metric: str, laws: PowerLaws) -> Measured:
    """Return the error that no number of rows like these would go below, as the laws have it."""
    low, high = np.percentile(laws.floor[1:], [2.5, 97.5])
    return Measured(float(np.clip(laws.floor[0], low, high)), float(low), float(high), len(laws.floor) - 1)


def _classes(
    problem: Problem, head: LinearProbe, more: int | None, limit: int, remarks: list[str], seed: int
) -> list[Gain]:
    scorer, names = Scorer(problem, seed), problem.task.names
    counts = class_counts(problem)
    few = [names[number] for number, count in enumerate(counts) if count < FEWEST]
    if few:
        remarks.append(f"Too few examples to tell (below {FEWEST}): {', '.join(few)}.")
    recalls = np.array([scorer.of_class(head, number)[0] for number in range(len(names))])
    evaluated = [number for number in np.argsort(recalls) if counts[number] >= FEWEST and not np.isnan(recalls[number])]
    if len(evaluated) > limit:
        of = problem.task.class_metric
        remarks.append(
            f"The {limit} of {len(evaluated)} classes with the lowest {of} are shown (--classes shows more)."
        )
    wanted = more or round_number(float(np.median(counts)) / 2)
    gains = []
    for number in tqdm(evaluated[:limit], desc="classes", unit="class", leave=False, disable=None):
        extra = min(wanted, int(counts[number] * (REACH - 1)))
        gains.append(_class_gain(problem, int(number), int(counts[number]), extra, head, scorer, seed))
    if any(gain.more < wanted for gain in gains):
        remarks.append(f"Classes with fewer than {wanted} examples: no more are asked about than there are of them.")
    return sorted(gains, key=lambda gain: -gain.gain.value)


def class_counts(problem: Problem) -> np.ndarray:
    """(C,) examples of each class in the pool."""
    return problem.task.counts(problem.targets[problem.pool])


def _class_gain(
    problem: Problem, number: int, count: int, extra: int, head: LinearProbe, scorer: Scorer, seed: int
) -> Gain:
    curves = measure_class(problem, number, head, scorer, seed=seed)
    gain, own = (curve.gain(extra, curve.laws(seed)) for curve in (curves.macro, curves.own))
    metric, of = problem.task.macro_metric, problem.task.class_metric
    words = f"+{extra} of {curves.name}: {worth(gain, metric, CLASS_NOTHING)}; {worth(own, f'its own {of}', NOTHING)}"
    return Gain(extra, gain, words, curves.name, count, own)


def worth(gain: Measured, metric: str, nothing: float) -> str:
    """Return a gain in words: about nothing, not to be told, or so many points."""
    name = metric.replace("_", " ")
    if metric in ("rmse", "mae"):
        return f"{name} lower by {gain.value:.3g} ({gain.low:.3g} to {gain.high:.3g})"
    low, value, high = (100 * part for part in (gain.low, gain.value, gain.high))
    digits = 1 if nothing >= NOTHING else 2
    span = f"({low:.{digits}f} to {high:.{digits}f})"
    if gain.value <= nothing and gain.high <= 4 * nothing:
        return f"about 0 {span} points of {name}"
    if gain.low <= nothing / 5 and gain.high > 4 * nothing:
        return f"the curve cannot tell {span} points of {name}"
    return f"about +{value:.{digits}f} {span} points of {name}"
