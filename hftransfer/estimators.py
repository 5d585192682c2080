"""scikit-learn estimators: `TransferClassifier` and `TransferRegressor` on texts, paths, Pillow images or arrays of pixels.

A fit leaves no run folder. Where only a head is solved (`strategy="probe"`, the default), features are read by way of the
feature store: cross-validation and grid searches compute those of each input once.
"""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import nn

from hftransfer.config import RunConfig, with_overrides
from hftransfer.data import LabelledData, load_data
from hftransfer.features.extract import FrozenPass
from hftransfer.features.passes import predict_logits
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import load_checkpoint
from hftransfer.pipeline.fit import Seconds, fit
from hftransfer.pipeline.run_context import RunContext, finalise, prepare
from hftransfer.probe.fit import Probe, features_again
from hftransfer.runtime import devices
from hftransfer.runtime.interruption import Stop
from hftransfer.runtime.launch import World
from hftransfer.strategies.base import Strategy
from hftransfer.tasks import Regression, SingleLabel

LABEL, INPUTS = "label", ("input", "input_pair")


@dataclass(frozen=True)
class _Fitted:
    """What a fit leaves: the network; for a solved head also the network before it, with which features are read."""

    context: RunContext
    model: nn.Module
    probe: Probe | None
    untouched: FrozenPass | None
    temperature: float

    def logits(self, frame: pd.DataFrame) -> np.ndarray:
        """Return the calibrated logits (N, C) of the rows of `frame`, numbers in the user's units. Raises `UserError`."""
        context = self.context
        items = context.modality.encode(frame)
        if self.untouched is None or self.probe is None:
            return predict_logits(self.model, context.modality, items, context.compute_config)
        keys, deployed = context.data.kind.digests(frame), context.frozen(LayerGroups.of(self.model))
        features = features_again(self.untouched, deployed, items, keys, context.config.head, self.probe.feature_source)
        return context.data.task.in_units(self.probe.head.logits(features)) / self.temperature


