"""Checks of copies: within the data, across given splits, and across the split that would be cut."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hftransfer.data.groups import COPIES
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.modalities.duplicates import components

LIKELY_LEAK = 0.005


def check_copies(facts: Facts) -> Iterator[Finding]:
    """Yield findings about equal and nearly equal inputs, and about series of files."""
    equal, near = facts.links["equal"], facts.links["nearly equal"]
    if len(equal):
        rows = len(np.unique(equal))
        message = f"Rows with an equal input elsewhere: {rows} (groups: {_groups(facts, equal)})."
        yield Finding("duplicate", message, facts.describe_pairs(equal))
    only_near = _without(near, equal, len(facts.frame))
    if len(only_near):
        rows = len(np.unique(only_near))
        message = f"Rows with a near copy: {rows} of {len(facts.frame)} (groups: {_groups(facts, only_near)})."
        yield Finding("duplicate-near", message, facts.describe_pairs(only_near))
    if facts.frame["split"].notna().any():
        yield from _across(facts, "leak", equal, "In the training part too")
        yield from _across(facts, "leak-near", only_near, "With a near copy in the training part")
        yield from _divided_groups(facts)
    yield from _halves(facts)
    yield from _ahead(facts)


def rows_with_partner(facts: Facts, pairs: np.ndarray, split: str) -> np.ndarray:
    """Row numbers of `split` that are connected by `pairs` to a training row."""
    component = components(len(facts.frame), pairs)
    splits = facts.frame["split"].to_numpy()
    trained = np.unique(component[splits == "train"])
    return np.flatnonzero(np.isin(component, trained) & (splits == split))


def _groups(facts: Facts, pairs: np.ndarray) -> int:
    return int((np.bincount(components(len(facts.frame), pairs)) > 1).sum())


def _without(near: np.ndarray, equal: np.ndarray, count: int) -> np.ndarray:
    """Return the pairs of `near` that are not equal outright."""
    component = components(count, equal)
    return near[component[near[:, 0]] != component[near[:, 1]]]


def _across(facts: Facts, id_: str, pairs: np.ndarray, what: str) -> Iterator[Finding]:
    parts = {split: rows_with_partner(facts, pairs, split) for split in ("test", "validation")}
    counts = [
        f"{len(rows)} of {(facts.frame['split'] == split).sum()} {split} rows"
        for split, rows in parts.items()
        if len(rows)
    ]
    if counts:
        splits = facts.frame["split"].to_numpy()
        crossing = pairs[(splits[pairs] == "train").any(1) & (splits[pairs] != "train").any(1)]
        yield Finding(id_, f"{what}: {' and '.join(counts)}.", facts.describe_pairs(crossing))


def _divided_groups(facts: Facts) -> Iterator[Finding]:
    given = facts.frame[~facts.frame["group"].astype(str).str.startswith(COPIES)]  # copies are reported as such
    groups = given.dropna(subset="group").groupby("group")
    torn = [str(name) for name, rows in groups if rows["split"].nunique() > 1]
    if torn:
        yield Finding(
            "group-divided", f"Groups that stand in several splits: {len(torn)} of {groups.ngroups}.", tuple(torn)
        )


def _halves(facts: Facts) -> Iterator[Finding]:
    if "input_pair" not in facts.frame or not (facts.frame["split"] == "train").any():
        return
    train, test = (facts.frame[facts.frame["split"] == split] for split in ("train", "test"))
    known = set(train["input"]) | set(train["input_pair"])
    rows = np.flatnonzero(
        (facts.frame["split"] == "test") & (facts.frame["input"].isin(known) | facts.frame["input_pair"].isin(known))
    )
    if len(rows):
        message = f"Sharing a text with the training part: {len(rows)} of {len(test)} test pairs."
        yield Finding("leak-pair", message, facts.where(rows))


def _ahead(facts: Facts) -> Iterator[Finding]:
    """Yield what a division without groups would tear apart, by trying it."""
    if facts.divided is None:
        return
    pairs = np.concatenate(list(facts.links.values()))
    tried = replace(facts, frame=facts.divided)
    rows = rows_with_partner(tried, pairs, "test")
    test = int((facts.divided["split"] == "test").sum())
    if len(rows) > LIKELY_LEAK * test:
        reasons = ", ".join(f"{len(np.unique(found))} {kind}" for kind, found in facts.links.items() if len(found))
        message = (
            f"A random split would leave {len(rows)} of {test} test rows beside a relative in training ({reasons})."
        )
        yield Finding("leak-ahead", message, tried.where(rows))
