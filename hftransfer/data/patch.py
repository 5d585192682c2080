"""Decisions of a person about single rows, in a file of their own: applied when the data is loaded, which stays as it is.

A patch holds one JSON object a line and only ever grows (`hftransfer review` writes it):

    {"id": "cat/7.png", "digest": "…", "action": "relabel", "label": "dog", "when": "2026-01-31T12:00:00+00:00"}

Actions are `relabel`, `keep`, `drop`, `group` (rows with one `group` stay on one side of a split), `add` (a new training
row: `input`, for pairs `input_pair`, and `label`; what the demo's users send is of this kind) and `undo`, which takes back
the decision before it about the same row. Of several the last one counts. The `digest` is that of the input that the
person saw: a decision never reaches another input that has come to bear the same id.
"""

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hftransfer.core.errors import UserError
from hftransfer.core.wording import DONE
from hftransfer.data.config import DataConfig
from hftransfer.data.rows import file_input
from hftransfer.data.sources import missing
from hftransfer.data.values import number
from hftransfer.modalities import kind_of
from hftransfer.tasks import Task

log = logging.getLogger(__name__)

# Of the members of a group those stand that are furthest right; copies of an evaluated row leave the part before it.
_RANK = {"train": 0, "validation": 1, "test": 2}


class Decision(BaseModel):
    """One line of a patch."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    action: Literal["relabel", "keep", "drop", "group", "add", "undo"] = "add"
    id: str = ""
    digest: str = ""
    label: Any = None
    group: str | None = None
    input: str | None = None
    input_pair: str | None = None
    when: str = ""

    @model_validator(mode="after")
    def _complete(self) -> "Decision":
        wanted = {"relabel": ["id", "digest", "label"], "add": ["input", "label"], "group": ["id", "digest", "group"]}
        absent = [name for name in wanted.get(self.action, ["id"]) if getattr(self, name) in (None, "")]
        if absent:
            raise ValueError(f"{self.action} needs {', '.join(absent)}")
        return self


def read_patch(path: Path) -> list[Decision]:
    """Every line of a patch, in order. Raises `UserError` for a missing file and for a line that is no decision."""
    if not path.is_file():
        raise UserError(f"data.patch: {missing(path)}")
    return [_decision(path, place, line) for place, line in numbered_lines(path)]


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a file that hold something, from 1. `splitlines` would cut at U+2028 and the like, inside of a text."""
    lines = enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
    return [(number, line) for number, line in lines if line.strip()]


def _decision(path: Path, place: int, line: str) -> Decision:
    try:
        return Decision.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        said = f"{where}: {problem['msg']}" if where else problem["msg"].removeprefix("Value error, ")
        raise UserError(f"Line {place} of the patch {path} is no decision ({said}). Mend or remove it.") from None


def append(path: Path, decisions: list[Decision]) -> None:
    """Add lines to a patch (in one write, so that no reader finds half of them)."""
    lines = [json.dumps(decision.model_dump(exclude_unset=True), ensure_ascii=False) + "\n" for decision in decisions]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
    except OSError as error:
        raise UserError(f"Cannot write the patch {path}: {error.strerror}.") from None


def standing(decisions: list[Decision]) -> list[Decision]:
    """Return what is left once each `undo` took back the decision before it about its row.

    A row has at most one decision about its label and one about its group: the last.
    """
    stacks: dict[str, list[Decision]] = {}
    for place, decision in enumerate(decisions):
        stack = stacks.setdefault(decision.id or f"line {place}", [])
        if decision.action == "undo":
            del stack[-1:]
        else:
            stack.append(decision)
    last = [{decision.action == "group": decision for decision in stack} for stack in stacks.values()]
    return [decision for kinds in last for decision in kinds.values()]


