"""Numbers and names as people read them; shared by log, terminal, report and card."""

import math
from collections.abc import Sequence
from typing import Any

DONE = {"relabel": "relabelled", "drop": "dropped", "group": "grouped", "add": "added"}


def listed(names: Sequence[str]) -> str:
    """Return names as they stand in a sentence: "photo, price and brand"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def percent(share: float) -> str:
    """Return a share to three digits, such as that of the weights that train: `0.378 %`."""
    return f"{100 * share:.3g} %"


def ends(measured: dict[str, Any], digits: int = 4) -> str:
    """Return the interval of a number, such as `0.8260 to 0.9450`; in words where it is not known (docs/coverage.md)."""
    if math.isnan(measured["low"]) or math.isnan(measured["high"]):
        return "not known"
    return f"{measured['low']:.{digits}f} to {measured['high']:.{digits}f}"


def describe(about: dict[str, Any], split: str | None = None) -> str:
    """Return what a patch did to one split, or in all: "12 relabelled, 3 dropped" ("" where nothing was done)."""
    counts = {name: about[name].get(split, 0) if split else sum(about[name].values()) for name in DONE.values()}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
