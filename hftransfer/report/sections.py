"""What the page says, section by section, as plain values for the template."""

from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from hftransfer.core.wording import describe, listed, percent
from hftransfer.data.sources import SPLITS
from hftransfer.evaluation.calibration import apply_temperature, calibration_report, reliability
from hftransfer.evaluation.conformal import describe_sets
from hftransfer.evaluation.contributions import describe as describe_gain
from hftransfer.evaluation.contributions import sentences
from hftransfer.evaluation.entities import ERRORS, errors_of
from hftransfer.evaluation.kinds import BOUNDED, METRICS, titled
from hftransfer.modalities import kind_of
from hftransfer.report import plots
from hftransfer.runs.predictions import places_of
from hftransfer.runs.reader import RecordedRun
from hftransfer.runs.record import MetricsRecord
from hftransfer.tasks import Task

_UNITS = ("B", "kB", "MB", "GB", "TB")
_MOST_PAIRS = 12


def number(value: float) -> str:
    """Three decimals for shares, four digits for the rest; what is not quite 1 does not read as 1."""
    if 0.9995 <= value < 1:
        return f"{min(value, 0.99999):.5f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.4g}"


def interval(found: dict) -> str:
    """Return the ends of an interval, or that it is not known (docs/coverage.md)."""
    return f"{number(found['low'])} – {number(found['high'])}" if np.isfinite(found["low"]) else "not known"


def size(count: float) -> str:
    """Bytes in the unit that keeps the number short."""
    power = min(len(_UNITS) - 1, int(np.log10(max(1, count)) // 3))
    return f"{count / 1000**power:.3g} {_UNITS[power]}"


def overview(run: RecordedRun) -> dict[str, Any]:
    """Return the tiles at the top, and one sentence about what was trained on what."""
    about, counts, task = run.record, run.record.data.counts, run.task
    inputs = listed(run.inputs) if run.inputs else kind_of(about.modality).plural
    training, validation, test = (f"{counts.get(part, 0):,}" for part in ("train", "validation", "test"))
    return {
        "metric": f"{run.metrics.describe_part(run.headline)} {titled(task.headline)}",
        "found": run.metrics.parts[run.headline].get(task.headline),
        "sentence": f"{about.checkpoint.source}, adapted by the strategy “{about.strategy}” to {len(task.names)} "
        f"{task.outputs} of {inputs}: {training} training, {validation} validation and {test} test rows.",
        "tiles": [
            ("trained share of the weights", percent(run.trainable_share)),
            ("seconds in all", f"{run.seconds:,.1f}"),
            ("size of the model", size(run.model_bytes)),
            ("peak memory", size(about.peak_memory_bytes or 0)),
        ],
    }


def metrics(run: RecordedRun) -> dict[str, Any]:
    """Return the measured splits: a figure of what is a share, a table of everything, and what to keep in mind."""
    splits = {split: found for split, found in run.metrics.parts.items() if split in ("test", "validation")}
    names = list(dict.fromkeys(name for found in splits.values() for name in found))
    drawn = any(name in BOUNDED for name in names)
    return {
        "figure": plots.metrics_plot(splits) if drawn else "",
        "splits": list(splits),
        "rows": [(_titled(name), [found.get(name) for found in splits.values()]) for name in names],
        "repeated": _repeated(run.metrics),
        "sizes": [max(entry["n"] for entry in found.values()) for found in splits.values()],
        "notes": run.metrics.notes,
    }


def contributions(run: RecordedRun) -> dict[str, Any] | None:
    """Return what each of several inputs adds: sentences, and every combination with its metric, the best first."""
    found = run.metrics.contributions
    if found is None:
        return None
    sign = -1 if METRICS[found.metric].higher_is_better else 1
    return {
        "sentences": sentences(found),
        "metric": _titled(found.metric),
        "examples": f"{found.examples:,} {found.how}",
        "rows": [(listed(each.inputs), each.model_dump())
                 for each in sorted(found.combinations, key=lambda each: sign * each.value)],
        "gains": [(gain.input, listed(gain.to), describe_gain(gain, found.metric)) for gain in found.gains],
    }  # fmt: skip


def _missing(run: RecordedRun) -> list[tuple[str, str]]:
    """Return how many examples lack each of several inputs."""
    counts = {each.name: sum(each.missing.values()) for each in run.record.inputs}
    lacking = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return [("missing inputs", f"examples that lack one: {lacking or 'none'}")] if counts else []


def _repeated(metrics: MetricsRecord) -> list[tuple[str, list]]:
    """Return what was measured more than once: a title, and metrics with their `Measured`."""
    parts = {part: found for part, found in metrics.parts.items() if part in ("cross_validation", "seeds")}
    titles = {part: metrics.describe_part(part) for part in parts}
    if metrics.seeds:
        titles["seeds"] = f"{next(iter(metrics.seeds.values()))['n']} seeds, same test rows"
    return [(titles[part], [(_titled(name), value) for name, value in found.items()]) for part, found in parts.items()]


def _titled(name: str) -> str:
    if name not in METRICS:  # a metric of another library has no known direction
        return titled(name)
    return titled(name) + (" ↑" if METRICS[name].higher_is_better else " ↓")


def curves(run: RecordedRun) -> list[str]:
    """Loss, the validation score and the learning rate over the steps; none for a solved head."""
    loss = {"training": _curve(run, "loss"), "validation": _curve(run, "eval_loss")}
    figures = [({name: points for name, points in loss.items() if len(points[0])}, "loss")]
    logged = (f"eval_{name}" for name in ("accuracy", "micro_f1", "r2", "entity_f1", "mean_iou"))
    score = next((name for name in logged if len(_curve(run, name)[0])), None)
    if score:
        title = f"validation {titled(score.removeprefix('eval_'))}"
        figures.append(({"validation": _curve(run, score)}, title))
    figures.append(({"learning rate": _curve(run, "learning_rate")}, "learning rate"))
    return [
        plots.curve_plot(found, title) for found, title in figures if any(len(points[0]) for points in found.values())
    ]


def _curve(run: RecordedRun, key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[key]) for entry in run.history if np.isfinite(entry.get(key, np.nan))]
    return [step for step, _ in points], [value for _, value in points]


def confusion(run: RecordedRun) -> dict[str, Any] | None:
    """Return the matrix with classes that are confused standing together, and the pairs confused most; single-label only."""
    if not run.task.exclusive:
        return None
    part, classes = run.part(run.evaluated), run.task.head_size
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (part.targets, run.task.decide(part.scores)), 1)
    order = _confused_together(counts)
    names = [run.task.names[c] for c in order]
    return {
        "figure": plots.confusion_plot(counts[np.ix_(order, order)], names),
        "pairs": _pairs(counts, run.task.names),
    }


def entity_errors(run: RecordedRun) -> list[tuple[str, int, list[str]]]:
    """Return what is wrong with entities: the kind, how many, and some of them; nothing for other tasks."""
    if not run.task.by_word:
        return []
    task, part = run.task, run.part(run.evaluated)
    found: dict[str, list[str]] = {name: [] for name in ERRORS}
    rows = zip(part.targets, task.decide(part.scores), part.frame["input"], places_of(part.frame), strict=True)
    for true, decided, text, places in rows:
        for name, pairs in errors_of(task.spans(true), task.spans(decided)).items():
            found[name] += [" for ".join(_entity(task, text, places, span) for span in pair[::-1] if span)
                            for pair in pairs]  # fmt: skip
    return [(name, len(examples), list(dict.fromkeys(examples))[:5]) for name, examples in found.items()]


def _entity(task: Task, text: str, places: np.ndarray, span: tuple[int, int, int]) -> str:
    first, end, kind = span
    return f"{text[places[first, 0] : places[end - 1, 1]]} ({task.names[kind]})"


def _confused_together(counts: np.ndarray) -> np.ndarray:
    """Return an order of the classes by average linkage, near where they are confused."""
    if len(counts) < 3:
        return np.arange(len(counts))
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    distance = 1 - np.clip((shares + shares.T) / 2, 0, 1)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def _pairs(counts: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, str, int, str]]:
    wrong = counts - np.diag(np.diag(counts))
    places = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda place: -wrong[place])[:_MOST_PAIRS]
    return [(names[t], names[a], int(wrong[t, a]), f"{wrong[t, a] / counts[t].sum():.0%}") for t, a in places]


def scatter(run: RecordedRun) -> list[str]:
    """Answers over true values, one figure for each regression target."""
    if run.task.has_classes:
        return []
    part = run.part(run.evaluated)
    return [plots.scatter_plot(part.targets[:, k], part.scores[:, k], name) for k, name in enumerate(run.task.names)]


def calibration(run: RecordedRun) -> dict[str, Any] | None:
    """Log-loss, Brier score and calibration error on the test rows without and with the temperature that the run stored."""
    if not run.task.has_classes or run.task.by_part:
        return None
    part, temperature = run.part(run.evaluated), run.record.temperature
    logits = part.frame[[f"logit:{name}" for name in run.task.names]].to_numpy() * temperature
    found = calibration_report(run.task, logits, part.targets, temperature, part.groups)
    bins = {"calibrated": reliability(run.task, part.targets, part.scores, part.groups)}
    if abs(temperature - 1) > 1e-6:
        before = apply_temperature(run.task, logits, 1.0)
        bins = {"raw": reliability(run.task, part.targets, before, part.groups)} | bins
    return {
        "figure": plots.reliability_plot(bins),
        "temperature": f"{temperature:.3g}",
        "rows": [
            (name, vars(found["before"][key]), vars(found["after"][key]))
            for key, name in (
                ("log_loss", "log-loss ↓"),
                ("brier", "Brier score ↓"),
                ("ece", "calibration error (ECE) ↓"),
            )
        ],
    }


def sets(run: RecordedRun) -> str:
    """Coverage of prediction sets or intervals, measured and achievable; empty where the run recorded none."""
    found = run.metrics.conformal.get("test", {})
    return describe_sets(run.task, found) if "achievable" in found else ""


def classes(run: RecordedRun) -> dict[str, Any]:
    """Return the per-class table, weakest first, or the per-target table of a regression."""
    found = run.metrics.per_class[run.evaluated]
    if not run.task.has_classes:
        columns = [name for name in ("mae", "rmse", "r2", "pearson") if any(name in entry for entry in found)]
    else:
        columns = list(run.task.class_columns)
        key = columns[-1]
        found = sorted(found, key=lambda entry: entry[key]["value"] if entry[key] else 2)
    rows = run.train_rows
    return {
        "columns": [titled(name) for name in columns],
        "unit": "entities" if run.task.by_word else "images" if run.task.by_pixel else "rows",
        "rows": [
            (entry["name"], rows.get(entry["name"], ""), entry["n"], [entry.get(name) for name in columns])
            for entry in found
        ],
    }


def freeze_check(run: RecordedRun) -> list[dict[str, Any]]:
    """Each layer group with what trained and whether it moved, by the hashes before and after."""
    return [
        {
            "name": group.name,
            "parameters": f"{group.parameters:,}",
            "trainable": f"{group.trainable:,}",
            "rate": f"{group.learning_rate:.2g}" if group.learning_rate else "–",
            "moved": group.moved,
        }
        for group in run.freeze_check.layer_groups
    ]


def _patch_words(patch: dict[str, Any]) -> str:
    parts = [f"{split}: {done}" for split in SPLITS if (done := describe(patch, split))]
    return f"{patch['file']} ({'; '.join(parts) or 'nothing changed'})"


def provenance(run: RecordedRun) -> list[tuple[str, str]]:
    """Everything that tells one run from another."""
    about = run.record
    hardware = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.hardware.items())
    return [
        ("checkpoint", f"{about.checkpoint.source} (weights {about.checkpoint.weights_hash})"),
        ("data", f"fingerprint {about.data.fingerprint}, {len(about.data.skipped)} rows left out"),
        *_missing(run),
        *([("patch", _patch_words(patch))] if (patch := about.data.patch) else []),
        ("seed", str(about.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in about.versions.items())),
        ("hardware", hardware),
        ("seconds", ", ".join(f"{phase} {value:.1f}" for phase, value in about.seconds.items())),
    ]