@dataclass(frozen=True)
class Patch:
    """The decisions of one file that stand."""

    path: Path
    decisions: list[Decision]

    @classmethod
    def read(cls, path: str | Path) -> "Patch":
        """Read a patch file. Raises `UserError`."""
        path = Path(path).expanduser()
        return cls(path, standing(read_patch(path)))

    def beyond(self, rows: pd.DataFrame, known: pd.Index) -> tuple[pd.DataFrame, "Patch"]:
        """`rows` without those that a split file does not know because this patch took them out before; and the rest of it."""
        removable = {each.id for each in self.decisions if each.action in ("drop", "group")} - set(known)
        kept = [each for each in self.decisions if each.id not in removable]
        return rows[~rows["id"].isin(removable)].reset_index(drop=True), Patch(self.path, kept)

    def apply(self, rows: pd.DataFrame, task: Task, config: DataConfig) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Return the divided `rows` (columns id, split, group, label, digest) as decided, and what was done, split by split.

        Rows have been divided by the labels that the data gives, so that every other row stays where it was. Test rows
        are changed with `config.patch_test` alone. Raises `UserError` for decisions that belong to other data.
        """
        place = dict(zip(rows["id"], rows.index, strict=True))
        decided = self._checked([each for each in self.decisions if each.action != "add"], rows, place, config)
        done = {name: Counter() for name in DONE.values()}
        rows, held_back, dropped = rows.copy(), 0, []
        for decision in decided:
            at, split = place[decision.id], rows.at[place[decision.id], "split"]
            if split == "test" and decision.action in ("relabel", "drop") and not config.patch_test:
                held_back += 1
            elif decision.action == "relabel":
                label = self._label(decision, task, rows.at[at, "input"])
                if not task.same_label(label, rows.at[at, "label"]):
                    rows.at[at, "label"] = label
                    done["relabelled"][split] += 1
            elif decision.action == "drop":
                dropped.append(at)
                done["dropped"][split] += 1
            elif decision.action == "group":
                rows.at[at, "group"] = decision.group
                done["grouped"][split] += 1
        rows = _one_side(rows.drop(index=dropped), {each.group for each in decided if each.action == "group"}, done)
        about = {"file": self.path.name, "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest()}
        about |= {name: dict(count) for name, count in done.items()} | {"test_rows_left_alone": held_back}
        return rows.reset_index(drop=True), about

    def _checked(
        self, decisions: list[Decision], rows: pd.DataFrame, place: dict[str, Any], config: DataConfig
    ) -> list[Decision]:
        """Return the decisions whose row is there and still is what the person saw."""
        found = [decision for decision in decisions if decision.id in place]
        if decisions and not found:
            raise UserError(f"The patch {self.path} knows none of the {len(rows)} rows: it belongs to other data.")
        if len(found) < len(decisions):
            absent = next(decision.id for decision in decisions if decision.id not in place)
            log.warning("patch: %d decisions are about rows that are not there, such as %r",
                        len(decisions) - len(found), absent)  # fmt: skip
        other = [each.id for each in found if each.digest != rows.at[place[each.id], "digest"]]
        if other and config.on_error == "stop":
            raise UserError(
                f"{len(other)} decisions of the patch {self.path} were made about another input than the row holds now, "
                f"such as {other[0]!r}: the data has changed. Review these rows again, or leave the decisions out with "
                "data.on_error=skip."
            )
        if other:
            log.warning("patch: %d decisions are left out, their input has changed, such as %r", len(other), other[0])
        return [decision for decision in found if decision.id not in other]

    def _label(self, decision: Decision, task: Task, value: Any) -> Any:
        """Return the label of the input `value` as rows have it. Raises `UserError` for one that the task does not know."""
        try:
            if task.by_pixel:
                raise UserError(
                    "a patch holds no masks. Of an image it says keep, drop or group; masks are mended as files."
                )
            return _entities(decision.label, task, value) if task.by_word else _as_task_has_it(decision.label, task)
        except UserError as error:
            raise UserError(f"The patch {self.path}, {decision.id or decision.input!r}: {error}") from None

    def added(self, rows: pd.DataFrame, task: Task, modality: str) -> pd.DataFrame:
        """Return the new training rows of the patch, with the columns of `rows` but for what a look at them shows.

        Pictures stand against the patch's own folder and may not lie outside of it.
        """
        new = [decision for decision in self.decisions if decision.action == "add"]
        inputs = [each.input for each in new]
        if kind_of(modality).files:
            inputs = [file_input(value, self.path.parent, False) for value in inputs]
        frame = pd.DataFrame(
            {"input": inputs, "label": [self._label(each, task, each.input) for each in new]}, dtype=object
        )
        if "input_pair" in rows:
            frame["input_pair"] = [each.input_pair or "" for each in new]
        where = [f"{self.path} ({each.when or 'added'})" for each in new]
        return frame.assign(where=where, split="train", group=None)


def _as_task_has_it(label: Any, task: Task) -> Any:
    if task.exclusive:
        return task.decode(task.encode(label))
    if task.several:
        return task.decode(task.encode(label if isinstance(label, list) else [label]))
    values = [number(value) for value in (label if isinstance(label, list) else [label])]
    if None in values or len(values) != len(task.names):
        raise UserError(f"expected {len(task.names)} numbers ({', '.join(task.names)}), found {label!r}.")
    return values[0] if len(values) == 1 else values


def _entities(label: Any, task: Task, text: str) -> list[dict[str, Any]]:
    """Return the entities of a text in their order. Raises `UserError` for such as leave it, overlap, or have no type."""
    keys = ("start", "end", "label")
    if not isinstance(label, list) or not all(isinstance(each, dict) and {*keys} <= each.keys() for each in label):
        raise UserError(f"expected a list of entities with start, end and label, found {label!r}.")
    found = sorted(({key: each[key] for key in keys} for each in label), key=lambda each: each["start"])
    end = 0
    for each in found:
        if not end <= each["start"] < each["end"] <= len(text):
            raise UserError(
                f"the entity {each} leaves its text of {len(text)} characters, or overlaps the one before it."
            )
        end = each["end"]
    task.encode(found)
    return found


def _one_side(rows: pd.DataFrame, groups: set[str], done: dict[str, Counter]) -> pd.DataFrame:
    """Take copies of an evaluated row out of the training part, and those of a test row out of the validation part."""
    ranks = rows["split"].map(_RANK)
    highest = ranks.groupby(rows["group"].astype(object)).transform("max")
    leaving = rows["group"].isin(groups) & (ranks < highest)
    done["dropped"].update(rows["split"][leaving])
    return rows[~leaving]


def without_known(added: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the added rows (columns digest, label) whose input is new, with their `id`: a copy would be a leak."""
    known = added["digest"].isin(rows["digest"])
    twice = added["digest"].duplicated(keep="last")  # the last correction of one input counts
    if known.any() or twice.any():
        log.warning("patch: of %d added rows %d are left out, as their input is in the data already, and %d as a later "
                    "one corrects the same input", len(added), known.sum(), (twice & ~known).sum())  # fmt: skip
    kept = added[~known & ~twice]
    return kept.assign(id=[f"added:{digest}" for digest in kept["digest"]])
