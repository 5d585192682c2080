"""The linear probe: solved, not trained, on frozen features.

L2-regularised multinomial logistic regression (one logistic per label for multi-label, ridge for regression) on
features of like scale, its strength chosen by cross-validation on the loss (Kornblith et al. 2019, arXiv 1805.08974,
appendix A.3; CLIP, arXiv 2103.00020, appendix A.3). The out-of-fold predictions come with it and are kept.

Shapes: features (N, D), targets as in `tasks`, scores (N, C); a head is weight (C, D) and bias (C,).
"""

import logging
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import log_softmax

from hftransfer.core.errors import UserError
from hftransfer.probe.linear import Fit, Logistic, Ridge
from hftransfer.tasks import Task

log = logging.getLogger(__name__)

Solver = Literal["logistic", "ridge"]
# Penalty on the squared weights against the *mean* loss, strong to weak: on standardised features the best lies inside.
PENALTIES = tuple(10.0**exponent for exponent in (1, 0.5, 0, -0.5, -1, -1.5, -2, -2.5, -3, -4, -5))
# What a few rows say of numbers can be so little that only these come near to predicting the mean.
STRONG_PENALTIES = tuple(10.0**exponent for exponent in (3, 2.5, 2, 1.5))
SEARCHED = {"logistic": PENALTIES, "ridge": (*STRONG_PENALTIES, *PENALTIES)}
# Of the objective, where Newton's method ends: enough to rank penalties, and exact to six digits of the probabilities.
SEARCH_TOLERANCE, FINAL_TOLERANCE = 1e-3, 1e-11
CLEARLY_WORSE = 1.05  # times the best loss: no weaker penalty is tried; within it, one more is
WORTH_THREADS = 1e6  # rows x features x outputs from which a second thread saves time


@dataclass(frozen=True)
class LinearProbe:
    """weight (C, D) and bias (C,) on the raw features; `out_of_fold` logits (F, C) of the rows that folds held out.

    `loss` is the cross-validated mean loss that chose `penalty`; `solver` is what made it.
    """

    weight: np.ndarray
    bias: np.ndarray
    out_of_fold: np.ndarray
    loss: float
    penalty: float
    solver: Solver

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight.T + self.bias


def solve_head(
    features: np.ndarray,
    targets: np.ndarray,
    task: Task,
    folds: list[tuple[np.ndarray, np.ndarray]],
    intercept: bool = True,
    blocks: np.ndarray | None = None,
) -> LinearProbe:
    """Return the linear probe of the penalty that is best in cross-validation over `folds` (train and validation row numbers).

    It is logistic regression, or ridge for numbers. `intercept` False is for heads that have no bias (GPT-2).
    Regression targets are expected standardised (`task.standardised`). `blocks` (D,) as `standardiser` takes them.
    """
    from threadpoolctl import threadpool_limits

    features = np.asarray(features, dtype=np.float64)
    threads = _threads(len(features), features.shape[1], task.head_size)
    name: Solver = "logistic" if task.has_classes else "ridge"
    # Threads take one fold each. Those of BLAS wait for each other at every product: on busy cores ten times the seconds.
    with threadpool_limits(1, user_api="blas"):
        mean, scale = standardiser(features, intercept, blocks)
        rows, rotation = _rotated((features - mean) / scale)
        best = _cross_validated(name, rows, targets, task, folds, intercept, threads)
        fit = _solve(name, rows, targets, task, best.penalty, intercept, FINAL_TOLERANCE, best.fit)
    log.info("Linear probe: %s, penalty %.3g, cross-validated loss %.4f", name, best.penalty, best.loss)
    fit = _on_raw(fit, mean, scale, rotation)
    return LinearProbe(fit.weight, fit.bias, best.out_of_fold, best.loss, best.penalty, name)


def _threads(*sizes: int) -> int:
    """Return one thread for a small problem (rows, features, outputs), else as many as torch uses."""
    import torch

    return torch.get_num_threads() if math.prod(sizes) > WORTH_THREADS else 1


