"""Check whether rows of one speaker, patient or author stand on both sides of a split although a column names them."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.doctor.shortcuts import free_columns


def check_sources(facts: Facts) -> Iterator[Finding]:
    """Yield a finding for each column of sources that no group keeps together, by given splits or by trying one."""
    if facts.config.split.group or facts.frame["group"].notna().any():
        return
    given = (facts.frame["split"] == "test").any()
    divided = facts.frame if given else facts.divided
    if divided is None:
        return
    for name in free_columns(facts):
        if name.lower() in facts.kind.source_columns:
            yield from _shared(facts, divided["split"].to_numpy(), name, "stand" if given else "would stand")


def _shared(facts: Facts, splits: np.ndarray, name: str, stand: str) -> Iterator[Finding]:
    """Yield a finding where test rows share their value of the column `name` with training rows."""
    sources = facts.raw[name].astype(object).where(facts.raw[name].notna(), None)
    known = pd.unique(sources[splits == "train"].dropna())
    test = splits == "test"
    rows = np.flatnonzero(test & sources.isin(known).to_numpy())
    if len(rows):
        shared = sources.iloc[rows].nunique()
        message = (
            f"Sources of the column {name!r} on both sides: {shared} of {sources.nunique()}. With them {len(rows)} of "
            f"{test.sum()} test rows {stand} beside training rows of the same source. Try data.split.group={name}."
        )
        yield Finding("source-divided", message, facts.where(rows))
