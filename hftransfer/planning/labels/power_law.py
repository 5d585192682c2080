"""Learning curves as power laws: error(n) = floor + scale * n ** -exponent.

The form that fits most learning curves of classifiers (Cortes et al. 1993; Hestness et al. 2017, arXiv 1712.00409; the
review of Viering & Loog 2021, arXiv 2103.10948, tells where it does not). Floor and scale cannot be negative, and the
exponent stays in the range that such curves have: free, three parameters on a handful of sizes promise anything.
"""

from dataclasses import dataclass

import numpy as np

EXPONENTS = np.geomspace(0.1, 2.0, 40)


@dataclass(frozen=True)
class PowerLaws:
    """R laws, fitted at once: `floor`, `scale` and `exponent` are (R,)."""

    floor: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray

    def at(self, size: float) -> np.ndarray:
        """Return the error (R,) at `size` rows."""
        return self.floor + self.scale * float(size) ** -self.exponent


def fit(sizes: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> PowerLaws:
    """Least squares with `weights` (S,) of errors (R, S) at sizes (S,), each row a law of its own.

    For a given exponent the law is linear: floor and scale are solved for, and the best of `EXPONENTS` is taken.
    """
    largest = float(sizes.max())
    floors, scales, losses = [], [], []
    for exponent in EXPONENTS:
        basis = (sizes / largest) ** -exponent
        floor, scale = _line(basis, errors, weights)
        floors.append(floor)
        scales.append(scale * largest**exponent)
        losses.append((weights * (floor[:, None] + scale[:, None] * basis - errors) ** 2).sum(1))
    best = np.argmin(losses, axis=0)
    rows = np.arange(len(errors))
    return PowerLaws(np.array(floors)[best, rows], np.array(scales)[best, rows], EXPONENTS[best])


def _line(basis: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Floor and scale (R,) of error = floor + scale * basis, neither negative.

    Where the free solution has a negative one, the solution lies on an edge: a floor of zero, or a scale of zero.
    """
    share = weights / weights.sum()
    middle, mean = share @ basis, errors @ share
    spread = share @ (basis - middle) ** 2
    scale = errors @ (share * (basis - middle)) / spread
    floor = mean - scale * middle
    through_zero = np.maximum(errors @ (share * basis) / (share @ basis**2), 0.0)  # errors of resamples may be negative
    scale = np.where(scale < 0, 0.0, np.where(floor < 0, through_zero, scale))
    return np.where(scale == 0, np.maximum(mean, 0.0), np.where(floor < 0, 0.0, floor)), scale