def refit(features: np.ndarray, targets: np.ndarray, task: Task, like: LinearProbe) -> Fit:
    """Return a head on other rows with the solver and penalty of one that was chosen before: no folds, a search's precision.

    For the many fits of a learning curve. Regression targets are expected standardised.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        features = np.asarray(features, dtype=np.float64)
        mean, scale = standardiser(features, intercept=True)
        rows, rotation = _rotated((features - mean) / scale)
        rows = rows.astype(np.float32) if like.solver == "logistic" else rows
        fit = _solve(like.solver, rows, targets, task, like.penalty, intercept=True, tolerance=SEARCH_TOLERANCE)
        return _on_raw(fit, mean, scale, rotation)


def _on_raw(fit: Fit, mean: np.ndarray, scale: np.ndarray, rotation: np.ndarray) -> Fit:
    """Return a fit on rotated, standardised features as one on the features themselves."""
    weight = fit.weight @ rotation.T / scale
    return Fit(weight, fit.bias - weight @ mean)


def make_folds(
    task: Task, targets: np.ndarray, groups: np.ndarray | None, count: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide rows into stratified folds: (train, held-out) row numbers, at most `count` of them.

    Strata are classes, quartiles for regression, the rarest label for multi-label. A small class is spread over as many
    folds as it has rows. Groups are kept together: with at most `count` of them, each is held out once. A single group
    leaves no such division; its rows are divided with a warning. Raises `UserError` for fewer than two rows.
    """
    if len(targets) < 2:
        raise UserError(f"Cross-validation needs at least 2 labelled examples, found {len(targets)}.")
    strata = np.unique(task.strata(targets), return_inverse=True)[1]
    if groups is None:
        return _row_folds(strata, count, seed)
    found = np.unique(groups)
    if len(found) == 1:
        log.warning(
            "All %d examples to fit on are of one group (%s): folds divide its examples, so that validation metrics, "
            "temperature and prediction sets hold for this group only.", len(targets), found[0],
        )  # fmt: skip
        return _row_folds(strata, count, seed)
    return _group_folds(strata, groups, count, len(found), seed)


