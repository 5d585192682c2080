"""The learning curve of a probe, from features that were computed once: how good with fewer rows, so how good with more.

Heads are fitted on stratified subsamples of the training rows and scored on the same held-out rows. A subsample is the
beginning of a random order, so that one order gives a whole curve. The intervals come from a bootstrap over orders and
held-out rows together; a forecast is the power law of each resample read off beyond the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from tqdm.auto import tqdm

from hftransfer.evaluation import bootstrap
from hftransfer.evaluation.intervals import Draws, Measured
from hftransfer.evaluation.kinds import higher_is_better
from hftransfer.pipeline.words import of_texts
from hftransfer.planning.labels.power_law import PowerLaws, fit
from hftransfer.probe.fit import Rows
from hftransfer.probe.solver import Fit, LinearProbe, make_folds, refit, solve_head
from hftransfer.tasks import Task

SIZES, ORDERS, CLASS_ORDERS, RESAMPLES, FOLDS = 7, 5, 4, 400, 3
CLASS_SHARES = (0.25, 0.4, 0.63, 1.0)
REACH = 2.0  # beyond twice the rows at hand a power law is a guess


@dataclass(frozen=True)
class Words:
    """The words of all texts: their text `owners` (U,), and what a probe on them is fitted on (`pipeline.words.words_of`)."""

    owners: np.ndarray
    rows: Rows
    unit: Task

    def of(self, texts: np.ndarray) -> np.ndarray:
        """Return the numbers of the words to fit on that some texts have."""
        return self.rows.fitted[np.isin(self.owners[self.rows.fitted], texts)]


@dataclass(frozen=True)
class Problem:
    """Features (N, D) and targets of all rows; `pool` are the numbers of the rows to learn from, `held` of those to judge on.

    `groups` (N,) belong together in folds and resamples. Of texts whose words are fitted, `words` has the rows of words.
    """

    task: Task
    features: np.ndarray
    targets: np.ndarray
    pool: np.ndarray
    held: np.ndarray
    groups: np.ndarray | None = None
    words: Words | None = None

    @property
    def unit(self) -> Task:
        """The task of what is fitted: of an example, or of a word."""
        return self.task if self.words is None else self.words.unit

    def fitted(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return features, targets as the loss sees them, and groups of what is fitted for some rows."""
        if self.words is not None:
            fitted = self.words.of(rows)
            return self.features[fitted], self.words.rows.targets[fitted], self.words.rows.groups[fitted]
        groups = None if self.groups is None else self.groups[rows]
        return self.features[rows], self.task.standardised(self.targets[rows]), groups

    def scores(self, head: Fit | LinearProbe) -> np.ndarray:
        """Return what a head says of the held-out rows, as `Task.probabilities` has it."""
        if self.words is not None:
            words = np.isin(self.words.owners, self.held)
            logits = of_texts(head.logits(self.features[words]), self.targets[self.held])
        else:
            logits = self.task.in_units(head.logits(self.features[self.held]))
        return self.task.probabilities(logits)


class Scorer:
    """Judges heads on the held-out rows, as they are and in `RESAMPLES` resamples of them, the same for every head."""

    def __init__(self, problem: Problem, seed: int):
        self.problem, self.task = problem, problem.task
        self.targets = problem.targets[problem.held]
        groups = None if problem.groups is None else list(problem.groups[problem.held])
        classes = self.task.classes_of(self.targets)
        draws = Draws(len(self.targets), groups, classes, seed, RESAMPLES)
        drawn = bootstrap.draw_weights(draws.units, draws.strata, RESAMPLES, seed)
        self.weights = np.concatenate([np.ones((1, len(self.targets)), np.float32), *drawn])

    def __call__(self, head: Fit | LinearProbe, metric: str) -> np.ndarray:
        """(1 + RESAMPLES,), the value on the rows themselves first."""
        return bootstrap.statistics(self.task, self.targets, self.problem.scores(head))(self.weights)[metric]

    def of_class(self, head: Fit | LinearProbe, number: int) -> np.ndarray:
        """Return the same, of recall (F1 for several labels) of one class."""
        found = bootstrap.by_class(self.task, self.targets, self.problem.scores(head))(self.weights)
        return found[self.task.class_metric][:, number]


@dataclass(frozen=True)
class Curve:
    """What was measured: `values` (S, K, 1 + R) of `metric` at S sizes in K orders, on the held-out rows and resamples.

    `overlap` (S,) is the share of the rows at hand that a subsample of the size takes.
    """

    metric: str
    sizes: np.ndarray
    values: np.ndarray
    overlap: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """What falls as rows are added: 1 - share, or the error itself."""
        return 1 - self.values if higher_is_better(self.metric) else self.values

    def laws(self, seed: int = 0) -> PowerLaws:
        """One power law per resample, that of the plain means first.

        Sizes weigh as their rows: the error that n rows give varies by about 1 / n.
        """
        errors = _widened(self.errors, self.overlap)
        orders, resamples = errors.shape[1], errors.shape[2] - 1
        # One order fewer than there are: a resample of K varies by (K - 1) / K of what it should.
        drawn = np.random.default_rng(seed).integers(orders, size=(resamples, orders - 1))
        resampled = [errors[:, orders, 1 + number].mean(1) for number, orders in enumerate(drawn)]
        means = np.stack([errors[:, :, 0].mean(1), *resampled])  # (1 + R, S)
        return fit(self.sizes, means, self.sizes.astype(float))

    def at(self, size: float, laws: PowerLaws) -> Measured:
        """Return the value that the law has at `size` rows."""
        sign = -1 if higher_is_better(self.metric) else 1
        start = 1 if higher_is_better(self.metric) else 0
        return _interval(start + sign * laws.at(size), len(self.sizes))

    def gain(self, more: float, laws: PowerLaws) -> Measured:
        """By how much the error falls with so many `more` rows than the largest size had."""
        now = float(self.sizes[-1])
        return _interval(laws.at(now) - laws.at(now + more), len(self.sizes))


