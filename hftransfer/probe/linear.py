"""Linear maps for one penalty: ridge regression in closed form, logistic regression by Newton's method.

A Newton step solves its linear system by conjugate gradients, which only multiply the Hessian by vectors (Nocedal and Wright
2006, algorithm 7.1). On principal axes the diagonal of the Hessian is a good preconditioner. These products are in single
precision, and the gradient is in the precision of the features: it decides how exact the solution is.

Shapes: features (N, R), probabilities (C, N). Coefficients are (C, R), or (C, R + 1) with the biases last.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hftransfer.tasks import Task

CERTAIN = 1e-6  # an objective that ends the search: rows of one class have no solution, as biases have no penalty
MOST_STEPS, MOST_PRODUCTS = 100, 500  # of Newton's method, and of conjugate gradients in one step


@dataclass(frozen=True)
class Fit:
    """A linear map: weight (C, D) and bias (C,)."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Ridge:
    """Mean squared error plus penalty * |weight|^2, for any penalty from one factorisation of the features.

    `values` (R,) and `axes` (R, R) are the eigenvalues and eigenvectors of their covariance, `along` (R, C) the covariance
    of the axes with the targets; `centre` (R,) and `mean` (C,) make the bias.
    """

    values: np.ndarray
    axes: np.ndarray
    along: np.ndarray
    centre: np.ndarray
    mean: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, targets: np.ndarray, intercept: bool) -> "Ridge":
        centre, mean = intercept * features.mean(0), intercept * targets.mean(0)
        x = features - centre
        values, axes = np.linalg.eigh(x.T @ x / len(x))
        return cls(values, axes, axes.T @ (x.T @ (targets - mean) / len(x)), centre, mean)

    def fit(self, penalty: float) -> Fit:
        weight = (self.axes @ (self.along / (self.values + penalty)[:, None])).T
        return Fit(weight, self.mean - weight @ self.centre)


