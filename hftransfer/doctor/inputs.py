"""Checks of the columns that are one input together: values that are missing, and values that tell the label."""

from collections.abc import Iterator

import numpy as np

from hftransfer.data.named_inputs import CATEGORY, NUMBER, NamedInputs
from hftransfer.data.values import is_missing
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.doctor.shortcuts import FOLDS, guess_accuracy

TELLS = 0.97  # balanced accuracy of one value alone: rarely honest


def check_named_inputs(facts: Facts) -> Iterator[Finding]:
    """Yield findings about combined inputs; nothing where the input is one column or a pair."""
    named = facts.read.columns[0].named if facts.read else None
    if named is not None:
        yield from _missing(facts, named)
        yield from _telling(facts, named)


def _missing(facts: Facts, named: NamedInputs) -> Iterator[Finding]:
    absent = np.array([[is_missing(value) for value in facts.raw[name]] for name in named.kinds])
    counts = [f"{name} {row.sum()}" for name, row in zip(named.kinds, absent, strict=True) if row.any()]
    if counts:
        message = f"Missing inputs, of {len(facts.raw)} rows: {', '.join(counts)}."
        yield Finding("input-missing", message, facts.where(np.flatnonzero(absent.any(0))))


def _telling(facts: Facts, named: NamedInputs) -> Iterator[Finding]:
    """Yield the values that alone give the label nearly always."""
    rows = np.flatnonzero(facts.labelled)
    if not facts.task.exclusive or len(rows) < 10 * FOLDS:
        return
    target = facts.task.encode_all(list(facts.frame["label"].iloc[rows]))
    for name in (name for name, kind in named.kinds.items() if kind in (NUMBER, CATEGORY)):
        accuracy, chance = guess_accuracy(list(facts.raw[name].iloc[rows]), target)
        if accuracy > max(TELLS, chance):
            yield Finding(
                "input-tells-label", f"The column {name!r} alone tells the class in {accuracy:.0%} of the cases."
            )