def _widened(errors: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Errors (S, K, …) whose spread over the K orders makes the variance of their mean what it is.

    Subsamples that take a share f of the rows at hand have much in common: they vary by sqrt(1 - f) of what fresh samples
    do (Cochran 1977, sec. 2.6), and what they share no averaging removes: the variance of their mean is that of one sample
    times (1 - f) / K + f. Beyond three quarters, where hardly anything varies, the spread is taken from the size below,
    shrunk by the root of the sizes. And a spread known from K orders is uncertain itself: Student's t allows for that.
    """
    middle, orders = errors.mean(1, keepdims=True), errors.shape[1]
    student = stats.t.ppf(0.975, orders - 1) / stats.norm.ppf(0.975)
    spread, source = student * (errors - middle), 0
    result = np.empty_like(errors)
    for place, share in enumerate(overlap):
        source = place if share <= 0.75 else source
        of_source = overlap[source]
        factor = (1 - share + orders * share) * of_source / share / max(1 - of_source, 0.25)
        result[place] = middle[place] + np.sqrt(factor) * spread[source]
    return result


def _interval(values: np.ndarray, n: int) -> Measured:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Measured(float(np.clip(values[0], low, high)), float(low), float(high), n)


def measure_curve(problem: Problem, orders: int = ORDERS, sizes: Sequence[int] | None = None, seed: int = 0) -> Curve:
    """Return the overall curve: sizes on a log grid up to all rows of the pool, with a penalty chosen at each size."""
    scorer, metric = Scorer(problem, seed), problem.task.learning_metric
    grid = np.asarray(sizes if sizes is not None else size_grid(problem))
    arranged = [arrange(problem, seed + number) for number in range(orders)]
    values = np.empty((len(grid), orders, 1 + RESAMPLES))
    with tqdm(total=len(grid) * orders, desc="learning curve", unit="fit", leave=False, disable=None) as bar:
        for place, size in enumerate(grid):
            like = solved(problem, arranged[0][:size], seed)
            for number, order in enumerate(arranged):
                whole = size == len(problem.pool) and number > 0  # every order ends with the same rows
                values[place, number] = (
                    values[place, 0] if whole else scorer(fitted(problem, order[:size], like), metric)
                )
                bar.update()
    return Curve(metric, grid, values, grid / len(problem.pool))


def size_grid(problem: Problem) -> np.ndarray:
    """From two rows a class (ten at least, a fiftieth at least) to all."""
    rows = len(problem.pool)
    classes = problem.task.head_size if problem.task.has_classes else 1
    first = min(max(2 * classes, 10, rows // 50), max(2, rows // 4))
    return np.unique(np.geomspace(first, rows, SIZES).round().astype(int))


def arrange(problem: Problem, seed: int) -> np.ndarray:
    """Return the rows of the pool in a random order whose every beginning is stratified."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(problem.pool)
    strata = np.unique(problem.task.strata(problem.targets[rows]), return_inverse=True)[1]
    place = np.empty(len(rows))
    for stratum in range(strata.max() + 1):
        members = np.flatnonzero(strata == stratum)
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return rows[np.argsort(place, kind="stable")]


def solved(problem: Problem, rows: np.ndarray, seed: int) -> LinearProbe:
    """Solver and penalty for these rows, by cross-validation."""
    features, targets, groups = problem.fitted(rows)
    in_units = problem.targets[rows] if problem.words is None else targets
    folds = make_folds(problem.unit, in_units, groups, FOLDS, seed)
    return solve_head(features, targets, problem.unit, folds)


def fitted(problem: Problem, rows: np.ndarray, like: LinearProbe) -> Fit:
    features, targets, _ = problem.fitted(rows)
    return refit(features, targets, problem.unit, like)


@dataclass(frozen=True)
class ClassCurves:
    """What the number of examples of one class does, all others kept: to the mean over classes, and to itself."""

    name: str
    macro: Curve
    own: Curve


def measure_class(
    problem: Problem, number: int, like: LinearProbe, scorer: Scorer, orders: int = CLASS_ORDERS, seed: int = 0
) -> ClassCurves:
    """Keep a quarter to all of the examples of class `number` in the pool, and every row of the others.

    Solver and penalty are those of `like`, the head on the whole pool.
    """
    task = problem.task
    of_class = _examples(problem, number)
    mine, others = problem.pool[of_class], problem.pool[~of_class]
    sizes = np.unique(np.maximum(1, (len(mine) * np.array(CLASS_SHARES)).round().astype(int)))
    macro, own = (np.empty((len(sizes), orders, 1 + RESAMPLES)) for _ in range(2))
    whole = fitted(problem, problem.pool, like)
    for turn in range(orders):
        order = np.random.default_rng(seed + turn).permutation(mine)
        for place, size in enumerate(sizes):
            rows = np.concatenate([others, order[:size]])
            head = whole if size == len(mine) else fitted(problem, rows, like)
            macro[place, turn] = scorer(head, task.macro_metric)
            own[place, turn] = scorer.of_class(head, number)
    share = sizes / len(mine)
    return ClassCurves(
        task.names[number], Curve(task.macro_metric, sizes, macro, share), Curve("balanced_accuracy", sizes, own, share)
    )


def _examples(problem: Problem, number: int) -> np.ndarray:
    """Which rows of the pool (bool) carry the class."""
    return problem.task.one_hot(problem.targets[problem.pool])[:, number] > 0
