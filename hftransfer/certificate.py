"""The round trip: what leaves the machine answers as the model did when it was measured.

A few held-out raw inputs go through plain `transformers.pipeline` in a fresh process that knows nothing of this package;
its probabilities are compared with those that `predictions.parquet` recorded.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.errors import UserError
from hftransfer.evaluation.recorded import Part, RecordedRun
from hftransfer.run_folder import read_json, write_json
from hftransfer.tasks import Task

ROWS = 16
NEAR = 0.02  # two scores nearer than this are a tie, which rounding may decide either way

# Runs in the fresh process: plain transformers, nothing of ours.
_PIPELINE = """
import json, sys, time
import transformers
transformers.logging.set_verbosity_error()
job = json.load(open(sys.argv[1], encoding="utf-8"))
pipe = transformers.pipeline(job["task"], job["folder"], device="cpu")
pipe(job["inputs"][0], **job["options"])
begin = time.perf_counter()
answers = [pipe(value, **job["options"]) for value in job["inputs"]]
json.dump({"answers": answers, "seconds": time.perf_counter() - begin}, open(sys.argv[2], "w", encoding="utf-8"))
"""


@dataclass(frozen=True)
class Stage:
    """One form of the model against the recorded answers; `disagreements` are ids whose label differs."""

    name: str
    max_difference: float
    label_agreement: float
    seconds_per_input: float
    bytes: int
    disagreements: tuple[str, ...] = ()


def certify(folder: str | Path, rows: int = ROWS) -> dict[str, Any]:
    """Checks the run's saved model, writes `certificate.json` into the run folder and returns what it holds.

    Raises `UserError` when the run's inputs are no longer there to be checked.
    """
    run = RecordedRun.open(folder)
    part = readable_rows(run, rows)
    stages = [through_pipeline(run, part)]
    certificate = {
        "rows": len(part),
        "weights": weights_digest(run.folder),
        "stages": [asdict(stage) for stage in stages],
    }
    write_json(run.folder / "certificate.json", certificate)
    return certificate


def certified(folder: str | Path) -> dict[str, Any]:
    """The run's certificate: the stored one while the weights are the same, else a new one (see `certify`)."""
    file = RecordedRun.open(folder).folder / "certificate.json"
    stored = read_json(file) if file.is_file() else {}
    return stored if stored.get("weights") == weights_digest(folder) else certify(folder)


def weights_digest(folder: str | Path) -> str:
    """A hash of the saved model's tensor files."""
    digest = hashlib.sha256()
    for file in sorted((Path(folder) / "model").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def check(certificate: dict[str, Any]) -> None:
    """Raises `UserError` naming the form and the rows when any form gives another label than was measured."""
    for stage in certificate["stages"]:
        if stage["disagreements"]:
            shown = ", ".join(stage["disagreements"][:5])
            raise UserError(
                f"The model answers otherwise through {stage['name']} than when it was measured: "
                f"{len(stage['disagreements'])} of {certificate['rows']} labels differ (rows {shown}; largest "
                f"difference of a score {stage['max_difference']:.2g}). It was not pushed."
            )


def through_pipeline(run: RecordedRun, part: Part) -> Stage:
    """The saved model through plain `pipeline()` in a process of its own."""
    scores, seconds = pipeline_scores(run.folder / "model", part, run)
    return compare("pipeline", run.task, part, scores, seconds / len(part), run.model_bytes)


def compare(name: str, task: Task, part: Part, scores: np.ndarray, seconds: float, size: int) -> Stage:
    """How far `scores` (N, C), in the order of `part`, are from the recorded ones."""
    differ = _labels_differ(task, part.scores, scores)
    names = tuple(row for row, other in zip(part.ids, differ, strict=True) if other)
    return Stage(name, float(np.abs(scores - part.scores).max()), float(1 - differ.mean()), seconds, size, names)


def _labels_differ(task: Task, recorded: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(N,) whether the decision is another one, ties apart; for regression, whether a value moved by over 2 % of its spread."""
    if task.type == "regression":
        return (np.abs(recorded - found) > NEAR * np.maximum(recorded.std(0), 1e-6)).any(1)
    if task.type == "multi_label":
        return (((recorded > 0.5) != (found > 0.5)) & (np.abs(recorded - 0.5) > NEAR / 2)).any(1)
    top = np.sort(recorded, axis=1)
    return (recorded.argmax(1) != found.argmax(1)) & (top[:, -1] - top[:, -2] > NEAR)


def readable_rows(run: RecordedRun, rows: int) -> Part:
    """Held-out rows with an input that can be read again, spread evenly over the part."""
    part = run.part("test" if "test" in run.metrics else "validation")
    frame = part.frame
    there = frame["input"].astype(bool).to_numpy()
    if run.about["modality"] == "image":
        there = there & np.array([Path(value).is_file() for value in frame["input"]])
    usable = np.flatnonzero(there)
    if not len(usable):
        raise UserError(f"None of the inputs of {run.folder} can be read again: keep its data where they were.")
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, rows).round().astype(int))]
    return Part(frame.iloc[chosen].reset_index(drop=True), part.targets[chosen], part.scores[chosen])


def pipeline_scores(model: Path, part: Part, run: RecordedRun) -> tuple[np.ndarray, float]:
    """Scores (N, C) of plain `pipeline()` in a fresh process, and the seconds they took after loading."""
    job = _job(model, part, run)
    with tempfile.TemporaryDirectory() as place:
        asked, answered = Path(place) / "job.json", Path(place) / "answers.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-c", _PIPELINE, str(asked), str(answered)]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"The saved model {model} does not load in a plain pipeline: {last}")
        found = json.loads(answered.read_text(encoding="utf-8"))
    rows = [{entry["label"]: entry["score"] for entry in answer} for answer in found["answers"]]
    return np.array([[row[name] for name in run.task.names] for row in rows]), found["seconds"]


def _job(model: Path, part: Part, run: RecordedRun) -> dict[str, Any]:
    frame, image = part.frame, run.about["modality"] == "image"
    inputs: list[Any] = frame["input"].tolist()
    if image:
        inputs = [str(Path(value).resolve()) for value in inputs]
    elif "input_pair" in frame and not pd.isna(frame["input_pair"]).any():
        inputs = [{"text": a, "text_pair": b} for a, b in zip(inputs, frame["input_pair"], strict=True)]
    options = {"top_k": run.task.head_size} if image else {"top_k": None, "truncation": True}
    kind = "image-classification" if image else "text-classification"
    return {"task": kind, "folder": str(model.resolve()), "inputs": inputs, "options": options}
