"""Checks of labels: missing, too few, near-equal names, contradictions, numbers."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.data.sources import CLASS_FOLDER
from hftransfer.data.splits import single_examples
from hftransfer.data.values import number
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.modalities.duplicates import plain
from hftransfer.modalities.text import pair_texts

FEW = 10
IMBALANCE = 10
MOST_CODES = 50


def check_labels(facts: Facts) -> Iterator[Finding]:
    """Yield findings that the labels alone show, and those of contradicting copies."""
    missing = np.setdiff1d(np.flatnonzero(~facts.labelled), list(facts.mask_faults))
    if len(missing):
        message = f"No label: {len(missing)} of {len(facts.frame)} rows."
        yield Finding("label-missing", message, facts.where(missing))
    if facts.task.by_pixel:
        yield from _conflicts(facts)
        return
    yield from _numbers(facts)
    if facts.task.has_classes:
        yield from _class_sizes(facts)
        yield from _unknown_to_train(facts)
        yield from _near_equal(facts)
    yield from _conflicts(facts)


def names_of(label: Any) -> list[str]:
    """Return the class names of one label: none, one or several; those of its entities."""
    if label is None or isinstance(label, float):
        return []
    return [label] if isinstance(label, str) else [e["label"] if isinstance(e, dict) else e for e in label]


def near_equal_names(names: dict[str, int]) -> list[list[str]]:
    """Class names (with their sizes) that differ in case, blanks and punctuation alone, the largest class first."""
    alike = defaultdict(list)
    for name in sorted(names, key=lambda name: (-names[name], name)):
        # Numbers keep their marks: "-1" and "1" are two classes.
        alike[name if number(name) is not None else plain(name)].append(name)
    return [group for group in alike.values() if len(group) > 1]


def _sizes(facts: Facts) -> dict[str, int]:
    return dict(Counter(name for label in facts.frame["label"] for name in names_of(label)))


def _class_sizes(facts: Facts) -> Iterator[Finding]:
    sizes = _sizes(facts)
    if facts.task.exclusive and len(sizes) == 1:
        yield Finding("label-one-class", f"All {len(facts.frame)} examples are {next(iter(sizes))!r}.")
        return
    single = single_examples(facts.frame, facts.task, facts.config.split)
    if single.notna().any():
        rows = np.flatnonzero(single.notna())
        names = ", ".join(repr(facts.frame["label"].iloc[row]) for row in rows)
        yield Finding("label-single", f"One example only of {names}.", facts.where(rows))
    rare = {name: size for name, size in sizes.items() if size < FEW}
    if rare:
        shown = tuple(f"{name}: {size}" for name, size in sorted(rare.items(), key=lambda item: item[1]))
        yield Finding("label-rare", f"Fewer than {FEW} examples: {len(rare)} of {len(sizes)} classes.", shown)
    if sizes and max(sizes.values()) > IMBALANCE * min(sizes.values()):
        ordered = sorted(sizes, key=sizes.get)
        message = f"{ordered[-1]!r} has {sizes[ordered[-1]]} examples, {ordered[0]!r} has {sizes[ordered[0]]}."
        yield Finding("label-imbalance", message)


def _unknown_to_train(facts: Facts) -> Iterator[Finding]:
    splits = facts.frame["split"]
    if not (splits == "train").any():
        return
    known = {name for label in facts.frame["label"][splits == "train"] for name in names_of(label)}
    strange = {
        index: [name for name in names_of(label) if name not in known]
        for index, label in enumerate(facts.frame["label"])
        if any(name not in known for name in names_of(label))
    }
    if strange:
        names = sorted({name for found in strange.values() for name in found})
        message = f"Labels that the training part lacks: {', '.join(map(repr, names))} (rows: {len(strange)})."
        yield Finding("label-unknown", message, facts.where(list(strange)))


def _near_equal(facts: Facts) -> Iterator[Finding]:
    sizes = _sizes(facts)
    groups = near_equal_names(sizes)
    if groups:
        shown = tuple(" = ".join(f"{name!r} ({sizes[name]})" for name in group) for group in groups)
        yield Finding("label-near-equal", f"Written in several ways: {len(groups)} of the classes.", shown)


def _conflicts(facts: Facts) -> Iterator[Finding]:
    """Equal inputs with different labels; of near copies images, and texts that are the same but for punctuation.

    In a near copy of an image the pixels of a class may stand elsewhere: its mask is compared with none.
    """
    near = facts.links["nearly equal"][: 0 if facts.task.by_pixel else None]
    if facts.kind.content == "words" and len(near):
        texts = pair_texts(facts.frame)
        near = near[[plain(texts[i]) == plain(texts[j]) for i, j in near]]
    pairs = np.unique(np.concatenate([facts.links["equal"], near]), axis=0)
    spread = _spread(facts)
    against = np.array([pair for pair in pairs if _differ(facts.frame["label"], pair, spread)], dtype=int).reshape(
        -1, 2
    )
    if len(against):
        message = f"Pairs of equal or nearly equal inputs with different labels: {len(against)}."
        yield Finding("label-conflict", message, facts.describe_pairs(against))


def _spread(facts: Facts) -> float:
    """For numbers: a quarter of their standard deviation counts as a contradiction."""
    if facts.task.has_classes:
        return 0.0
    return 0.25 * float(np.std(np.concatenate([np.ravel(label) for label in facts.frame["label"].dropna()])))


def _differ(labels: pd.Series, pair: np.ndarray, spread: float) -> bool:
    first, second = labels.iloc[pair[0]], labels.iloc[pair[1]]
    if first is None or second is None or pd.isna(np.ravel(first)).any() or pd.isna(np.ravel(second)).any():
        return False
    if isinstance(first, bytes):
        return first != second
    if isinstance(first, str) or (isinstance(first, list) and all(isinstance(name, str) for name in [*first, *second])):
        return set(np.ravel(first)) != set(np.ravel(second))
    if isinstance(first, list) and any(isinstance(entry, dict) for entry in [*first, *second]):
        return first != second  # entities
    return bool(np.abs(np.ravel(first) - np.ravel(second)).max() > spread)


def _numbers(facts: Facts) -> Iterator[Finding]:
    """Numbers taken for classes, and whole numbers with few values taken for quantities."""
    if facts.config.task is not None or (facts.read and facts.read.sources[0].kind == CLASS_FOLDER):
        return
    if facts.task.exclusive and all(number(name) is not None for name in facts.task.names):
        names = ", ".join(facts.task.names[:8]) + (", …" if len(facts.task.names) > 8 else "")
        yield Finding("label-numbers", f"The numbers {names} are read as {len(facts.task.names)} classes.")
    if not facts.task.has_classes and facts.task.head_size == 1:
        values = set(facts.frame["label"].dropna())
        if len(values) <= MOST_CODES and all(float(value).is_integer() for value in values):
            yield Finding("label-numbers", f"The {len(values)} different whole numbers are read as quantities.")
