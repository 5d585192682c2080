"""What the climb found, in plain words: evidence, one sentence of advice, a table, and `advice.json`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hftransfer.core.wording import percent
from hftransfer.evaluation.kinds import higher_is_better
from hftransfer.planning.strategies.baselines import ON_RAW_INPUT
from hftransfer.planning.strategies.candidates import TITLES, TRAINED, Climb
from hftransfer.planning.strategies.decision import Answers, Difference

if TYPE_CHECKING:
    from rich.console import Group

FILE = "advice.json"


def as_dict(climb: Climb) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "metric": climb.judge.metric,
        "rows": int(max(len(answers.rows) for answers in climb.measured.values())),
        "folds": len(climb.bench.folds),
        "budget": climb.clock.budget,
        "seconds": climb.clock.spent,
        "prefer": climb.wishes.prefer,
        "rungs": [_rung(climb, climb.measured[name]) for name in TITLES if name in climb.measured],
        "skipped": climb.skipped,
        "ended": climb.ended,
        "chosen": climb.chosen.name,
        "changes": climb.chosen.changes,
        "advice": advice(climb),
        "evidence": evidence(climb),
        "layers": layers(climb),
    }


def _rung(climb: Climb, answers: Answers) -> dict[str, Any]:
    over = None if answers.name == "probe" else climb.against(answers.name, "probe")
    by_folds = None if answers.name == "probe" else climb.by_folds(answers)
    return {
        "name": answers.name,
        "score": asdict(climb.judge.score(answers)),
        "over_probe": over and asdict(over),
        "over_probe_by_folds": by_folds and asdict(by_folds),
        "folds": answers.folds,
        "seconds": answers.seconds,
        "total_seconds": answers.total_seconds,
        "trainable_share": answers.trainable_share,
        "predict_milliseconds": answers.row_milliseconds,
        "changes": answers.changes,
        **answers.notes,
    }


def advice(climb: Climb) -> str:
    """One sentence: what the chosen rung gains and costs, what cannot be told from it, and what to take."""
    chosen, title = climb.chosen, TITLES[climb.chosen.name]
    following = climb.deployable[[rung.name for rung in climb.deployable].index(chosen.name) + 1 :]
    others = [rung for rung in following if rung.name != "probe"]  # the gain over the probe is said by itself
    worse = [rung for rung in others if climb.judge.difference(rung, chosen).is_worse]
    alike = [rung for rung in others if rung not in worse]
    parts, said = _gain_of(climb, chosen) if chosen.name != "probe" else ([], chosen)
    alike = [rung for rung in alike if rung is not said]
    parts += [f"{_are(alike)} not distinguishable from {title}{_leader(climb, alike)}"] if alike else []
    parts += [f"{_are(worse)} worse"] if worse else []
    untried = [TITLES[name] for name in TRAINED if climb.skipped.get(name, "").startswith("it needs about")]
    parts += [f"there was no time for {_joined(untried)}"] if untried else []
    best = climb.judge.best(climb.deployable)
    dearer = f" (--prefer accuracy takes {TITLES[best.name]})" if best is not chosen else ""
    return f"{_capital('; '.join(parts) or 'nothing that trains more was tried')}: take {title}{dearer}."


def _are(rungs: list[Answers]) -> str:
    return f"{_joined([TITLES[rung.name] for rung in rungs])} {'is' if len(rungs) == 1 else 'are'}"


def _gain_of(climb: Climb, chosen: Answers) -> tuple[list[str], Answers]:
    """What is gained over the probe, and the rung that shows it: the best one, where the chosen one alone does not."""
    best = climb.judge.best(climb.deployable)
    if climb.against(chosen.name, "probe").is_better or best is chosen:
        return [_over_probe(climb, chosen)], chosen
    own = points(climb, climb.against(chosen.name, "probe"))
    simpler = f"{TITLES[chosen.name]} ({own}) is simpler and not distinguishable from it"
    return [_over_probe(climb, best), simpler], best


def _over_probe(climb: Climb, rung: Answers) -> str:
    gain, more = climb.against(rung.name, "probe"), max(0.0, rung.seconds - climb.measured["probe"].seconds)
    doubt = "" if gain.is_better else ", which these rows cannot tell from nothing,"
    return f"{TITLES[rung.name]} is {points(climb, gain)} over the probe{doubt} for {_time(more)} more"


def _leader(climb: Climb, alike: list[Answers]) -> str:
    best = climb.judge.best([climb.chosen, *alike])
    if best.name == climb.chosen.name:
        return ""
    gain = climb.judge.difference(best, climb.chosen)
    of = "" if len(alike) == 1 else f"{TITLES[best.name]} the best of them, "
    return f" ({of}{points(climb, gain)}, on {gain.rows} rows)"


def points(climb: Climb, found: Difference) -> str:
    """+4.1 (1.2 to 7.0) points; for regression the fall of the error in its own unit."""
    scale, unit = (1, f" less {climb.judge.metric}") if not climb.judge.task.has_classes else (100, " points")
    digits = 3 if scale == 1 else 1
    low, high = (f"{scale * value:.{digits}f}" for value in (found.low, found.high))
    return f"{scale * found.value:+.{digits}f} ({low} to {high}){unit}"


def evidence(climb: Climb) -> list[str]:
    """What the advice rests on, a sentence each."""
    return [
        sentence
        for sentence in (
            _labels(climb),
            _transfer(climb),
            _raw(climb),
            _peak(climb),
            _choice(climb),
            _folds(climb),
            *_left_out(climb),
        )
        if sentence
    ]


def _labels(climb: Climb) -> str:
    task, targets = climb.judge.task, climb.judge.targets[climb.bench.work.fitted]
    rows = f"{len(targets)} labelled rows to learn from"
    if not task.has_classes:
        return f"{rows}; every rung is measured on {_held(climb)}."
    counts = task.counts(targets)
    kind = task.output
    few = f"{counts.min():.0f}" if counts.min() == counts.max() else f"{counts.min():.0f} to {counts.max():.0f}"
    return f"{rows}, {few} a {kind}; every rung is measured on {_held(climb)}."


def _held(climb: Climb) -> str:
    count, rows = len(climb.bench.folds), sum(len(fold.held_out) for fold in climb.bench.folds)
    return f"{rows} rows of the validation part" if count == 1 else f"the same {count} folds of them"


def _transfer(climb: Climb) -> str:
    gain = climb.transfer_gain
    if gain is None:
        return ""
    if gain.is_better:
        return f"Pretraining is worth {points(climb, gain)}: the probe against the same head on random weights."
    found = f"Pretraining gives {points(climb, gain)} here, the probe against the same head on random weights: "
    if not climb.judge.could_be_beaten(climb.measured["random"]):
        return found + "the task is so easy that these rows cannot show more."
    return found + (
        "either the inputs are unlike what the checkpoint was trained on, and little can be expected of its features, or the "
        "task asks for little. Another checkpoint may help."
    )


def _raw(climb: Climb) -> str:
    gain = climb.against("probe", "raw")
    if gain is None or gain.is_better:
        return ""
    simple = ON_RAW_INPUT[climb.bench.data.kind.content]
    return (
        f"The probe is {points(climb, gain)} over a linear {simple}, which needs no network: its features add little."
    )


def layers(climb: Climb) -> list[dict[str, Any]]:
    """The cross-validated loss of the better pooling of each block: the layer-wise curve."""
    if climb.curve is None:
        return []
    losses: dict[int, float] = {}
    for readout, loss in climb.curve.losses.items():
        losses[readout.block] = min(loss, losses.get(readout.block, np.inf))
    return [{"block": block, "loss": float(losses[block])} for block in sorted(losses)]


def _peak(climb: Climb) -> str:
    curve = layers(climb)
    if len(curve) < 2:
        return ""
    peak, last = min(curve, key=lambda point: point["loss"]), curve[-1]
    if peak is last:
        return f"The layer-wise curve is best at the last of {len(curve)} blocks (loss {last['loss']:.3f})."
    losses = f"loss {peak['loss']:.3f}, at the end {last['loss']:.3f}"
    found = f"The layer-wise curve is best at block {peak['block']} of {last['block']} ({losses})"
    gain = climb.against("best-layer", "probe")
    if gain is None or not gain.is_better:
        return f"{found}; in {climb.judge.metric} these rows cannot tell the two."
    return f"{found}: the blocks above serve the source rather than this task, and may well be retrained."


def _choice(climb: Climb) -> str:
    """Describe what is left of the gain when the choice among several candidates is counted."""
    chosen, candidates = climb.chosen, len(climb.deployable) - 1
    if chosen.name == "probe":
        return ""
    found = climb.gain_after_choice(chosen)
    doubt = "" if found.is_better else ": not certain"
    of = f"the choice among {candidates} candidates and " if candidates > 1 else ""
    return (
        f"Expect about {points(climb, found)} from {TITLES[chosen.name]}, corrected for {of}other training sets{doubt}."
    )


def _folds(climb: Climb) -> str:
    chosen = climb.chosen
    found = None if chosen.name == "probe" else climb.by_folds(chosen)
    if found is None:
        return ""
    doubt = "" if found.is_better else ": another training set might well not show it"
    return f"From fold to fold, each trained on other rows, {TITLES[chosen.name]} gains {points(climb, found)}{doubt}."


def _left_out(climb: Climb) -> list[str]:
    """A sentence for each reason, with all that it kept from being tried."""
    names: dict[str, list[str]] = {}
    for name, reason in climb.skipped.items():
        names.setdefault(reason, []).append(TITLES.get(name, name))
    return [f"Not tried: {_joined(found)} ({reason})." for reason, found in names.items()]


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def as_table(found: dict[str, Any]) -> "Group":
    """Rungs, evidence and advice for a terminal, from what `as_dict` made."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    spent = f"{found['seconds']:.0f} of {found['budget']:.0f} s: {found['ended']}"
    title = f"{found['metric']} on held-out rows, 95 % intervals"
    table = Table(
        title=title, title_justify="left", caption=spent, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for column in ("rung", "score", "against the probe", "s x folds", "trains", "ms a row"):
        table.add_column(column, justify="left" if column == "rung" else "right")
    for rung in found["rungs"]:
        cells = _cells(rung, higher_is_better(found["metric"]))
        table.add_row(*cells, style="bold" if rung["name"] == found["chosen"] else "")
    return Group(table, *(Text(sentence) for sentence in found["evidence"]), Text(found["advice"], "bold"))


def _cells(rung: dict[str, Any], higher: bool) -> list[str]:
    score, over = rung["score"], rung["over_probe"]
    ends = [over["low"], over["high"]] if over else []
    low, high = (ends if higher else [-ends[1], -ends[0]]) if over else (0, 0)  # of the metric itself
    return [
        TITLES[rung["name"]], f"{score['value']:.3f} ({score['low']:.3f}–{score['high']:.3f})",
        f"{over['value'] if higher else -over['value']:+.2f} ({low:+.2f} to {high:+.2f})" if over else "",
        f"{rung['seconds']:.1f} x {rung['folds']}", percent(rung['trainable_share']),
        f"{rung['predict_milliseconds']:.2g}",
    ]  # fmt: skip
