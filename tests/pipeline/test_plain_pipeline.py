"""What a check of the plain pipeline says: of equal answers how many, of others which, and what to try."""

import time
from types import SimpleNamespace

import pytest
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.pipeline.plain_pipeline import concluded

CONTEXT = SimpleNamespace(model=nn.Linear(1, 1))


def test_equal_answers_are_counted():
    assert concluded(CONTEXT, "masks", "images", 3, [], time.perf_counter())["examples"] == 3


def test_other_answers_are_an_error_that_names_them():
    with pytest.raises(
        UserError, match="finds other masks in 2 of 3 images \\(a, b\\). The run is not complete."
    ) as error:
        concluded(CONTEXT, "masks", "images", 3, ["a", "b"], time.perf_counter())
    assert "Linear cannot be used here" in str(error.value)