def _row_folds(strata: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Deal the shuffled rows of one stratum after the other to the folds: sizes differ by one, of strata too."""
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    fold = np.empty(len(strata), dtype=np.int64)
    fold[order] = np.arange(len(strata)) % min(count, len(strata))
    return [(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(fold.max() + 1)]


def _group_folds(
    strata: np.ndarray, groups: np.ndarray, count: int, found: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, StratifiedGroupKFold

    if found <= count:
        return list(LeaveOneGroupOut().split(strata, strata, groups))
    if np.bincount(strata).max() >= count:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "least populated class": it is in fewer folds
            splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
            folds = list(splitter.split(strata, strata, groups))
        if all(len(held_out) for _, held_out in folds):  # few groups of unequal classes can leave a fold empty
            return folds
    return list(GroupKFold(count, shuffle=True, random_state=seed).split(strata, strata, groups))


def standardiser(
    features: np.ndarray, intercept: bool, blocks: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what is taken off each feature (D,), and what it is divided by.

    The divisor is its spread, but no less than the median one of those that vary.

    Behind a ReLU most features are 0 on most rows. Where rows are few, one that was not 0 once gets a spread near 0, and
    divided by that it is a giant on the first new row that has it: digits with five labels a class lost 11 points.

    `blocks` (D,) number the input that each feature is of. Each block then gets the same total variance ("block scaling",
    Westerhuis et al. 1998, J. Chemometrics 12:301), so that no input counts more for being wider. All together have that of
    D standardised features, so that penalties mean the same.
    """
    mean, spread = features.mean(0) if intercept else np.zeros(features.shape[1]), features.std(0)
    if blocks is None:
        return mean, _floored(spread)
    scale, numbers = np.ones(len(spread)), np.unique(blocks)
    share = len(spread) / len(numbers)
    for inside in (blocks == number for number in numbers):
        divisor = _floored(spread[inside])
        total = float(((spread[inside] / divisor) ** 2).sum())
        scale[inside] = divisor * np.sqrt(total / share if total else 1.0)
    return mean, scale


def _floored(spread: np.ndarray) -> np.ndarray:
    varying = spread[spread > 1e-9 * spread.max(initial=0)]
    return np.maximum(spread, np.median(varying) if len(varying) else 1.0)


def _rotated(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features on their principal axes, (N, R), and the rotation (D, R), with R at most min(N, D).

    The penalty does not see a rotation. With fewer rows than features the solution lies in the span of the rows, so R = N
    is exact; and on principal axes the diagonal of the Hessian is a good preconditioner (`linear.Logistic`).
    """
    wide = features.shape[1] > len(features)
    values, vectors = np.linalg.eigh(features @ features.T if wide else features.T @ features)
    kept = values > values.max(initial=0) * 1e-12
    rotation = features.T @ (vectors[:, kept] / np.sqrt(values[kept])) if wide else vectors[:, kept]
    return features @ rotation, rotation


class _Best(NamedTuple):
    """The penalty of the lowest cross-validated loss, its logits (F, C) of held-out rows, and the mean of its fits."""

    penalty: float
    loss: float
    out_of_fold: np.ndarray
    fit: Fit | None


def _cross_validated(
    solver: Solver, features: np.ndarray, targets: np.ndarray, task: Task, folds: list, intercept: bool, threads: int
) -> _Best:
    """Search the penalties from strong to weak; the search ends when weaker ones only do worse."""
    held = np.sort(np.concatenate([held_out for _, held_out in folds]))
    best, worse = _Best(np.nan, np.inf, np.zeros((len(held), task.head_size)), None), 0
    rough = features.astype(np.float32) if solver == "logistic" else features
    with ThreadPoolExecutor(threads) as pool:
        paths = list(pool.map(lambda fold: _path(solver, rough[fold[0]], targets[fold[0]], task, intercept), folds))
        for penalty in SEARCHED[solver]:
            fits = list(pool.map(methodcaller("fit", penalty), paths))
            logits = _held_out_logits(features, folds, fits)[held]
            loss = mean_loss(task, logits, targets[held])
            worse = 0 if loss < best.loss else worse + (1 if loss < CLEARLY_WORSE * best.loss else 2)
            best = _Best(penalty, loss, logits, _mean(fits)) if loss < best.loss else best
            if worse >= 2:
                break
    return best


def _held_out_logits(features: np.ndarray, folds: list, fits: list[Fit]) -> np.ndarray:
    """Return logits (N, C) of each fold's held-out rows from its own fit; rows that no fold holds out are 0."""
    logits = np.zeros((len(features), len(fits[0].bias)))
    for (_, held_out), fit in zip(folds, fits, strict=True):
        logits[held_out] = fit.logits(features[held_out])
    return logits


def _path(solver: Solver, features: np.ndarray, targets: np.ndarray, task: Task, intercept: bool) -> "_Path | Ridge":
    if solver == "ridge":
        return Ridge.of(features, targets, intercept)
    return _Path(Logistic.of(features, targets, task, intercept))


@dataclass
class _Path:
    """Logistic fits for one penalty after the other, each started on the line through the last two.

    Solutions move smoothly with the logarithm of the penalty.
    """

    problem: Logistic
    solved: list[tuple[float, Fit]] = field(default_factory=list)

    def fit(self, penalty: float) -> Fit:
        fit = self.problem.fit(penalty, SEARCH_TOLERANCE, self._start(penalty))
        self.solved = [*self.solved[-1:], (penalty, fit)]
        return fit

    def _start(self, penalty: float) -> Fit | None:
        if len(self.solved) < 2:
            return self.solved[-1][1] if self.solved else None
        (before, old), (last, new) = self.solved
        ahead = np.log(penalty / last) / np.log(last / before)
        return Fit(new.weight + ahead * (new.weight - old.weight), new.bias + ahead * (new.bias - old.bias))


def _mean(fits: list[Fit]) -> Fit:
    return Fit(np.mean([fit.weight for fit in fits], axis=0), np.mean([fit.bias for fit in fits], axis=0))


def out_of_fold_of_best(
    task: Task, heads: list[LinearProbe], targets: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Return out-of-fold logits (F, C) where each fold's head is the best of `heads` by the loss on the other folds.

    So the choice between heads is cross-validated too. `targets` (F, ...) are standardised; the folds hold out every row once.
    """
    losses = np.array([
        [mean_loss(task, head.out_of_fold[held_out], targets[held_out]) * len(held_out) for head in heads]
        for _, held_out in folds
    ])  # fmt: skip
    logits = np.empty_like(heads[0].out_of_fold)
    for (_, held_out), best in zip(folds, (losses.sum(0) - losses).argmin(1), strict=True):
        logits[held_out] = heads[best].out_of_fold[held_out]
    return logits


def mean_loss(task: Task, logits: np.ndarray, targets: np.ndarray) -> float:
    """Log-loss (single- and multi-label, with the task's weights) or squared error, the mean over rows and outputs."""
    if task.exclusive:
        losses = -log_softmax(logits, axis=1)[np.arange(len(targets)), targets]
        return float((task.importance(targets) * losses).mean())
    if task.has_classes:
        return float((task.importance(targets) * (np.logaddexp(0, logits) - targets * logits)).mean())
    return float(((logits - targets) ** 2).mean())


def _solve(
    solver: Solver, features: np.ndarray, targets: np.ndarray, task: Task, penalty: float, intercept: bool,
    tolerance: float, start: Fit | None = None,
) -> Fit:  # fmt: skip
    if solver == "ridge":
        return Ridge.of(features, targets, intercept).fit(penalty)
    return Logistic.of(features, targets, task, intercept).fit(penalty, tolerance, start)
