"""What several folds or seeds say together, without pretending that they are independent."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from hftransfer.errors import UserError
from hftransfer.evaluation.intervals import Measured


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
