"""What is worth a second look in a finished run: likely label errors, contradicting copies, confused pairs, corrections."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.groups import links
from hftransfer.data.patch import Decision, numbered_lines
from hftransfer.modalities import kind_of
from hftransfer.modalities.duplicates import components
from hftransfer.modalities.inspection import Inspection
from hftransfer.report.picked import in_words, words
from hftransfer.report.suspects import label_errors, unseen
from hftransfer.runs.reader import Part, RecordedRun, plain_label

log = logging.getLogger(__name__)

KINDS = {
    "label errors": "likely label errors",
    "copies": "copies with different labels",
    "confused": "confused pairs",
    "corrections": "corrections from the demo",
}
MOST_ITEMS = 500  # of a kind: nobody looks at more at one sitting
MOST_COPIES = 6  # shown beside one another
CONFUSED_PAIRS, ROWS_OF_A_PAIR = 5, 10
CHOICES = 9  # one key each


@dataclass(frozen=True)
class Row:
    """One example as it is shown; `digest` is that of its input now, `split` is empty for a correction."""

    id: str
    digest: str
    split: str
    label: Any
    input: str
    input_pair: str | None = None

    def decision(self, action: str, when: str, **values: Any) -> Decision:
        return Decision(action=action, id=self.id, digest=self.digest, when=when, **values)


@dataclass(frozen=True)
class Item:
    """One question to a person: rows of one label question, why they are shown, and labels to choose from.

    `choices` are (label, probability or None), the suggestion first.
    """

    kind: str
    rows: tuple[Row, ...]
    why: str
    choices: tuple[tuple[Any, float | None], ...]

    @property
    def is_new(self) -> bool:
        """Whether the row is no part of the data yet."""
        return self.kind == "corrections"

    def relabel(self, label: Any, when: str) -> list[Decision]:
        """Rows that have the label already are kept as they are."""
        if self.is_new:
            row = self.rows[0]
            pair = {} if row.input_pair is None else {"input_pair": row.input_pair}
            return [row.decision("add", when, label=label, input=row.input, **pair)]
        return [
            row.decision("keep", when) if row.label == label else row.decision("relabel", when, label=label)
            for row in self.rows
        ]

    def group(self, when: str) -> list[Decision]:
        name = f"copies of {min(row.id for row in self.rows)}"
        return [row.decision("group", when, group=name) for row in self.rows]

    def all(self, action: str, when: str) -> list[Decision]:
        return [row.decision(action, when) for row in self.rows]


def percent(share: float) -> str:
    """Return a probability, without claiming certainty."""
    return "<1%" if share < 0.01 else ">99%" if share > 0.99 else f"{share:.0%}"


class Queue:
    """Every item of a run, most promising kind first; a row stands in one item only.

    Copies with different labels cannot all be right: they are taken first. A family of many similar rows is rather a
    template, whose members may well differ.
    """

    def __init__(self, run: RecordedRun, corrections: Path, patch: Path):
        self.run, self.corrections, self.place = run, corrections, patch.resolve().parent
        gone = sum(bool(inspection.fault) for inspection in self._inspections)
        if gone:
            log.warning("%d rows are not shown: their input is not at hand any more", gone)
        if run.out_of_fold is None:
            kind = kind_of(run.record.modality).for_task(run.task)
            which = "strategy.head_init=probe, such as a probe," if kind.solves_head else "evaluation.folds=5"
            log.warning("The run has no answers of models that did not see the training rows: only its %s rows are shown. "
                        "A run with %s has them", run.evaluated, which)  # fmt: skip
        found: dict[tuple[str, ...], Item] = {}
        seen: set[str] = set()
        for item in (*self._copies(), *self._label_errors(), *self._confused(), *self._corrections()):
            if not seen & {row.id for row in item.rows}:
                found[tuple(row.id for row in item.rows)] = item
                seen |= {row.id for row in item.rows}
        order = list(KINDS)
        self.items = sorted(found.values(), key=lambda item: order.index(item.kind))

    @cached_property
    def _frame(self) -> pd.DataFrame:
        return self.run.splits.assign(label=self.run.splits["label"].map(plain_label))

    @cached_property
    def _inspections(self) -> pd.Series:
        inspections = kind_of(self.run.record.modality).inspect(self._frame)
        return pd.Series(inspections, index=self._frame["id"], dtype=object)

    @cached_property
    def _rows(self) -> dict[str, Row]:
        inspections: dict[str, Inspection] = self._inspections.to_dict()
        return {
            row["id"]: Row(
                row["id"], inspections[row["id"]].digest, row["split"], row["label"], row["input"], row.get("input_pair")
            )
            for row in self._frame.to_dict("records")
            if not inspections[row["id"]].fault
        }  # fmt: skip

    @cached_property
    def _evaluated(self) -> Part:
        """Rows with answers from models that did not see them: out of fold, and of the part that judges the run."""
        return unseen(self.run)

    @cached_property
    def _scores(self) -> dict[str, np.ndarray]:
        return dict(zip(self._evaluated.ids, self._evaluated.scores, strict=True))

    def _label_errors(self) -> Iterator[Item]:
        picked = label_errors(self.run, MOST_ITEMS)
        if picked is None:
            if self.run.task.has_classes:
                log.warning('Likely label errors need cleanlab: pip install "hftransfer[label-errors]"')
            return
        for place, (number, note) in enumerate(zip(picked.rows, picked.notes, strict=True)):
            if row := self._rows.get(picked.part.ids[number]):
                choices = self._choices(picked.part.scores[number], row.label)
                choices = ((picked.suggested[place], None),) if picked.suggested else choices
                sure = f", {percent(choices[0][1])} for {words(choices[0][0])}" if choices and choices[0][1] else ""
                yield Item("label errors", (row,), f"A model that did not see it gives {note}{sure}", choices)

    def _choices(self, scores: np.ndarray | None, given: Any) -> tuple[tuple[Any, float | None], ...]:
        """Labels other than the given one, likeliest first; for several labels the set that the model gives."""
        task = self.run.task
        if scores is None or not task.has_classes or task.by_part:
            return ()
        if task.several:
            answer = task.decode(task.decide(scores))
            return () if sorted(answer) == sorted(given) else ((answer, None),)
        ranked = [(task.names[k], float(scores[k])) for k in np.argsort(-scores)]
        return tuple((name, share) for name, share in ranked if name != given)[:CHOICES]

    def _copies(self) -> Iterator[Item]:
        """Yield groups of equal, and small ones of nearly equal, inputs that bear different labels."""
        frame = self._frame[self._frame["id"].isin(list(self._rows))].reset_index(drop=True)
        pairs = links(frame, list(self._inspections[frame["id"]]), self.run.record.modality)
        equal = components(len(frame), pairs["equal"])
        similar = components(len(frame), np.concatenate([pairs["equal"], pairs["nearly equal"]]))
        small = np.bincount(similar)[similar] <= MOST_COPIES
        yield from self._contradictions(frame["id"], equal, "The same input")
        if self.run.task.by_part:
            return  # where an input is another one, its words and pixels stand elsewhere
        yield from self._contradictions(frame["id"][small], similar[small], "Nearly the same input")

    def _contradictions(self, ids: pd.Series, group: np.ndarray, what: str) -> Iterator[Item]:
        """One item for each group of rows, numbered by `group` (N,), whose labels differ."""
        for members in ids.groupby(group).indices.values():
            rows = tuple(self._rows[ids.iloc[place]] for place in members[:MOST_COPIES])
            if any(not self.run.task.same_label(row.label, rows[0].label) for row in rows):
                labels = sorted({self.said(row) for row in rows})
                more = f" ({len(members) - len(rows)} more are not shown)" if len(members) > len(rows) else ""
                yield Item(
                    "copies",
                    rows,
                    f"{what} bears different labels: {' and '.join(labels)}{more}",
                    self._choices_of(rows),
                )

    def said(self, row: Row) -> str:
        """Return the label of a row in words."""
        return in_words(self.run.task, row.label, row.input)

    def prediction(self, row: Row) -> Any:
        """Return the scores of a model that did not see a row; None where there are none."""
        return self._scores.get(row.id)

    def _choices_of(self, rows: Sequence[Row]) -> tuple[tuple[Any, float | None], ...]:
        """Return the labels that the rows bear; the one that a model which saw none of them finds likeliest first."""
        if self.run.task.by_pixel:
            return ()  # a patch holds no masks
        labels = {words(row.label): row.label for row in rows}
        scores = [self._scores[row.id] for row in rows if row.id in self._scores]
        if not self.run.task.exclusive or not scores:
            count = [words(row.label) for row in rows].count
            return tuple((labels[name], None) for name in sorted(labels, key=count, reverse=True))[:CHOICES]
        mean = np.mean(scores, axis=0)
        share = {name: float(mean[self.run.task.names.index(name)]) for name in labels}
        others = [name for name in (self.run.task.names[k] for k in np.argsort(-mean)) if name not in labels]
        own = sorted(labels, key=share.get, reverse=True)
        return tuple((name, float(mean[self.run.task.names.index(name)])) for name in [*own, *others])[:CHOICES]

    def _confused(self) -> Iterator[Item]:
        """Wrong answers between the classes that are mistaken for one another most often, whichever way."""
        task = self.run.task
        if not task.exclusive:
            return
        part, answers = self._evaluated, task.decide(self._evaluated.scores)
        wrong = np.flatnonzero(answers != part.targets)
        pairs = pd.Series(
            [tuple(sorted((part.targets[row], answers[row]))) for row in wrong], index=wrong, dtype=object
        )
        for pair, count in pairs.value_counts().head(CONFUSED_PAIRS).items():
            names = " and ".join(task.names[k] for k in pair)
            members = [row for row in wrong if pairs[row] == pair]
            for number in sorted(members, key=lambda row: part.scores[row, part.targets[row]])[:ROWS_OF_A_PAIR]:
                if row := self._rows.get(part.ids[number]):
                    choices = self._choices(part.scores[number], row.label)
                    why = f"{names} are confused in {count} rows; here {percent(choices[0][1])} for {choices[0][0]}"
                    yield Item("confused", (row,), why, choices)

    def _corrections(self) -> Iterator[Item]:
        """Yield what users of the demo sent: new inputs, with the answer they were given and the label they say is right."""
        lines = numbered_lines(self.corrections) if self.corrections.is_file() else []
        for number, line in lines[-MOST_ITEMS:]:
            try:
                given = json.loads(line)
                row, label = self._new_row(given["input"], given.get("input_pair"), given["prediction"]), given["label"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"Line {number} of {self.corrections} is no correction: mend or remove it.") from None
            if row:
                why = f"A user of the demo says {words(label)}; the model answered {words(row.label)}"
                yield Item("corrections", (row,), why, ((label, None),))

    def _new_row(self, input: str, pair: str | None, answered: Any) -> Row | None:
        """None for an input that is not at hand, or that lies outside of the folder that the patch may name files in."""
        kind = kind_of(self.run.record.modality)
        path = (self.corrections.resolve().parent / input).resolve() if kind.files else None
        if path and not path.is_relative_to(self.place):
            return None
        inspection = (
            kind.inspection(str(path)) if path else kind.inspection(*([input] if pair is None else [input, pair]))
        )
        written = path.relative_to(self.place).as_posix() if path else input
        return (
            None
            if inspection.fault
            else Row(f"added:{inspection.digest}", inspection.digest, "", answered, written, pair)
        )

    def picture(self, row: Row) -> str:
        """Where the picture of a row lies: those of corrections stand against the folder of the patch."""
        return row.input if row.split else str(self.place / row.input)
