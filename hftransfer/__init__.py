"""Transfer learning for small labelled sets of images, texts and recordings, on the Hugging Face stack.

The public names are `fit`, `RunConfig`, `run`, `load`, `predict`, and the estimators `TransferClassifier` and
`TransferRegressor`. They are imported on first use, because torch and transformers take seconds to import.
"""

from typing import TYPE_CHECKING, Any

from hftransfer.core.version import __version__ as __version__

__all__ = ["RunConfig", "TransferClassifier", "TransferRegressor", "fit", "load", "predict", "run"]

if TYPE_CHECKING:
    from hftransfer.api import fit as fit
    from hftransfer.config import RunConfig as RunConfig
    from hftransfer.estimators import TransferClassifier as TransferClassifier
    from hftransfer.estimators import TransferRegressor as TransferRegressor
    from hftransfer.prediction.predictor import load as load
    from hftransfer.prediction.predictor import predict as predict
    from hftransfer.train import run as run

# No module may be called `predict`: importing it would put the module where the function is expected.
_HOMES = {
    "RunConfig": "config", "fit": "api", "run": "train", "load": "prediction.predictor", "predict": "prediction.predictor",
    "TransferClassifier": "estimators", "TransferRegressor": "estimators",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hftransfer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hftransfer.{_HOMES[name]}"), name)
