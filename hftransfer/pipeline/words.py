"""A linear probe on the words of texts: what it is fitted on, and what it says of texts that did not fit it."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hftransfer.core.errors import UserError
from hftransfer.probe.fit import Probe, Rows
from hftransfer.probe.solver import LinearProbe, make_folds, refit
from hftransfer.strategies.head import HeadConfig
from hftransfer.tasks import Task
from hftransfer.tasks.tokens import ragged

if TYPE_CHECKING:
    from hftransfer.pipeline.run_context import RunContext

log = logging.getLogger(__name__)

MOST_WORDS, LEAST_OUTSIDE = 20_000, 5_000  # that a probe is fitted on: all of entities, a sample of the others
Folds = Sequence[tuple[np.ndarray, np.ndarray]]  # numbers of the texts to train on, and of those held out


def words_of(context: "RunContext", head: HeadConfig) -> tuple[Rows, Task, HeadConfig]:
    """Return all words as rows of their own, each in the group of its text, the task of a word, and the head's options.

    Of many words without an entity a sample is fitted, and each counts for those that it stands for. Raises `UserError`
    for the mean of a text.
    """
    if head.pooling == "mean":
        raise UserError("head.pooling=mean is of whole texts; each word is read by itself. Leave it out.")
    pieces, targets, owners = context.pieces, words(context), owners_of(context.targets)
    fitted, unit = _sampled(targets, np.flatnonzero(np.isin(owners, context.fitted)), context)
    ids = context.data.frame["id"].to_numpy() if context.groups is None else context.groups
    rows = Rows(pieces.items, pieces.keys, targets, fitted, ids[owners])
    return rows, unit, head.model_copy(update={"pooling": "head"})


def _sampled(targets: np.ndarray, fitted: np.ndarray, context: "RunContext") -> tuple[np.ndarray, Task]:
    """Return the words to fit on, and their task with weights where those without an entity are a sample."""
    outside, unit = fitted[targets[fitted] == 0], context.data.task.of_unit
    most = max(MOST_WORDS - (len(fitted) - len(outside)), LEAST_OUTSIDE)
    if len(outside) <= most:
        return fitted, unit
    kept = np.random.default_rng(context.config.seed).choice(outside, most, replace=False)
    log.info("Linear probe: %d of %d words without an entity are fitted", most, len(outside))
    given = np.array(unit.weights or np.ones(unit.head_size))
    given[0] *= len(outside) / most
    fitted = np.sort(np.concatenate([fitted[targets[fitted] != 0], kept]))
    return fitted, replace(unit, weights=tuple(map(float, given)))


def words(context: "RunContext") -> np.ndarray:
    """Return the tags (U,) of all words."""
    return context.data.task.units(context.targets).astype(np.int64)


def owners_of(targets: np.ndarray) -> np.ndarray:
    """Return the number of the text (U,) that each word belongs to, from the tags (N,) of all texts."""
    return np.repeat(np.arange(len(targets)), [len(tags) for tags in targets])


def of_texts(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return values (U, …) of words as those of each text (N,), in their order."""
    ends = np.cumsum([len(tags) for tags in targets])
    return ragged(np.split(values, ends[:-1]))


def held_out_words(
    features: np.ndarray, rows: Rows, unit: Task, head: LinearProbe, targets: np.ndarray, folds: Folds
) -> np.ndarray:
    """Return logits (N,) of (W, C): those of held-out texts by a head on the words of the others, NaN for the rest.

    Args:
        features: (U, D) of all words; `rows` and `unit` are of `words_of`.
        head: its penalty is that of every fold.
        targets: tags (N,) of all texts.
    """
    owners, logits = owners_of(targets), np.full((len(features), unit.head_size), np.nan)
    for train, held_out in folds:
        fitted = rows.fitted[np.isin(owners[rows.fitted], train)]
        asked = np.isin(owners, held_out)
        logits[asked] = refit(features[fitted], rows.targets[fitted], unit, head).logits(features[asked])
    return of_texts(logits, targets)


def unseen_logits(context: "RunContext", probe: Probe) -> np.ndarray:
    """Return logits of the fitted examples (F, C), or texts (F,) of (W, C), each by a probe that did not see it."""
    task, targets = context.data.task, context.targets
    if not task.by_word:
        return probe.cross_validated
    head, fitted = context.config.head, context.fitted
    groups = None if context.groups is None else context.groups[fitted]
    folds = make_folds(task, targets[fitted], groups, head.folds, context.config.seed)
    rows, unit, _ = words_of(context, head)
    by_texts = [(fitted[train], fitted[held_out]) for train, held_out in folds]
    return held_out_words(probe.features, rows, unit, probe.head, targets, by_texts)[fitted]
