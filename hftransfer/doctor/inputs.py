"""Checks of the columns that are one input together: values that are missing, and values that tell the label."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from hftransfer.data.named_inputs import CATEGORY, NUMBER, NamedInputs
from hftransfer.data.named_rows import column_of, faults, inspections_of, is_column, networks_of, together
from hftransfer.data.values import is_missing
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.doctor.shortcuts import FOLDS, guess_accuracy
from hftransfer.modalities import kind_of
from hftransfer.modalities.inspection import Inspection

TELLS = 0.97  # balanced accuracy of one value alone: rarely honest


def check_named_inputs(facts: Facts) -> Iterator[Finding]:
    """Yield findings about combined inputs; nothing where the input is one column or a pair."""
    named = facts.read.columns[0].named if facts.read else None
    if named is not None:
        yield from _missing(facts, named)
        yield from _telling(facts, named)
        for name in named.files:
            yield from _conflicting(facts, name)


def rows_of_several(frame: pd.DataFrame, kinds: Mapping[str, str]) -> list[Inspection]:
    """Return one inspection for each row of several inputs: that of the first file, with the content and fault of all."""
    looks = inspections_of(frame, kinds)
    shown = looks[NamedInputs(dict(kinds)).files[0]]
    return [
        replace(each, digest=digest, fault=fault)
        for each, digest, fault in zip(shown, together(looks), faults(looks), strict=True)
    ]


def inputs_of(facts: Facts) -> Iterator[Facts]:
    """Yield the facts themselves, or those of each of several inputs with a network, on the rows that have it."""
    if not facts.several:
        yield facts
        return
    kinds = facts.read.columns[0].named.kinds
    for name in networks_of(kinds):
        rows = facts.frame[facts.frame[column_of(name)].notna()].reset_index(drop=True)
        if rows.empty:
            continue
        rows = rows.assign(input=rows[column_of(name)], where=rows["where"] + f" ({name})")
        rows = rows[[each for each in rows if not is_column(each)]]
        inspections = kind_of(kinds[name]).inspect(rows)
        yield replace(facts, frame=rows, modality=kinds[name], inspections=inspections, read=None, known_links=None)


def _conflicting(facts: Facts, name: str) -> Iterator[Finding]:
    """Yield files that stand in several rows with labels that differ."""
    given = facts.frame[facts.frame[column_of(name)].notna() & facts.labelled]
    files = pd.DataFrame({"input": given[column_of(name)]}, dtype=object)
    digests = kind_of(facts.read.columns[0].named.kinds[name]).digests(files)
    groups = given.assign(digest=digests, said=given["label"].map(str)).query("digest != ''").groupby("digest")
    several = [rows for _, rows in groups if rows["said"].nunique() > 1]
    if several:
        shown = tuple("  =  ".join(f"{row.where} [{row.said}]" for row in rows.itertuples()) for rows in several)
        count = sum(map(len, several))
        yield Finding(
            "input-conflict", f"Equal {name} with labels that differ: {len(several)}, in {count} rows.", shown
        )


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
