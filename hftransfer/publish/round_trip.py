"""The round trip: what leaves the machine answers as the model did when it was measured.

A few held-out raw inputs go through every form that the run's model has (`forms`), each in a process of its own; their
scores are compared with those that the training process recorded in `predictions.parquet`.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json, write_json
from hftransfer.core.mask_files import decode_prediction, encode_prediction
from hftransfer.evaluation.entities import differ, spans_of
from hftransfer.evaluation.intervals import wilson
from hftransfer.modalities import kind_of
from hftransfer.runs.predictions import places_of
from hftransfer.runs.reader import Part, RecordedRun
from hftransfer.tasks import Task
from hftransfer.tasks.tokens import ragged

log = logging.getLogger(__name__)

ROWS = 16
SECONDS = 30.0  # after which a form is asked no further input
SHORT = 400  # characters of a text that is asked for its entities: fewer tokens than most models take
NEAR = 0.02  # two scores nearer than this are a tie, which rounding may decide either way
NEAR_VALUE = 0.05  # two values of a regression agree within this share of their spread
EIGHT_BITS = 0.9  # non-inferiority margin: surely so many decisions of an 8-bit model are those of the original

ASKED_WITH = (
    "hftransfer", "torch", "torchvision", "transformers", "tokenizers", "timm", "peft", "pillow", "onnxruntime", "gradio",
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """One form of a run's model: how it is asked, where it lies, its size, and the share of labels that must agree."""

    name: str
    asked_through: Literal["pipeline", "onnx", "adapter", "demo"]
    folder: Path
    bytes: int
    least_agreement: float = 1.0


@dataclass(frozen=True)
class Stage:
    """One form of the model against the recorded answers; `disagreements` are ids whose label differs."""

    name: str
    max_difference: float
    label_agreement: float
    seconds_per_input: float
    bytes: int
    disagreements: tuple[str, ...] = ()
    least_agreement: float = 1.0
    rows: int = 0  # that were asked


def certify(folder: str | Path, rows: int = ROWS) -> dict[str, Any]:
    """Asks every form of the run's model, writes `certificate.json` into the run folder and returns what it holds.

    Raises `UserError` when the run's inputs are no longer there to be checked, and for a form that does not answer.
    """
    run = RecordedRun.open(folder)
    run.require("push")
    part = readable_rows(run, rows)
    stages = [ask_form(run, part, form) for form in forms_of(run)]
    round_trip = {
        "rows": len(part),
        "forms": forms_digest(run.folder),
        "stages": [asdict(stage) for stage in stages],
    }
    write_json(run.folder / "certificate.json", round_trip)
    return round_trip


def certified(folder: str | Path) -> dict[str, Any]:
    """Return the run's certificate: the stored one while every form and package is the same, else a new one (see `certify`)."""
    file = RecordedRun.open(folder).folder / "certificate.json"
    stored = read_json(file) if file.is_file() else {}
    return stored if stored.get("forms") == forms_digest(folder) else certify(folder)


def forms_digest(folder: str | Path) -> str:
    """Return a hash of what the forms' answers depend on: all of their files, and the versions of the packages.

    A config, a tokenizer or a processor decides about an answer as the tensors do.
    """
    digest = hashlib.sha256(json.dumps(package_versions(), sort_keys=True).encode())
    for place in ("model", "adapter", "exports"):
        for path in sorted(path for path in Path(folder).glob(f"{place}/**/*") if path.is_file()):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()


def package_versions() -> dict[str, str | None]:
    """Return the installed version of each package that a form is asked through; None where it is missing."""
    return {name: _version(name) for name in ASKED_WITH}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check(round_trip: dict[str, Any]) -> None:
    """Raise `UserError` naming the form and the rows when any form gives another label than was measured.

    Of an 8-bit form so much is asked as its export promised (`EIGHT_BITS`).
    """
    for stage in round_trip["stages"]:
        rows = stage.get("rows") or round_trip["rows"]
        if stage["disagreements"] and _too_few_agree(stage, rows):
            shown = ", ".join(stage["disagreements"][:5])
            raise UserError(
                f"The model answers otherwise through {stage['name']} than when it was measured: "
                f"{len(stage['disagreements'])} of {rows} labels differ (rows {shown}; largest "
                f"difference of a score {stage['max_difference']:.2g}). It was not pushed."
            )


def _too_few_agree(stage: dict[str, Any], rows: int) -> bool:
    least = stage["least_agreement"]
    return least == 1 or wilson(rows - len(stage["disagreements"]), rows)[1] < least


# --- the forms --------------------------------------------------------------------------------------------------------


def forms_of(run: RecordedRun) -> list[Form]:
    """Return what the run folder holds, and the demo where Gradio is there to serve it."""
    forms = [Form("pipeline", "pipeline", run.folder / "model", run.model_bytes)]
    if (run.folder / "adapter").is_dir():
        forms.append(Form("adapter on its base", "adapter", run.folder, _bytes(run.folder / "adapter")))
    for file in sorted(run.folder.glob("exports/*/export.json")):
        form = _exported(file.parent, read_json(file))
        if run.task.by_word and form.asked_through == "onnx":  # a graph alone knows no words
            log.info("%s is not part of the round trip: its logits were compared when it was written.", form.name)
        else:
            forms.append(form)
    if importlib.util.find_spec("gradio"):
        return [*forms, Form("demo", "demo", run.folder, run.model_bytes)]
    log.info("The demo is not part of the round trip: it needs gradio (pip install 'hftransfer[demo]')")
    return forms


def _exported(folder: Path, comparison: dict[str, Any]) -> Form:
    """Raise `UserError` for an 8-bit form whose comparison with the original does not show that it decides alike."""
    format = comparison["format"]
    eight_bits = format.endswith("int8")
    if eight_bits and comparison["agreement"]["low"] < EIGHT_BITS:
        raise UserError(
            f"{folder} is not shown to decide as the original: the lower end of its agreement is "
            f"{comparison['agreement']['low']:.1%}, expected {EIGHT_BITS:.0%}. Remove it, or export it again."
        )
    asked_through = "onnx" if format.startswith("onnx") else "pipeline"
    return Form(format, asked_through, folder, _bytes(folder), EIGHT_BITS if eight_bits else 1.0)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def ask_form(run: RecordedRun, part: Part, form: Form) -> Stage:
    """One form asked in a fresh process, beside what was recorded. Raises `UserError` where it does not answer."""
    found = _in_process(run, _job(run, part, form), form)
    part = part.rows(np.arange(len(found["answers"])))  # a slow form is asked fewer
    seconds = found["seconds"] / len(part)
    if run.task.by_word:
        stage = compare_entities(form, run.task, part, found["answers"], seconds)
    elif run.task.by_pixel:
        stage = compare_masks(form, run.task, part, found["answers"], seconds)
    else:
        scores = np.array([[row.get(name, np.nan) for name in run.task.names] for row in found["answers"]])
        stage = compare(form, run.task, part, scores, seconds)
    log.info("Round trip: %s, %d of %d labels agree, scores differ by %.1e at most", form.name,
             len(part) - len(stage.disagreements), len(part), stage.max_difference)  # fmt: skip
    return stage


def _job(run: RecordedRun, part: Part, form: Form) -> dict[str, Any]:
    columns = [name for name in ("input", "input_pair") if name in part.frame and part.frame[name].notna().all()]
    rows = part.frame[columns].to_dict("records")
    kind = kind_of(run.record.modality).for_task(run.task)
    if kind.files:
        rows = [{"input": str(Path(row["input"]).resolve())} for row in rows]
    return {
        "form": form.asked_through,
        "folder": str(form.folder.resolve()),
        "modality": kind.name,
        "pipeline_task": kind.pipeline_task,
        "pipeline_options": kind.pipeline_options(len(run.task.names)),
        "processor": kind.processor_class,
        "files": kind.files,
        "names": list(run.task.names),
        "trust_remote_code": run.runs_own_code,
        "rows": rows,
        "most_seconds": SECONDS,
    }


def _write_arrays(job: dict[str, Any], run: RecordedRun, place: Path) -> None:
    """Write each file of `job` as its pipeline takes it, where that is an array: a recording, at the model's rate."""
    kind = kind_of(run.record.modality).for_task(run.task)
    if not kind.arrays:
        return
    processor = kind.auto_processor.from_pretrained(run.folder / "model", trust_remote_code=run.runs_own_code)
    for number, row in enumerate(job["rows"]):
        row["array"] = str(place / f"{number}.npy")
        np.save(row["array"], kind.pipeline_input(row["input"], processor))


def _in_process(run: RecordedRun, job: dict[str, Any], form: Form) -> dict[str, Any]:
    program = Path(__file__).with_name("targets.py")
    ours = os.pathsep.join(filter(None, [str(program.parents[2]), os.environ.get("PYTHONPATH")]))
    settings = os.environ | {"PYTHONPATH": ours, "TRANSFORMERS_VERBOSITY": "error", "GRADIO_ANALYTICS_ENABLED": "False"}
    with tempfile.TemporaryDirectory() as place:
        asked, answered = Path(place) / "job.json", Path(place) / "answers.json"
        _write_arrays(job, run, Path(place))
        asked.write_text(json.dumps(job), encoding="utf-8")
        command = [
            sys.executable,
            "-P",
            str(program),
            str(asked),
            str(answered),
        ]  # -P: our files must shadow no package
        done = subprocess.run(command, cwd=place, env=settings, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"The model in {form.folder} does not answer through {form.name}: {last}")
        return json.loads(answered.read_text(encoding="utf-8"))


def compare(form: Form, task: Task, part: Part, scores: np.ndarray, seconds: float) -> Stage:
    """How far `scores` (N, C), in the order of `part`, are from the recorded ones; NaN where a form shows none."""
    differ = task.decides_otherwise(part.scores, scores, NEAR, NEAR_VALUE)
    names = tuple(row for row, other in zip(part.ids, differ, strict=True) if other)
    largest = float(np.nanmax(np.abs(scores - part.scores)))
    same = float(1 - differ.mean())
    return Stage(form.name, largest, same, seconds, form.bytes, names, form.least_agreement, len(part))


def compare_entities(form: Form, task: Task, part: Part, answers: list[dict[str, float]], seconds: float) -> Stage:
    """Compare entities, called "TYPE START-END", with the recorded ones; scores only of those that are in both."""
    differing, gaps = [], [0.0]
    for row, (id_, text, words) in enumerate(zip(part.ids, part.frame["input"], places_of(part.frame), strict=True)):
        recorded = task.entities(text, words, part.scores[row])
        found = [_entity(name, score) for name, score in answers[row].items()]
        own, there = spans_of(text, recorded), spans_of(text, found)
        if differ(own, there, words, part.scores[row], NEAR):
            differing.append(id_)
        scored = {(e["end"], e["label"]): e["score"] for e in recorded}
        gaps += [abs(e["score"] - scored[e["end"], e["label"]]) for e in found if (e["end"], e["label"]) in scored]
    agreement = 1 - len(differing) / len(part)
    return Stage(
        form.name,
        float(np.nanmax(gaps)),
        agreement,
        seconds,
        form.bytes,
        tuple(differing),
        form.least_agreement,
        len(part),
    )


def compare_masks(form: Form, task: Task, part: Part, answers: list[dict[str, str]], seconds: float) -> Stage:
    """Compare masks with the recorded ones; the difference is the largest share of the pixels of an image."""
    found = [_with_certainty(base64.b64decode(answer["mask"])) for answer in answers]
    differ = task.decides_otherwise(part.scores, ragged(found), NEAR)
    shares = [
        float((decode_prediction(own)[0] != decode_prediction(other)[0]).mean())
        for own, other in zip(part.scores, found, strict=True)
    ]
    names = tuple(row for row, other in zip(part.ids, differ, strict=True) if other)
    agreement = float(1 - differ.mean())
    return Stage(form.name, max(shares), agreement, seconds, form.bytes, names, form.least_agreement, len(part))


def _with_certainty(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        numbers = np.asarray(image)
    return encode_prediction(numbers, np.full(numbers.shape, 255, np.uint8))


def _entity(name: str, score: float) -> dict[str, Any]:
    label, _, place = name.rpartition(" ")
    start, end = map(int, place.split("-"))
    return {"start": start, "end": end, "label": label, "score": np.nan if score is None else score}


def readable_rows(run: RecordedRun, rows: int) -> Part:
    """Held-out rows with an input that can be read again, spread evenly over the part."""
    part = run.part(run.evaluated)
    if run.task.by_word:  # texts of one window alone: the pipeline joins windows in a way of its own
        part = part.rows(np.array([len(text) <= SHORT for text in part.frame["input"]]))
    chosen = readable(part.frame, run.record.modality, rows)
    if not len(chosen):
        raise UserError(f"None of the inputs of {run.folder} can be read again: keep its data where they were.")
    return Part(part.frame.iloc[chosen].reset_index(drop=True), part.targets[chosen], part.scores[chosen])


def readable(frame: pd.DataFrame, modality: str, rows: int) -> np.ndarray:
    """Positions of so many rows of `frame`, spread evenly, whose `input` is still there."""
    there = frame["input"].astype(bool).to_numpy()
    if kind_of(modality).files:
        there = there & np.array([Path(value).is_file() for value in frame["input"]], dtype=bool)
    usable = np.flatnonzero(there)
    return (
        usable[np.unique(np.linspace(0, max(len(usable) - 1, 0), rows).round().astype(int))] if len(usable) else usable
    )
