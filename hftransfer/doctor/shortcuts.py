"""Checks whether something beside the content tells the label: a small classifier on each such thing alone."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hftransfer.data.sources import CLASS_FOLDER
from hftransfer.data.values import is_missing, number
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.modalities.duplicates import plain

ABOVE_CHANCE = 0.15
BINS = 8
FOLDS = 5
MOST_ROWS = 5000
NAMED_SHARE = 0.3


def check_hints(facts: Facts) -> Iterator[Finding]:
    """Yield findings for single-label data whose label can be guessed without looking at the content."""
    rows = np.flatnonzero(facts.labelled)
    if not facts.task.exclusive or len(rows) < 10 * FOLDS:
        return
    rows = rows[:: -(-len(rows) // MOST_ROWS)]
    target = facts.task.encode_all(list(facts.frame["label"].iloc[rows]))
    for name, values in _traits(facts, rows).items():
        yield from _told_by("label-in-input", f"The {name} of the {facts.kind.plural}", values, target)
    if facts.kind.content == "words":
        yield from _label_in_text(facts)
    if facts.kind.files:
        yield from _file_names(facts, rows, target)
    for name in _other_columns(facts):
        yield from _told_by("label-in-metadata", f"The column {name!r}", list(facts.raw[name].iloc[rows]), target)


def guess_accuracy(values: Sequence[Any], target: np.ndarray) -> tuple[float, float]:
    """Balanced accuracy (cross-validated) of guessing `target` from single values, and what chance gives.

    Numbers are cut into eight bins, words into tokens; the classifier is naive Bayes on which of these are present.
    """
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.naive_bayes import BernoulliNB

    enough = np.isin(target, np.flatnonzero(np.bincount(target) >= FOLDS))
    classes = len(np.unique(target[enough]))
    if classes < 2:
        return 0.0, 1.0
    features = _features([value for value, kept in zip(values, enough, strict=True) if kept])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    # A flat prior: with the classes' own the rare ones would never be guessed.
    bayes = BernoulliNB(class_prior=np.full(classes, 1 / classes))
    guess = cross_val_predict(bayes, features, target[enough], cv=folds)
    return float(balanced_accuracy_score(target[enough], guess)), 1 / classes


def _told_by(id_: str, what: str, values: Sequence[Any], target: np.ndarray) -> Iterator[Finding]:
    if len({str(value) for value in values}) < 2:
        return
    accuracy, chance = guess_accuracy(values, target)
    if accuracy > chance + max(ABOVE_CHANCE, 4 * (chance * (1 - chance) / len(target)) ** 0.5):
        yield Finding(id_, f"{what} alone tells the class in {accuracy:.0%} of the cases (chance: {chance:.0%}).")


def _features(values: list[Any]) -> Any:
    """Return a sparse 0/1 matrix (N, D) of bins or tokens."""
    from sklearn.feature_extraction.text import CountVectorizer

    numbers = [number(value) for value in values]
    if None not in numbers and len(set(numbers)) > BINS:
        edges = np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1)[1:-1]))
        values = [f"bin{index}" for index in np.digitize(numbers, edges)]
    words = CountVectorizer(analyzer=_tokens, binary=True, min_df=2)
    texts = ["missing" if is_missing(value) else str(value) for value in values]
    try:
        return words.fit_transform(texts)
    except ValueError:  # no token occurs twice
        return np.zeros((len(texts), 1))


def _tokens(text: str) -> list[str]:
    """Words and runs of digits, the whole, and the pattern (letters and digits by kind)."""
    pattern = re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", text))
    return [*re.findall(r"[^\W\d_]+|\d+", text.casefold()), f"whole:{text}", f"pattern:{pattern}"]


def _traits(facts: Facts, rows: np.ndarray) -> dict[str, list[Any]]:
    """Return what of a file a network can notice although it is not its matter."""
    found = [facts.kind.traits(facts.inspections[row]) for row in rows]
    return {name: [traits[name] for traits in found] for name in found[0]}


def _file_names(facts: Facts, rows: np.ndarray, target: np.ndarray) -> Iterator[Finding]:
    paths = facts.frame["input"].iloc[rows]
    if all(isinstance(path, str) for path in paths):
        names = [Path(path).stem for path in paths]
        yield from _told_by("label-in-metadata", "The file name (without its folder)", names, target)
        if facts.read is None or facts.read.sources[0].kind != CLASS_FOLDER:  # where the folder is the label itself
            folders = [Path(path).parent.name for path in paths]
            yield from _told_by("label-in-metadata", "The folder of the file", folders, target)


def _label_in_text(facts: Facts) -> Iterator[Finding]:
    """Classes whose own name stands in their texts, and hardly in others."""
    texts = [f" {plain(text)} " for text in facts.frame["input"]]
    labels = facts.frame["label"].to_numpy()
    told = []
    for name in facts.task.names:
        word = plain(name)
        has = np.array([f" {word} " in text for text in texts])
        own = labels == name
        if len(word) > 1 and own.any() and has[own].mean() >= NAMED_SHARE and own[has].mean() >= 0.9:
            told.append(f"{name}: in {has[own].mean():.0%} of its texts, {own[has].mean():.0%} of all that hold it")
    if told:
        message = f"Classes whose name stands in their own texts: {len(told)} of {len(facts.task.names)}."
        yield Finding("label-in-input", message, tuple(told))


def _other_columns(facts: Facts) -> list[str]:
    """Return the columns beside the data proper whose values repeat, each twice in the mean."""
    return [name for name in free_columns(facts) if facts.raw[name].astype(str).nunique() <= len(facts.raw) / 2]


def free_columns(facts: Facts) -> list[str]:
    """Return the columns that are neither input, label, id nor split."""
    given = {
        name
        for key in (facts.config.input, facts.config.label)
        if key
        for name in ([key] if isinstance(key, str) else key)
    }
    shown = facts.frame["input"].map(str)
    names = []
    for name in facts.raw.columns:
        values = facts.raw[name]
        if name in given or name.lower() in ("id", "split", "index") or isinstance(values.iloc[0], dict | list | bytes):
            continue
        texts = values.map(str)  # `astype(str)` would leave missing values missing
        is_label = (texts.str.strip() == facts.frame["label"].map(str)).all()
        is_input = all(given.endswith(text) for given, text in zip(shown.head(50), texts.head(50), strict=True))
        if not is_label and not is_input:
            names.append(name)
    return names
