"""The short way in from Python: `fit(data)` trains on what is in memory, or on a path, and returns the `Run`."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import pandas as pd

from hftransfer.config import with_overrides
from hftransfer.core.errors import UserError
from hftransfer.train import Run, run


def fit(
    data: Any,
    label: str | Sequence[str] | None = None,
    *,
    input: str | Sequence[str] | None = None,
    model: str = "auto",
    strategy: str | Mapping[str, Any] = "probe",
    task: str | None = None,
    output: str | PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Adapt the checkpoint `model` to labelled `data` and return the finished run.

    Args:
        data: a path (class folders, a table, "starter/…", "hub:…"), a `pandas.DataFrame`, a `datasets.Dataset` or
            `DatasetDict`, or a pair of sequences (inputs, labels). Inputs are texts, paths, Pillow images, or arrays of
            pixels (H, W) or (H, W, 3).
        label: column(s) of the labels; None finds it from the content. `input` likewise.
        strategy: a name, or a mapping with options such as {"type": "lora", "r": 16}.
        output: the run folder to make; None is `runs/<data>-<strategy>`.
        options: further configuration, such as {"training.max_steps": 200, "data.split.group": "patient"}.

    Raises `UserError` for every mistake in the input.
    """
    reference, dataset = _where(data)
    if _is_pair(data) and (label or input):
        raise UserError("Inputs and labels were given as two lists: leave `label` and `input` out.")
    strategy = {"type": strategy} if isinstance(strategy, str) else dict(strategy)
    chosen = {
        "data.train": reference,
        "data.label": _names("label" if _is_pair(data) else label),
        "data.input": _names("input" if _is_pair(data) else input),
        "data.task": task,
        "output": None if output is None else fspath(output),
    }
    values = {"data": {}, "model": {"name": model}, "strategy": strategy}
    named = {key: value for key, value in chosen.items() if value is not None}
    return run(with_overrides(values, named | dict(options or {})), dataset)


def table(inputs: Sequence[Any], labels: Sequence[Any]) -> pd.DataFrame:
    """Return inputs and labels as a table with these columns. Raises `UserError` where their numbers differ."""
    inputs, labels = list(inputs), list(labels)
    if len(inputs) != len(labels):
        raise UserError(f"Every input needs a label: {len(inputs)} inputs and {len(labels)} labels were given.")
    return pd.DataFrame({"input": pd.Series(inputs, dtype=object), "label": pd.Series(labels, dtype=object)})


def _where(data: Any) -> tuple[str | None, Any]:
    """Return the path of the data, or the data set in memory."""
    if isinstance(data, str | PathLike):
        return fspath(data), None
    return None, table(*data) if _is_pair(data) else data


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], str)


def _names(columns: str | Sequence[str] | None) -> str | list[str] | None:
    return columns if columns is None or isinstance(columns, str) else list(columns)
