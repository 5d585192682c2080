"""What several folds or seeds say together, without pretending that they are independent."""

from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from hftransfer.core.errors import UserError
from hftransfer.evaluation.intervals import Measured
from hftransfer.evaluation.kinds import scale_of


def over_repeats(found: Sequence[dict[str, Measured]], tested_per_trained: float) -> dict[str, Measured]:
    """Combine the metrics of pooled out-of-fold predictions, one entry of `found` per division into folds.

    Each division predicts every example once. Its intervals hold what the examples do to the metric. They are averaged over
    the divisions and widened on a scale without ends (logit, log) for what training sets do to it: folds share training
    examples, so the variance grows by the factor 1 + n_test / n_train, and the variance between divisions adds
    1 / R + n_test / n_train times itself (Nadeau & Bengio 2003, sec. 4). A single division does not show that variance: it
    is taken for as large as that of the examples. `n` is the number of examples.

    Args:
        tested_per_trained: n_test / n_train of a fold, from the real sizes.
    """
    names = [name for name in found[0] if all(name in each for each in found)]
    return {name: _combined(name, [each[name] for each in found], tested_per_trained) for name in names}


def _combined(name: str, found: Sequence[Measured], tested_per_trained: float) -> Measured:
    values = np.array([each.value for each in found])
    middle, low, high = (float(np.mean(ends)) for ends in zip(*((m.value, m.low, m.high) for m in found), strict=True))
    onto, back = _scale(name)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.var(onto(values), ddof=1) if len(values) > 1 else 0.0
        added = stats.norm.ppf(0.975) ** 2 * np.nan_to_num(between) * (1 / len(values) + tested_per_trained)
        factor = 1 + tested_per_trained + (len(values) == 1)
        ends = [_widened(onto(middle), onto(end), factor, added) for end in (low, high)]
    low, high = sorted(float(back(end)) for end in ends)
    return Measured(middle, min(low, middle), max(high, middle), found[0].n)


def _widened(middle: float, end: float, factor: float, added: float) -> float:
    """Move one end away from the middle: its variance grows by `factor` and by what is `added`.

    A value at the end of its range has no finite middle. There the odds of the other end fall as examples do.
    """
    if not np.isfinite(end):
        return end
    if not np.isfinite(middle):
        return end + np.sign(end - middle) * np.log(factor)
    return middle + np.sign(end - middle) * np.sqrt((end - middle) ** 2 * factor + added)


def _scale(name: str):
    """Return a scale without ends for the metric, and its inverse."""
    scale = scale_of(name)
    if scale == "share":
        return logit, expit
    if scale == "correlation":
        return (lambda value: logit((value + 1) / 2)), (lambda value: 2 * expit(value) - 1)
    if scale == "explained":
        return (lambda value: np.log(1 - value)), (lambda value: 1 - np.exp(value))
    if scale == "positive":
        return np.log, np.exp
    return (lambda value: np.asarray(value, dtype=float)), (lambda value: value)  # of another library: no known ends


def corrected_t_interval(scores: Sequence[float], n_train: int, n_test: int, level: float = 0.95) -> Measured:
    """Mean of a metric over J train/test resamples, with the corrected resampled t interval.

    Folds share training rows, so the plain variance of their mean is too small; (1/J + n_test/n_train) takes the place
    of 1/J (Nadeau & Bengio 2003, "Inference for the generalization error", sec. 4). `n` is the number of scores.

    Args:
        scores: one value per fold, over all repetitions.
        n_train, n_test: rows that one fold trains on and is tested on.

    Raises `UserError` for fewer than two scores: one value has no spread.
    """
    values = np.asarray(scores, dtype=np.float64)
    count = len(values)
    if count < 2:
        raise UserError(f"An interval over folds needs at least 2 scores; found {count}. Ask for more folds or seeds.")
    error = np.sqrt(values.var(ddof=1) * (1 / count + n_test / n_train))
    reach = stats.t.ppf((1 + level) / 2, count - 1) * error
    return Measured(float(values.mean()), float(values.mean() - reach), float(values.mean() + reach), count)


def spread(scores: Sequence[float], level: float = 0.95) -> Measured:
    """Mean of a metric over seeds on the same split, with Student's t interval of the mean.

    It tells what the seed does; how far another test set would move the number is told by `measure`.
    """
    return corrected_t_interval(scores, n_train=1, n_test=0, level=level)
