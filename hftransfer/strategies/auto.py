"""Let the data choose: every layer group from the probe to full training is measured on held-out rows within a time budget.

No strategy of its own: `advice` measures the others and the run goes on as the one that was chosen, which is what its
`config.yaml` then names.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from hftransfer.core.settings import Settings

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(budget: str | int | float) -> float:
    """90s, 10m, 1h or a plain number of seconds as seconds. Raises `ValueError` for anything else, and for nothing."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(budget))
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not seconds:
        raise ValueError(budget)
    return seconds


def _checked(budget: str | int | float) -> str | int | float:
    try:
        seconds_of(budget)
    except ValueError:
        raise PydanticCustomError("budget", "expected a time such as 90s, 10m, 1h, or a number of seconds") from None
    return budget


class AutoStrategy(Settings):
    """Measure candidates and keep one.

    `budget`: time for measuring and for the final training. `prefer`: the highest expected accuracy, from prior results and
    held-out examples, or the simplest of those that the held-out examples cannot separate.
    """

    type: Literal["auto"] = "auto"
    budget: Annotated[str | int | float, AfterValidator(_checked)] = "10m"
    prefer: Literal["simplicity", "accuracy"] = "accuracy"

    @property
    def seconds(self) -> float:
        return seconds_of(self.budget)