@dataclass(frozen=True)
class Logistic:
    """The mean loss, summed over outputs, plus penalty / 2 * |weight|^2; the bias is not penalised.

    `wanted` (C, N) is 1 where an output applies. `importance` is the weight of each loss over N: (N,), (C, N) or a number.
    """

    features: np.ndarray
    wanted: np.ndarray
    importance: np.ndarray
    exclusive: bool
    intercept: bool

    @classmethod
    def of(cls, features: np.ndarray, targets: np.ndarray, task: Task, intercept: bool) -> "Logistic":
        """Return the problem in the precision of `features`."""
        dtype, rows = features.dtype, len(features)
        if intercept:
            features = np.column_stack([features, np.ones(rows, dtype)])
        importance = (np.asarray(task.importance(targets)) / rows).T.astype(dtype)
        wanted = np.ascontiguousarray(task.one_hot(targets).T, dtype)
        return cls(features, wanted, importance, task.exclusive, intercept)

    def fit(self, penalty: float, tolerance: float, start: Fit | None = None) -> Fit:
        """Return the minimum, found from `start`.

        The last step is the first that is expected to lower the objective by less than `tolerance` of its value.
        """
        weight, bias = (start.weight, start.bias) if start else self._frequencies()
        penalties = np.full(weight.shape[1], penalty)
        if not self.intercept:
            return Fit(self._minimise(weight, penalties, tolerance), np.zeros(len(weight)))
        coefficients = self._minimise(np.column_stack([weight, bias]), np.append(penalties, 0), tolerance)
        return Fit(coefficients[:, :-1], coefficients[:, -1])

    def _frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """Return weight and bias that predict the frequency of each output for every example."""
        least = 0.5 / len(self.features)
        frequency = np.clip(self.wanted.mean(1, dtype=np.float64), least, 1 - least)
        width = self.features.shape[1] - self.intercept
        return np.zeros((len(self.wanted), width)), np.log(frequency / (1 - frequency))

    def _minimise(self, coefficients: np.ndarray, penalties: np.ndarray, tolerance: float) -> np.ndarray:
        value, probabilities = self._evaluate(coefficients, penalties)
        for _ in range(MOST_STEPS):
            if value <= CERTAIN:
                return coefficients
            gradient = (self.importance * (probabilities - self.wanted)) @ self.features + penalties * coefficients
            step, gain = self._newton_step(gradient, probabilities, penalties, tolerance * value)
            if gain <= tolerance * value:
                return coefficients + step
            coefficients, value, probabilities = self._search(coefficients, step, value, gain, penalties)
        return coefficients

    def _evaluate(self, coefficients: np.ndarray, penalties: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective and the probabilities."""
        logits = coefficients.astype(self.features.dtype) @ self.features.T
        losses, probabilities = (_softmax if self.exclusive else _sigmoid)(logits, self.wanted)
        loss = float((self.importance * losses).sum(dtype=np.float64))
        return loss + 0.5 * float((penalties * coefficients**2).sum()), probabilities

    def _newton_step(
        self, gradient: np.ndarray, probabilities: np.ndarray, penalties: np.ndarray, tolerance: float
    ) -> tuple[np.ndarray, float]:
        """Return the step to the minimum of the quadratic model, and what it gains at the slope of the objective."""
        size = (
            float(np.abs(gradient).max(initial=0)) or 1.0
        )  # single precision does not hold squares of small gradients
        hessian = _Hessian.of(self, probabilities, penalties)
        target = (-gradient / size).astype(np.float32)
        step = size * _conjugate_gradients(hessian.times, hessian.diagonal, target, 0.1 * tolerance / size / size)
        return step, -float((step * gradient).sum())

    def _search(
        self, coefficients: np.ndarray, step: np.ndarray, value: float, gain: float, penalties: np.ndarray
    ) -> tuple[np.ndarray, float, np.ndarray]:
        """Return (coefficients, objective, probabilities) after the step, halved until the objective falls enough."""
        rounding = 10 * np.finfo(self.features.dtype).eps * max(1.0, value)
        for length in 0.5 ** np.arange(20):
            moved = coefficients + length * step
            reached, probabilities = self._evaluate(moved, penalties)
            if reached <= value - 1e-4 * length * gain + rounding:
                break
        return moved, reached, probabilities


@dataclass(frozen=True)
class _Hessian:
    """The second derivatives of `Logistic` at `probabilities`, in single precision."""

    features: np.ndarray
    probabilities: np.ndarray
    importance: np.ndarray
    penalties: np.ndarray
    exclusive: bool

    @classmethod
    def of(cls, problem: Logistic, probabilities: np.ndarray, penalties: np.ndarray) -> "_Hessian":
        arrays = (problem.features, probabilities, problem.importance, penalties)
        return cls(*(array.astype(np.float32, copy=False) for array in arrays), problem.exclusive)

    @property
    def diagonal(self) -> np.ndarray:
        """The diagonal, shaped as the coefficients; above zero for an output that is never wanted."""
        spread = self.importance * self.probabilities * (1 - self.probabilities)
        return np.maximum(spread @ self.features**2 + self.penalties, np.float32(1e-12))

    def times(self, direction: np.ndarray) -> np.ndarray:
        """Return the product with a direction, both shaped as the coefficients."""
        change = direction @ self.features.T
        change *= self.probabilities
        change -= self.probabilities * (change.sum(0) if self.exclusive else change)
        change *= self.importance
        return change @ self.features + self.penalties * direction


def _conjugate_gradients(
    times: Callable[[np.ndarray], np.ndarray], diagonal: np.ndarray, target: np.ndarray, tolerance: float
) -> np.ndarray:
    """Solve `times(solution) = target`, preconditioned by the diagonal.

    The residual, squared and measured by the diagonal, falls to `tolerance` or to a hundredth.
    """
    solution, residual, direction = np.zeros_like(target), target.copy(), target / diagonal
    left = np.vdot(residual, direction)
    enough = max(0.01 * left, tolerance)
    for _ in range(MOST_PRODUCTS):
        if left <= enough:
            break
        product = times(direction)
        length = left / np.vdot(direction, product)
        solution += length * direction
        residual -= length * product
        scaled, before = residual / diagonal, left
        left = np.vdot(residual, scaled)
        direction = scaled + left / before * direction
    return solution


def _softmax(logits: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each example (N,) and the probabilities; `logits` (C, N) are overwritten."""
    logits -= logits.max(0)
    chosen = np.einsum("cn,cn->n", wanted, logits)
    np.exp(logits, out=logits)
    total = logits.sum(0)
    logits /= total
    return np.log(total) - chosen, logits


def _sigmoid(logits: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses of all labels and the probabilities, both (C, N)."""
    small = np.exp(-np.abs(logits))  # never overflows, and is needed twice
    losses = np.log1p(small) + np.maximum(logits, 0) - wanted * logits
    return losses, np.where(logits < 0, small, 1) / (1 + small)
