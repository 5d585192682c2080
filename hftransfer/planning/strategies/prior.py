"""Expect a gain over the probe: from prior results alone, or updated by what the held-out examples show.

Choosing the highest expected gain is an empirical Bayes estimate (Efron and Morris 1973): prior results of other data
sets say what a strategy gains on average and how much that varies, `ModalityKind.prior_gains`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hftransfer.planning.strategies.decision import Difference

# Standard deviation of a trained network's score between two trainings, in points of 1 (docs/advice.md).
RETRAINING = 0.015


@dataclass(frozen=True)
class Gain:
    """Expected gain over the probe in the headline metric, above 0 is better; `measured`: held-out examples took part."""

    mean: float
    sd: float
    measured: bool = False


PROBE = Gain(0.0, 0.0, True)


def prior_gain(known: Mapping[str, tuple[float, float]], name: str) -> Gain | None:
    """Return what prior results say of a candidate; None where there are none."""
    return Gain(*known[name]) if name in known else None


def updated(prior: Gain | None, found: Difference, tested_per_trained: float, retraining: float) -> Gain:
    """Return the mean of prior and measured gain, each weighted by its precision.

    The variance of the measured gain grows for other training sets as in `Difference.corrected`, and by two trainings
    of other random numbers. Without a prior the measured gain stands alone.
    """
    error = (found.high - found.low) / 2 / 1.96
    variance = error**2 * (1 + tested_per_trained) + 2 * retraining**2
    if prior is None or variance == 0:
        return Gain(found.value, math.sqrt(variance), True)
    if not math.isfinite(variance):
        return prior
    weight = prior.sd**2 / (prior.sd**2 + variance)
    return Gain(weight * found.value + (1 - weight) * prior.mean, math.sqrt(weight * variance), True)
