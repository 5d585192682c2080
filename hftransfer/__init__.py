"""Transfer learning for small labelled sets of images, texts and recordings, on the Hugging Face stack.

The public names are `RunConfig`, `run`, `load` and `predict`; they are imported on first use, because torch and
transformers take seconds to import.
"""

from typing import TYPE_CHECKING, Any

from hftransfer.core.version import __version__ as __version__

__all__ = ["RunConfig", "load", "predict", "run"]

if TYPE_CHECKING:
    from hftransfer.config import RunConfig
    from hftransfer.prediction.predictor import load, predict
    from hftransfer.train import run

# No module may be called `predict`: importing it would put the module where the function is expected.
_HOMES = {"RunConfig": "config", "run": "train", "load": "prediction.predictor", "predict": "prediction.predictor"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hftransfer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hftransfer.{_HOMES[name]}"), name)
