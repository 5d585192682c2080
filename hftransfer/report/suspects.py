"""Labels that are likely wrong, searched among predictions for rows that were not trained on: for review, never for deletion."""

import logging
import warnings
from collections.abc import Sequence

import numpy as np

from hftransfer.evaluation.suspects import corrected, suspect_masks, suspect_texts
from hftransfer.report.picked import SHOWN, Picked, words
from hftransfer.runs.predictions import places_of
from hftransfer.runs.reader import Part, RecordedRun
from hftransfer.tasks import Task
from hftransfer.tasks.masks import shares

logger = logging.getLogger(__name__)


def searches_labels(task: Task) -> bool:
    """Return whether likely wrong labels of a task can be searched."""
    return task.has_classes


def label_errors(run: RecordedRun, count: int = SHOWN) -> Picked | None:
    """Rows whose label is likely wrong, by confident learning (Northcutt et al. 2021) on out-of-sample probabilities.

    Training rows are predicted by folds that did not see them, where the run has them, and evaluated rows by the model.
    On benchmarks about half of what is flagged is truly wrong: for review, never for deletion. Words and pixels are searched
    by `evaluation.suspects`. None where the method is not at hand: for regression, or without cleanlab.
    """
    if not searches_labels(run.task) or not (run.task.by_part or _has_cleanlab()):
        return None
    part = unseen(run)
    if run.task.by_word:
        return _texts(run.task, part, count)
    if run.task.by_pixel:
        return _masks(run.task, part, count)
    try:
        with warnings.catch_warnings():
            # A class of few examples: the list is short.
            warnings.filterwarnings("ignore", "May not flag all label issues")
            rows = _find_label_issues(run.task.exclusive, part)[:count]
    except ValueError as error:  # cleanlab's own conditions on labels; the report is complete without this list
        logger.warning("The report has no likely label errors: cleanlab cannot search them (%s)", error)
        return None
    suggested = [run.task.decode(row) for row in run.task.decide(part.scores[rows])]
    notes = [f"{_probability_of_label(run.task, part, row):.0%} for the given label" for row in rows]
    return Picked(part, rows, [words(answer) for answer in suggested], notes)


def _texts(task: Task, part: Part, count: int) -> Picked:
    places, texts, labels = places_of(part.frame), part.frame["input"].tolist(), part.frame["label"].tolist()
    found = suspect_texts(task, part.targets, part.scores)[:count]
    rows = [suspect.row for suspect in found]
    better = [corrected(task, labels[s.row], texts[s.row], places[s.row], s) for s in found]
    notes = [f"{suspect.given:.0%} for the given label" for suspect in found]
    answers = [words(label, texts[row]) for row, label in zip(rows, better, strict=True)]
    return Picked(part, rows, answers, notes, suggested=better)


def _masks(task: Task, part: Part, count: int) -> Picked:
    found = suspect_masks(part.targets, part.scores, len(task.names))[:count]
    rows = [row for row, _ in found]
    areas = [shares(answer) for answer in task.answers(part.scores[rows], (), ())]
    return Picked(
        part, rows, areas, [f"another class with certainty to {share:.1%} of the pixels" for _, share in found]
    )


def unseen(run: RecordedRun) -> Part:
    """Return the rows with predictions of models that did not see them: out of fold, and of the part that judges the run."""
    return joined([part for part in (run.out_of_fold, run.part(run.evaluated)) if part is not None])


def _has_cleanlab() -> bool:
    from importlib.util import find_spec

    return find_spec("cleanlab") is not None


def _find_label_issues(exclusive: bool, part: Part) -> np.ndarray:
    """Row numbers, likeliest first."""
    if not exclusive and part.scores.shape[1] == 1:
        exclusive, part = True, _as_classes(part)
    if exclusive:
        from cleanlab.filter import find_label_issues

        if len(np.unique(part.targets)) < part.scores.shape[1]:
            return np.array([], dtype=int)  # a class without rows: its threshold is undefined
        return find_label_issues(part.targets, part.scores, return_indices_ranked_by="self_confidence", n_jobs=1)
    from cleanlab.multilabel_classification.filter import find_label_issues as find_in_labels

    labels = [np.flatnonzero(row).tolist() for row in part.targets]
    return find_in_labels(labels, part.scores, return_indices_ranked_by="self_confidence", n_jobs=1)


def _as_classes(part: Part) -> Part:
    """Return the yes/no answers to one single label as two classes: cleanlab reads several labels alone."""
    return Part(part.frame, part.targets[:, 0].astype(int), np.hstack([1 - part.scores, part.scores]))


def _probability_of_label(task: Task, part: Part, row: int) -> float:
    if task.exclusive:
        return part.scores[row, part.targets[row]]
    return np.where(part.targets[row] > 0.5, part.scores[row], 1 - part.scores[row]).min()


def joined(parts: Sequence[Part]) -> Part:
    """Several parts as one."""
    import pandas as pd

    return Part(
        pd.concat([part.frame for part in parts], ignore_index=True),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )
