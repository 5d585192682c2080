"""The model card of a run: measured facts from its folder, and marked blanks for what only a person knows.

Fields and sections follow Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv:1810.03993).
"""

import json
import re
from collections import Counter
from functools import cache
from importlib import resources
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hftransfer.core.files import write_text
from hftransfer.core.wording import listed, percent
from hftransfer.evaluation.contributions import sentences
from hftransfer.evaluation.kinds import titled
from hftransfer.modalities import MODALITIES, ModalityKind, kind_of
from hftransfer.runs.reader import Part, RecordedRun
from hftransfer.runs.record import RunRecord

if TYPE_CHECKING:
    from jinja2 import Template

PAPERS = {
    "probe": "Kornblith et al. 2019, arXiv:1805.08974",
    "frozen": "Yosinski et al. 2014, arXiv:1411.1792",
    "full": "layer-wise decay: Clark et al. 2020, arXiv:2003.10555",
    "gradual": "Howard and Ruder 2018, arXiv:1801.06146",
    "lora": "Hu et al. 2021, arXiv:2106.09685",
    "scratch": "the baseline without transfer: He et al. 2019, arXiv:1811.08883",
}
BLANK = "[to be filled in]"
PARTS = ("train", "validation", "test")
NO_PATHS = ("input", "label", "separator", "group")  # settings whose slash belongs to a column's name
MOST_CLASSES = 12  # a confusion matrix with more columns cannot be read on a page of text


def write_card(folder: str | Path, repo_id: str | None = None) -> Path:
    """Write `README.md` into the run folder and return its path; `repo_id` is what the example code then names."""
    target = Path(folder) / "README.md"
    write_text(target, render_card(RecordedRun.open(folder), repo_id))
    return target


def render_card(run: RecordedRun, repo_id: str | None = None, adapter: bool = False) -> str:
    """Return the card as Markdown, with the Hub's metadata in front. Raises `UserError` where the folder is no run."""
    facts = card_facts(run) | {"repo": repo_id or "MODEL_FOLDER", "adapter": adapter}
    metadata = yaml.safe_dump(card_metadata(run, facts, adapter), sort_keys=False, allow_unicode=True)
    page = filled_in(_template().render(facts), run.folder / "README.md")
    return f"---\n{metadata}---\n\n{page}"


@cache
def _template() -> "Template":
    """Return the card's template, compiled once per process."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False)
    environment.filters |= {"titled": titled, "cell": table_cell, "number": _number, "span": _span, "percent": percent}
    return environment.from_string(resources.files("hftransfer.publish").joinpath("card.md.j2").read_text("utf-8"))


def filled_in(card: str, earlier: Path) -> str:
    """`card` with the blanks filled that a person has filled in the card `earlier`, if there is one."""
    text = earlier.read_text(encoding="utf-8") if earlier.is_file() else ""
    answers = dict(re.findall(r"^- (.+?): (.+)$", text, flags=re.MULTILINE))
    blank = re.compile(rf"^- (.+): {re.escape(BLANK)}$", flags=re.MULTILINE)
    return blank.sub(lambda line: f"- {line[1]}: {answers.get(line[1], BLANK)}", card)


def blanks(card: str) -> list[str]:
    """Return what is left for a person to fill in: the words before each mark."""
    return re.findall(rf"^- (.+): {re.escape(BLANK)}$", card, flags=re.MULTILINE)


def table_cell(text: Any) -> str:
    """Text that is safe in a Markdown table: on one line, with no bar of its own, no tag and no link."""
    return re.sub(r"([\\`*_\[\]|<>])", r"\\\1", " ".join(str(text).split()))


# --- facts -----------------------------------------------------------------------------------------------------------


def card_facts(run: RecordedRun) -> dict[str, Any]:
    """Everything that the card says, as plain values."""
    about, split = run.record, held_out_split(run)
    part, kind = run.part(split), kind_of(about.modality).for_task(run.task)
    return {
        "name": run.name,
        "about": about,
        "base": _base(about),
        "several": about.inputs,
        "pipelines": {
            each.name: each.for_task(run.task).pipeline_task for each in MODALITIES.values() if each.takes(run.task)
        },
        "contributions": sentences(run.metrics.contributions) if run.metrics.contributions else [],
        "task": run.task,
        "kind": kind,
        "pipeline_task": kind.pipeline_task,
        "input": _described_input(run, kind, part),
        "own_code": run.runs_own_code,
        "overlap": _overlap(run),
        "call": _call(kind, "input_pair" in part.frame, len(run.task.names)),
        "split": split,
        "note": run.metrics.notes.get(split),
        "headline": _headline(run),
        "metrics": run.metrics.parts[split],
        "per_class": run.metrics.per_class.get(split, []),
        "class_columns": run.task.class_columns,
        "rated_by": run.task.class_columns[-1],
        "weakest": _weakest(run.metrics.per_class.get(split, []), run.task.class_columns[-1]),
        "confusion": _confusion(run, part),
        "mistakes": _mistakes(run, part),
        "calibration": _calibration(run, part),
        "sets": _sets(run),
        "counts": {part: rows for part in PARTS if (rows := about.data.counts.get(part))},
        "labels": _label_counts(run),
        "grouped": part.groups is not None,
        "division": _division(run),
        "paper": PAPERS.get(about.strategy),
        "trainable_share": run.trainable_share,
        "trained_groups": [group for group in run.freeze_check.layer_groups if group.trainable],
        "seconds": run.seconds,
        "certificate": round_trip_of(run.folder),
        "config": yaml.safe_dump(public_config(run.folder), sort_keys=False, allow_unicode=True),
        "blank": BLANK,
    }


def _base(about: RunRecord) -> str:
    """Return the checkpoint as it may be published; of several inputs, that of each."""
    sources = [each.checkpoint.source for each in about.inputs if each.checkpoint] or [about.checkpoint.source]
    return ", ".join(map(shown_source, sources))


def _described_input(run: RecordedRun, kind: ModalityKind, part: Part) -> str:
    if run.inputs:
        return f"an example of {listed(run.inputs)}"
    return kind.describe_input("input_pair" in part.frame)


def _overlap(run: RecordedRun) -> int | None:
    """Return how many tokens two windows of a long text shared; None where texts are read whole, or cut."""
    file = run.folder / "model" / "tokenizer_config.json"
    if not run.task.by_word or not file.is_file():
        return None
    return max(1, json.loads(file.read_text(encoding="utf-8")).get("model_max_length", 512) // 4)


def _headline(run: RecordedRun) -> dict[str, Any] | None:
    """Return the cross-validated metrics, where they are the headline."""
    if run.headline != "cross_validation":
        return None
    return {"title": run.metrics.describe_part(run.headline), "metrics": run.metrics.cross_validation}


def held_out_split(run: RecordedRun) -> str:
    """Return the part that the card reports: test, or validation where there is no test part."""
    return "test" if run.metrics.test else "validation"


def _call(kind: ModalityKind, pairs: bool, outputs: int) -> str:
    """Return the arguments of a call of the pipeline, as Python code."""
    options = (f"{name}={value!r}" for name, value in kind.pipeline_options(outputs).items())
    return ", ".join((kind.usage(pairs), *options))


def shown_source(source: str) -> str:
    """Return a checkpoint as it may be published: one that is not from the Hub gives the last part of its path alone."""
    return source if hub_source(source) else _last_part(source)


def public_config(folder: Path) -> dict[str, Any]:
    """Return the run's configuration without what was left open, the folders of the machine it was made on, and its own push."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    public = _without_folders({name: value for name, value in config.items() if name != "push_to_hub"})
    if hub_source(RunRecord.read(folder).checkpoint.source):
        public["model"] = {name: value for name, value in config["model"].items() if value is not None}
    return public


def _without_folders(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inner, key) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_folders(inner, name) for inner in value]
    is_private = isinstance(value, str) and name not in NO_PATHS and not value.startswith("hub:")
    return _last_part(value) if is_private else value


def _last_part(path: str) -> str:
    """Return the name at the end of a path, whichever system wrote it; a relative folder can name a client too."""
    return PureWindowsPath(path).name if re.search(r"[/\\]|^~", path) else path


def round_trip_of(folder: Path) -> dict[str, Any] | None:
    file = folder / "certificate.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _label_counts(run: RecordedRun) -> dict[str, int]:
    """How many training rows carry each label (nothing for regression)."""
    import pandas as pd

    if not run.task.has_classes:
        return {}
    splits = pd.read_parquet(run.folder / "splits.parquet", columns=["split", "label"])
    labels = splits.loc[splits["split"] == "train", "label"]
    counts = Counter(name for label in labels for name in run.task.label_names(label))
    return {name: counts[name] for name in run.task.names}


def _division(run: RecordedRun) -> str:
    """How the rows came into their parts, as a sentence ("" for runs that did not write it down)."""
    given, counts, split = (
        run.record.data.given,
        run.record.data.counts,
        run.config["data"].get("split", {}),
    )
    if split.get("file"):
        return "The parts are those of an earlier run's split file."
    if given is None:
        return ""
    cut = [name for name in PARTS[1:] if name in counts and name not in given]
    came = [name for name in PARTS[1:] if name in counts and name in given]
    sentences = [f"The {' and '.join(came)} rows came as such with the data."] if came else []
    if cut:
        groups = ", groups kept together" if split.get("group") else ""
        sentences.append(
            f"The {' and '.join(cut)} rows were drawn at random, stratified{groups} (seed {split.get('seed', 0)})."
        )
    return " ".join(sentences)


def _weakest(per_class: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Up to three classes whose metric, interval and all, lies below that of the middle class; the lowest first."""
    rated = sorted((row for row in per_class if row.get(metric)), key=lambda row: row[metric]["value"])
    middle = np.median([row[metric]["value"] for row in rated]) if rated else 0.0
    return [row for row in rated[:3] if row[metric]["high"] < middle]


def _confusion(run: RecordedRun, part: Part) -> list[list[int]] | None:
    """Rows: true class; columns: predicted. None where there are too many classes to show, or no classes."""
    size = run.task.head_size
    if not run.task.exclusive or size > MOST_CLASSES:
        return None
    matrix = np.zeros((size, size), dtype=int)
    np.add.at(matrix, (part.targets, run.task.decide(part.scores)), 1)
    return matrix.tolist()


def _mistakes(run: RecordedRun, part: Part) -> list[tuple[str, str, int]]:
    """Return the most frequent confusions as (true, predicted, rows)."""
    if not run.task.exclusive:
        return []
    pairs = zip(part.targets.tolist(), run.task.decide(part.scores).tolist(), strict=True)
    counts = Counter((true, guess) for true, guess in pairs if true != guess)
    return [(run.task.names[true], run.task.names[guess], rows) for (true, guess), rows in counts.most_common(5)]


def _sets(run: RecordedRun) -> str:
    from hftransfer.evaluation.conformal import describe_sets

    found = run.metrics.conformal.get("test", {})
    return describe_sets(run.task, found) if "achievable" in found else ""


def _calibration(run: RecordedRun, part: Part) -> dict[str, Any] | None:
    if not run.task.has_classes or run.task.by_part:
        return None
    from hftransfer.evaluation.calibration import expected_calibration_error

    error = expected_calibration_error(run.task, part.targets, part.scores, part.groups)
    return {"temperature": run.record.temperature, "error": vars(error)}


# --- metadata --------------------------------------------------------------------------------------------------------


def card_metadata(run: RecordedRun, facts: dict[str, Any], adapter: bool = False) -> dict[str, Any]:
    """Return the front matter that the Hub reads: tags, base model, and the results as a model index."""
    metadata: dict[str, Any] = {
        "library_name": "hftransfer" if run.inputs else "peft" if adapter else "transformers",
        **({} if run.inputs else {"pipeline_tag": facts["pipeline_task"]}),
        "tags": ["hftransfer", "transfer-learning", run.record.strategy],
    }
    if base := hub_source(run.record.checkpoint.source):
        metadata["base_model"] = base[0]
    return metadata | {"model-index": [{"name": run.name, "results": [_results(run, facts)]}]}


def hub_source(source: str) -> tuple[str, str] | None:
    """Hub id and commit of a checkpoint's source; None for one that did not come from the Hub."""
    found = re.fullmatch(r"(.+)@([0-9a-f]{40})", source)
    return (found[1], found[2]) if found else None


def _results(run: RecordedRun, facts: dict[str, Any]) -> dict[str, Any]:
    data = str(public_config(run.folder)["data"].get("train") or "data")
    return {
        "task": {"type": "other" if run.inputs else facts["pipeline_task"]},
        "dataset": {"type": Path(data).stem, "name": Path(data).name, "split": facts["split"]},
        "metrics": [
            {"type": name, "value": round(found["value"], 6), "name": f"{titled(name)}, 95 % interval {_span(found)}"}
            for name, found in facts["metrics"].items()
        ],
    }


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def _span(found: dict[str, Any]) -> str:
    known = found["low"] == found["low"]  # NaN: not known
    return f"{_number(found['low'])} to {_number(found['high'])}" if known else "not known"
