"""Examples without a label that the model is unsure of: chosen by `next`, labelled by a person, added by the patch."""

import html
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from hftransfer.apps.corrections import kept_file
from hftransfer.apps.review.page import patch_of
from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json, write_json
from hftransfer.data.patch import Decision, append, read_patch, standing
from hftransfer.modalities import kind_of
from hftransfer.planning.labels.pool import next_to_label
from hftransfer.runs.reader import RecordedRun
from hftransfer.studio.examples import example_html
from hftransfer.studio.place import Place


@dataclass(frozen=True)
class Uncertain:
    """The queue of one studio, in a file: the run that chose, and its questions. Labels go to the patch of that run."""

    place: Place

    @property
    def file(self) -> Path:
        return self.place.runs / ".studio" / "uncertain.json"

    def choose(self, run: str, pool: str, count: int) -> None:
        """Put the inputs of `pool` that the run is most unsure of into the queue. Raises `UserError`."""
        folder = self.place.run(run)
        RecordedRun.open(folder).task.require("review")
        table = next_to_label(str(self.place.path(pool)), count, str(folder), None)
        rows = table.assign(input=table["input"] if "input" in table else table["id"])
        kept = [name for name in ("input", "input_pair", "reason", "prediction") if name in rows]
        write_json(self.file, {"run": run, "rows": rows[kept].to_dict("records")})

    @property
    def run(self) -> RecordedRun | None:
        """Return the run that chose; None before the first choice, and where it is gone."""
        name = read_json(self.file)["run"] if self.file.is_file() else None
        return RecordedRun.open(self.place.run(name)) if name in self.place.run_names() else None

    def waiting(self) -> list[dict[str, Any]]:
        """Return the questions that have no label yet, with their `digest`; inputs that are gone are left out."""
        run = self.run
        if run is None:
            return []
        rows, answered = read_json(self.file)["rows"], _digests(patch_of(run))
        frame = pd.DataFrame(rows)
        inspections = kind_of(run.record.modality).inspect(frame) if rows else []
        found = [row | {"digest": seen.digest} for row, seen in zip(rows, inspections, strict=True) if not seen.fault]
        return [row for row in found if row["digest"] not in answered]

    def label(self, question: dict[str, Any], label: Any) -> None:
        """Add the question with its label to the patch of the run. Raises `UserError` without a label."""
        if label in (None, "", []):
            raise UserError("Choose a label first.")
        run, when = self.run, datetime.now(UTC).isoformat(timespec="seconds")
        patch, given = patch_of(run), question["input"]
        if kind_of(run.record.modality).files:
            given = kept_file(patch, given)
        pair = {"input_pair": question["input_pair"]} if "input_pair" in question else {}
        name, digest = f"added:{question['digest']}", question["digest"]
        append(patch, [Decision(action="add", id=name, digest=digest, label=label, input=given, when=when, **pair)])

    def skip(self, question: dict[str, Any]) -> None:
        """Put a question to the end of the queue."""
        kept = read_json(self.file)
        own = [row for row in kept["rows"] if row["input"] == question["input"]]
        write_json(self.file, kept | {"rows": [row for row in kept["rows"] if row not in own] + own})


def _digests(patch: Path) -> set[str]:
    found = standing(read_patch(patch)) if patch.is_file() else []
    return {decision.digest for decision in found if decision.action == "add"}


def question_html(run: RecordedRun, question: dict[str, Any]) -> str:
    """Return the input, what the model makes of it, and why it was chosen."""
    caption = html.escape(f"the model says {question.get('prediction', 'nothing')}: {question['reason']}")
    return example_html(kind_of(run.record.modality), question, caption)
