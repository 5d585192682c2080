"""How the linear probe is made; any strategy may begin with it (`head_init: probe`)."""

from typing import Literal

from pydantic import Field

from hftransfer.core.settings import Settings


class HeadConfig(Settings):
    """The head that is solved on frozen features: logistic regression, or ridge for numbers.

    `layer`: which block's features to read: the last, a number counted from 1, or the best by cross-validation (the
    blocks above are then taken off the saved model). `pooling` (text): what the checkpoint's own head reads, the mean of
    the tokens, or the better of the two by cross-validation.
    `folds`: of the cross-validation.
    """

    layer: Literal["last", "best"] | int = "last"
    pooling: Literal["auto", "head", "mean"] = "auto"
    folds: int = Field(5, ge=2)