class _TransferEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: parameters, the fit, and the logits of further inputs."""

    def __init__(
        self,
        model: str = "auto",
        strategy: str | Mapping[str, Any] = "probe",
        options: Mapping[str, Any] | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.strategy = strategy
        self.options = options
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.string = tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = False
        return tags

    def _configuration(self, columns: Sequence[str], task: str) -> RunConfig:
        strategy = {"type": self.strategy} if isinstance(self.strategy, str) else dict(self.strategy)
        if strategy.get("type") == "auto":
            raise ValueError("An estimator has one strategy: search over several of them with GridSearchCV.")
        split = {"test": 0.0, "seed": self.random_state}
        data = {"input": list(columns), "label": LABEL, "task": task, "split": split}
        values = {"data": data, "model": {"name": self.model}, "strategy": strategy, "seed": self.random_state}
        return with_overrides(values, self.options or {})

    def _fit(self, X: Any, labels: Sequence[Any], task: str) -> _Fitted:
        frame = as_table(X)
        if len(frame) != len(labels):
            raise ValueError(f"X and y have inconsistent numbers of samples: {len(frame)} and {len(labels)}.")
        config = self._configuration(frame.columns, task)
        data = load_data(config.data, frame.assign(**{LABEL: pd.Series(labels, dtype=object)}))
        with tempfile.TemporaryDirectory(prefix="hftransfer-") as scratch, devices.threads_as_before():
            return _fitted(config.resolved(data), data, Path(scratch))

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "fitted_")
        table = as_table(X)
        kind = self.fitted_.context.data.kind
        values = {
            role: [kind.encoded(value) for value in table[name]] for role, name in zip(INPUTS, table, strict=False)
        }
        ids = [f"input {number}" for number in range(1, len(table) + 1)]
        with devices.threads_as_before():
            logits: np.ndarray = self.fitted_.logits(pd.DataFrame({"id": ids} | values, dtype=object))
        return logits


class TransferClassifier(ClassifierMixin, _TransferEstimator):  # type: ignore[misc]
    """Classifier of texts, images or recordings on a pretrained checkpoint.

    Args:
        model: a checkpoint as in `hftransfer train --model`; "auto" is the default of the inputs.
        strategy: "probe", "frozen", "full", "gradual", "lora", "scratch", or a mapping such as {"type": "lora", "r": 16}.
        options: further configuration, such as {"training.max_steps": 200}.
        random_state: seed of the head, the folds and the training.

    Attributes:
        classes_: labels as they were given, in the order of the columns of `predict_proba`.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on inputs `X` and one label for each. Raises `UserError` for inputs that cannot be read."""
        y = _one_dimensional(y)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        names = _names(self.classes_)
        self.fitted_ = self._fit(X, [names[index] for index in indices], SingleLabel.type)
        known = self.fitted_.context.data.task.names
        self._order = [known.index(name) for name in names]
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return calibrated probabilities (N, C), columns as in `classes_`."""
        logits = self._logits(X)
        probabilities: np.ndarray = self.fitted_.context.data.task.probabilities(logits)
        return probabilities[:, self._order]

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of every input."""
        probabilities = self.predict_proba(X)
        found: np.ndarray = self.classes_[probabilities.argmax(1)]
        return found


class TransferRegressor(RegressorMixin, _TransferEstimator):  # type: ignore[misc]
    """Regressor of texts, images or recordings on a pretrained checkpoint; parameters as in `TransferClassifier`."""

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on inputs `X` and one number for each. Raises `UserError` for inputs that cannot be read."""
        numbers = np.asarray(_one_dimensional(y), dtype=np.float64)
        self.fitted_ = self._fit(X, numbers.tolist(), Regression.type)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return a number for every input (N,)."""
        return self._logits(X)[:, 0].astype(np.float64)


def _fitted(config: RunConfig, data: LabelledData, scratch: Path) -> _Fitted:
    """Fit as a run does, without its folder."""
    from accelerate.utils import set_seed

    set_seed(config.seed)
    random_weights = isinstance(config.strategy, Strategy) and config.strategy.from_random_weights
    checkpoint = load_checkpoint(config.model, data.kind, data.task, random_weights)
    device = devices.choose_device(use_cpu=config.use_cpu)
    context = prepare(config, data, checkpoint, device, World(), scratch / "features")
    untouched = _untouched(context) if config.store and not context.trains else None
    fitted = fit(context, scratch, Stop(), Seconds(World()))
    temperature = finalise(context, fitted.predictions).temperature
    model = fitted.plan.finish(fitted.plan.model).eval()
    return _Fitted(_without_examples(context), model, fitted.probe, untouched, temperature)


def _untouched(context: RunContext) -> FrozenPass:
    """Return a copy of the network that solving a head leaves as it is."""
    frozen = context.frozen(LayerGroups.of(context.model))
    model = copy.deepcopy(context.model)
    return replace(frozen, model=model, layer_groups=LayerGroups.of(model))


def _without_examples(context: RunContext) -> RunContext:
    """Return the context without its training examples: a fitted estimator is copied, sent and pickled."""
    data = replace(context.data, frame=context.data.frame[:0], inspections=[], links=None)
    return replace(context, data=data, items=[], targets=context.targets[:0])


def as_table(X: Any) -> pd.DataFrame:
    """Return inputs as a table of one column, or of two for pairs of texts.

    Raises `ValueError` for arrays of numbers (n, features): expected are texts, paths, or images (n, height, width).
    """
    if issparse(X):
        raise TypeError("Sparse data are no input here: expected texts, paths, Pillow images or arrays of pixels.")
    if isinstance(X, pd.Series):
        X = X.to_frame()
    if isinstance(X, pd.DataFrame):
        table = X.reset_index(drop=True).astype(object)
    else:
        if isinstance(X, np.ndarray) and X.ndim < 3 and X.dtype != object and np.issubdtype(X.dtype, np.number):
            raise ValueError(
                f"Expected texts, paths, Pillow images or arrays of pixels (n, height, width); found numbers {X.shape}. "
                "Reshape your data to images, or use an estimator of scikit-learn itself."
            )
        rows = [fspath(value) if isinstance(value, PathLike) else value for value in X]
        pairs = isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] == 2
        table = pd.DataFrame(list(map(list, rows)), dtype=object) if pairs else pd.Series(rows, dtype=object).to_frame()
    if len(table.columns) not in (1, 2):
        raise ValueError(f"Expected one column of inputs, or two of text pairs; found {len(table.columns)}.")
    if table.empty:
        raise ValueError("Found array with 0 sample(s): at least one input is required.")
    return table.set_axis(list(INPUTS[: len(table.columns)]), axis=1)


def _one_dimensional(y: Any) -> np.ndarray:
    """Return the labels (n,). Raises `ValueError` where there are none, or several for each input."""
    if y is None:
        raise ValueError("This estimator requires y to be passed, but the target y is None.")
    labels: np.ndarray = column_or_1d(y, warn=True)
    return labels


def _names(classes: np.ndarray) -> list[str]:
    """Return a name for every class: as it is written, or a number where two would be written alike."""
    names = [str(value).strip() for value in classes]
    usable = len(set(names)) == len(names) and all(name and name.lower() not in ("nan", "none") for name in names)
    return names if usable else [f"class {number}" for number in range(len(names))]
