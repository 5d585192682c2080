"""What the search found, in plain words: evidence, one sentence of advice, a table, and `advice.json`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hftransfer.core.wording import percent
from hftransfer.evaluation.kinds import higher_is_better
from hftransfer.modalities.base import ASSUMED_GAINS
from hftransfer.planning.strategies.candidates import TITLES, TRAINED
from hftransfer.planning.strategies.decision import Difference, HeldOutPredictions
from hftransfer.planning.strategies.search import Search

if TYPE_CHECKING:
    from rich.console import Group

FILE = "advice.json"


def as_dict(search: Search) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "metric": search.evaluator.metric,
        "rows": int(max(len(predictions.rows) for predictions in search.measured.values())),
        "folds": len(search.experiments.folds),
        "budget": search.clock.budget,
        "seconds": search.clock.spent,
        "prefer": search.wishes.prefer,
        "candidates": [_candidate(search, search.measured[name]) for name in TITLES if name in search.measured],
        "skipped": search.skipped,
        "ended": search.ended,
        "expected": {name: asdict(gain) for name, gain in search.expected.items()},
        "chosen": search.chosen,
        "changes": search.changes,
        "advice": advice(search),
        "evidence": evidence(search),
        "layers": layers(search),
    }


def _candidate(search: Search, predictions: HeldOutPredictions) -> dict[str, Any]:
    over = None if predictions.name == "probe" else search.against(predictions.name, "probe")
    by_folds = None if predictions.name == "probe" else search.by_folds(predictions)
    return {
        "name": predictions.name,
        "score": asdict(search.evaluator.score(predictions)),
        "over_probe": over and asdict(over),
        "over_probe_by_folds": by_folds and asdict(by_folds),
        "folds": predictions.folds,
        "seconds": predictions.seconds,
        "total_seconds": predictions.total_seconds,
        "trainable_share": predictions.trainable_share,
        "predict_milliseconds": predictions.row_milliseconds,
        "changes": predictions.changes,
        **predictions.notes,
    }


def advice(search: Search) -> str:
    """One sentence: what the chosen candidate gains and costs, what cannot be told from it, and what to take."""
    parts = _of_measured(search) if search.chosen in search.measured else [_of_prior(search)]
    untried = [TITLES[name] for name in TRAINED if search.skipped.get(name, "").startswith("it needs about")]
    untried = [title for title in untried if title != TITLES[search.chosen]]
    parts += [f"there was no time for {_joined(untried)}"] if untried else []
    said = _capital("; ".join(parts) or "nothing that trains more was tried")
    return f"{said}: take {TITLES[search.chosen]}{_instead(search)}."


def _instead(search: Search) -> str:
    """Name what the other preference takes, where that is something else."""
    other = "simplicity" if search.wishes.prefer == "accuracy" else "accuracy"
    taken = search.preferred(other)
    return f" (--prefer {other} takes {TITLES[taken]})" if taken != search.chosen else ""


def _of_prior(search: Search) -> str:
    gain = 100 * search.expected[search.chosen].mean
    start = " from the best layer's head" if "head.layer" in search.changes else ""
    source = "prior results" if search.experiments.data.kind.prior_measured else "an assumption"
    expected = f"is expected to gain {gain:+.1f} points over the probe by {source}, not measured here"
    return f"{TITLES[search.chosen]}{start} {expected}"


def _of_measured(search: Search) -> list[str]:
    chosen, title = search.measured[search.chosen], TITLES[search.chosen]
    following = search.deployable[[candidate.name for candidate in search.deployable].index(chosen.name) + 1 :]
    others = [candidate for candidate in following if candidate.name != "probe"]  # its gain is said by itself
    worse = [candidate for candidate in others if search.evaluator.difference(candidate, chosen).is_worse]
    alike = [candidate for candidate in others if candidate not in worse]
    parts, said = _gain_of(search, chosen) if chosen.name != "probe" else ([], chosen)
    alike = [candidate for candidate in alike if candidate is not said]
    parts += [f"{_are(alike)} not distinguishable from {title}{_leader(search, alike)}"] if alike else []
    return parts + ([f"{_are(worse)} worse"] if worse else [])


def _are(candidates: list[HeldOutPredictions]) -> str:
    return f"{_joined([TITLES[candidate.name] for candidate in candidates])} {'is' if len(candidates) == 1 else 'are'}"


def _gain_of(search: Search, chosen: HeldOutPredictions) -> tuple[list[str], HeldOutPredictions]:
    """Return what is gained over the probe, and the candidate that shows it: the best, where a simpler one is chosen."""
    best = search.evaluator.best(search.deployable)
    accuracy = search.wishes.prefer == "accuracy"
    if accuracy or search.against(chosen.name, "probe").is_better or best is chosen:
        return [_over_probe(search, chosen)], chosen
    own = points(search, search.against(chosen.name, "probe"))
    simpler = f"{TITLES[chosen.name]} ({own}) is simpler and not distinguishable from it"
    return [_over_probe(search, best), simpler], best


def _over_probe(search: Search, candidate: HeldOutPredictions) -> str:
    gain, more = search.against(candidate.name, "probe"), max(0.0, candidate.seconds - search.measured["probe"].seconds)
    doubt = "" if gain.is_better else ", which these rows cannot tell from nothing,"
    return f"{TITLES[candidate.name]} is {points(search, gain)} over the probe{doubt} for {_time(more)} more"


def _leader(search: Search, alike: list[HeldOutPredictions]) -> str:
    chosen = search.measured[search.chosen]
    best = search.evaluator.best([chosen, *alike])
    if best.name == chosen.name:
        return ""
    gain = search.evaluator.difference(best, chosen)
    of = "" if len(alike) == 1 else f"{TITLES[best.name]} the best of them, "
    return f" ({of}{points(search, gain)}, on {gain.rows} rows)"


def points(search: Search, found: Difference) -> str:
    """+4.1 (1.2 to 7.0) points; for regression the fall of the error in its own unit."""
    scale, unit = (1, f" less {search.evaluator.metric}") if not search.evaluator.task.has_classes else (100, " points")
    digits = 3 if scale == 1 else 1
    low, high = (f"{scale * value:.{digits}f}" for value in (found.low, found.high))
    return f"{scale * found.value:+.{digits}f} ({low} to {high}){unit}"


def evidence(search: Search) -> list[str]:
    """Return what the advice rests on, a sentence each."""
    return [
        sentence
        for sentence in (
            _labels(search),
            _transfer(search),
            _raw(search),
            _peak(search),
            _expected(search),
            _choice(search),
            _folds(search),
            *_left_out(search),
        )
        if sentence
    ]


def _labels(search: Search) -> str:
    task, targets = search.evaluator.task, search.evaluator.targets[search.experiments.context.fitted]
    rows = f"{len(targets)} labelled rows to learn from"
    if not task.has_classes:
        return f"{rows}; every candidate is measured on {_held(search)}."
    counts = task.counts(targets)
    kind = task.output
    few = f"{counts.min():.0f}" if counts.min() == counts.max() else f"{counts.min():.0f} to {counts.max():.0f}"
    return f"{rows}, {few} a {kind}; every candidate is measured on {_held(search)}."


def _held(search: Search) -> str:
    count, rows = len(search.experiments.folds), sum(len(fold.held_out) for fold in search.experiments.folds)
    return f"{rows} rows of the validation part" if count == 1 else f"the same {count} folds of them"


def _transfer(search: Search) -> str:
    gain = search.transfer_gain
    if gain is None:
        return ""
    if gain.is_better:
        return f"Pretraining is worth {points(search, gain)}: the probe against the same head on random weights."
    found = f"Pretraining gives {points(search, gain)} here, the probe against the same head on random weights: "
    if not search.evaluator.could_be_beaten(search.measured["random"]):
        return found + "the task is so easy that these rows cannot show more."
    return found + (
        "either the inputs are unlike what the checkpoint was trained on, and little can be expected of its features, or the "
        "task asks for little. Another checkpoint may help."
    )


def _raw(search: Search) -> str:
    gain = search.against("probe", "raw")
    if gain is None or gain.is_better:
        return ""
    simple = search.experiments.data.kind.raw_model
    return (
        f"The probe is {points(search, gain)} over a linear {simple}, which needs no network: its features add little."
    )


def layers(search: Search) -> list[dict[str, Any]]:
    """Return the cross-validated loss of the better pooling of each block: the layer-wise curve."""
    if search.curve is None:
        return []
    losses: dict[int, float] = {}
    for feature_source, loss in search.curve.losses.items():
        losses[feature_source.block] = min(loss, losses.get(feature_source.block, np.inf))
    return [{"block": block, "loss": float(losses[block])} for block in sorted(losses)]


def _peak(search: Search) -> str:
    curve = layers(search)
    if len(curve) < 2:
        return ""
    peak, last = min(curve, key=lambda point: point["loss"]), curve[-1]
    if peak is last:
        return f"The layer-wise curve is best at the last of {len(curve)} blocks (loss {last['loss']:.3f})."
    losses = f"loss {peak['loss']:.3f}, at the end {last['loss']:.3f}"
    found = f"The layer-wise curve is best at block {peak['block']} of {last['block']} ({losses})"
    gain = search.against("best-layer", "probe")
    if gain is None or not gain.is_better:
        return f"{found}; in {search.evaluator.metric} these rows cannot tell the two."
    return f"{found}: the blocks above serve the source rather than this task, and may well be retrained."


def _expected(search: Search) -> str:
    """Describe what prior results say of the chosen candidate, and what is expected of it with what was measured."""
    prior, kind, task = search.prior(search.chosen), search.experiments.data.kind, search.evaluator.task
    if not kind.prior_measured:
        return (
            f"There are no prior results on {task.outputs}: before a fold is measured, a strategy is assumed to gain nothing "
            f"over the probe, with a standard deviation of {100 * ASSUMED_GAINS['full'][1]:.0f} points."
        )
    if prior is None or search.chosen not in search.measured:
        return ""
    both = 100 * search.expected[search.chosen].mean
    return (
        f"Prior results on other data sets: {100 * prior.mean:+.1f} points over the probe from {TITLES[search.chosen]} "
        f"(standard deviation {100 * prior.sd:.1f}); with what was measured here {both:+.1f}."
    )


def _measured_choice(search: Search) -> HeldOutPredictions | None:
    """Return what the chosen candidate predicted; None for the probe, which gains nothing, and without a measurement."""
    return None if search.chosen == "probe" else search.measured.get(search.chosen)


def _choice(search: Search) -> str:
    """Describe what is left of the gain when the choice among several candidates is counted."""
    chosen, candidates = _measured_choice(search), len(search.deployable) - 1
    if chosen is None:
        return ""
    found = search.gain_after_choice(chosen)
    doubt = "" if found.is_better else ": not certain"
    of = f"the choice among {candidates} candidates and " if candidates > 1 else ""
    return f"Expect about {points(search, found)} from {TITLES[chosen.name]}, corrected for {of}other training sets{doubt}."


def _folds(search: Search) -> str:
    chosen = _measured_choice(search)
    found = None if chosen is None else search.by_folds(chosen)
    if found is None:
        return ""
    doubt = "" if found.is_better else ": another training set might well not show it"
    return f"From fold to fold, each trained on other rows, {TITLES[chosen.name]} gains {points(search, found)}{doubt}."


def _left_out(search: Search) -> list[str]:
    """Return a sentence for each reason, with all that it kept from being tried."""
    names: dict[str, list[str]] = {}
    for name, reason in search.skipped.items():
        names.setdefault(reason, []).append(TITLES.get(name, name))
    return [f"Not tried: {_joined(found)} ({reason})." for reason, found in names.items()]


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def as_table(found: dict[str, Any]) -> "Group":
    """Candidates, evidence and advice for a terminal, from what `as_dict` made."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    spent = f"{found['seconds']:.0f} of {found['budget']:.0f} s: {found['ended']}"
    title = f"{found['metric']} on held-out rows, 95 % intervals"
    table = Table(
        title=title, title_justify="left", caption=spent, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for column in ("candidate", "score", "against the probe", "s x folds", "trains", "ms a row"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for candidate in found["candidates"]:
        cells = _cells(candidate, higher_is_better(found["metric"]))
        table.add_row(*cells, style="bold" if candidate["name"] == found["chosen"] else "")
    return Group(table, *(Text(sentence) for sentence in found["evidence"]), Text(found["advice"], "bold"))


def _cells(candidate: dict[str, Any], higher: bool) -> list[str]:
    score, over = candidate["score"], candidate["over_probe"]
    ends = [over["low"], over["high"]] if over else []
    low, high = (ends if higher else [-ends[1], -ends[0]]) if over else (0, 0)  # of the metric itself
    return [
        TITLES[candidate["name"]], f"{score['value']:.3f} ({score['low']:.3f}–{score['high']:.3f})",
        f"{over['value'] if higher else -over['value']:+.2f} ({low:+.2f} to {high:+.2f})" if over else "",
        f"{candidate['seconds']:.1f} x {candidate['folds']}", percent(candidate['trainable_share']),
        f"{candidate['predict_milliseconds']:.2g}",
    ]  # fmt: skip
