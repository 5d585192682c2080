"""Checkpoints compared on the same rows: a cross-validated probe on each, and paired tests between them."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import pandas as pd
import torch
from tqdm.auto import tqdm

from hftransfer.config import RunConfig
from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.data import LabelledData, load_data
from hftransfer.data.splits import take_examples
from hftransfer.evaluation.comparison import Pair, compare_parts
from hftransfer.evaluation.intervals import Measured, measure
from hftransfer.evaluation.kinds import higher_is_better
from hftransfer.evaluation.metrics import metric_names
from hftransfer.models.reach import Reachable, reachable
from hftransfer.models.references import find
from hftransfer.pipeline.run_context import RunContext, probed
from hftransfer.pipeline.words import unseen_logits
from hftransfer.planning.checkpoints.candidates import CANDIDATES, described
from hftransfer.runs.reader import Part
from hftransfer.runtime import autotune

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranked:
    """One checkpoint: out-of-fold `metrics` of its probe, and what it costs.

    `milliseconds` a row on this machine, transforms of images included; `bytes` of the weights in float32.
    """

    name: str
    objective: str | None
    licence: str | None
    feature_source: str
    metrics: dict[str, Measured]
    milliseconds: float
    parameters: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Limits:
    """What a checkpoint may cost: milliseconds a row on this machine, and megabytes of weights in float32."""

    milliseconds: float | None = None
    megabytes: float | None = None

    def exceeded(self, found: Ranked) -> str | None:
        """Say which limit a checkpoint exceeds; None where it keeps both."""
        if self.milliseconds is not None and found.milliseconds > self.milliseconds:
            return f"{found.milliseconds:.3g} ms a row, above --max-ms {self.milliseconds:g}"
        if self.megabytes is not None and found.bytes > 1e6 * self.megabytes:
            return f"{found.bytes / 1e6:,.0f} MB, above --max-mb {self.megabytes:g}"
        return None


@dataclass(frozen=True)
class Ranking:
    """Checkpoints on the same `rows`, best first by `metric`; `pairs` are tested on these rows.

    `left_out` says which limit a checkpoint exceeds, by its name.
    """

    metric: str
    rows: int
    checkpoints: list[Ranked]
    pairs: list[Pair]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def pairs_of_best(self) -> dict[str, Pair]:
        """By the other one's name, the best checkpoint against it."""
        best = self.checkpoints[0].name
        seen = [pair.seen_from(best) for pair in self.pairs if best in (pair.first, pair.second)]
        return {pair.first: pair for pair in seen}

    @property
    def level_with_best(self) -> list[str]:
        """The best checkpoint and every one that these rows do not tell from it."""
        best, against = self.checkpoints[0].name, self.pairs_of_best
        return [found.name for found in self.checkpoints if found.name == best or not against[found.name].separated]

    @property
    def pareto(self) -> list[str]:
        """Checkpoints that no other one beats in both score and speed, the fastest first."""
        sign, kept = 1 if higher_is_better(self.metric) else -1, []
        for found in sorted(self.checkpoints, key=lambda checkpoint: checkpoint.milliseconds):
            score = sign * found.metrics[self.metric].value
            if not kept or score > kept[-1][0]:
                kept.append((score, found.name))
        return [name for _, name in kept]

    @property
    def verdict(self) -> str:
        level = self.level_with_best
        if len(self.checkpoints) == 1:
            return f"{level[0]} is the only checkpoint that was tried."
        if len(level) == 1:
            return f"{level[0]} is best: {self.metric} separates it from every other checkpoint on {self.rows} rows."
        fastest = min((c for c in self.checkpoints if c.name in level), key=lambda c: c.milliseconds)
        tie = f"A tie: {self.rows} rows do not separate {' and '.join(level)} by {self.metric}."
        speed = f"the fastest ({fastest.milliseconds:.3g} ms a row)"
        if fastest.name == level[0]:
            return f"{tie} {fastest.name} has the best estimate and is {speed}."
        return f"{tie} {level[0]} has the best estimate; {fastest.name} is {speed}."

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        words = {"level_with_best": self.level_with_best, "pareto": self.pareto, "verdict": self.verdict}
        return asdict(self) | words


def rank(
    config: RunConfig, names: list[str], rows: int = 1000, metric: str | None = None, limits: Limits = Limits()
) -> Ranking:
    """Probe each checkpoint of `names` on a stratified sample of the training and validation rows.

    `names` ["auto"] stands for the list in `candidates.py`, of which those that cannot be had are left out. Test rows
    stay unseen: they judge what is trained in the end. What exceeds a limit is left out. Raises `UserError`.
    """
    data = load_data(config.data)
    data.require("rank")
    data = sample(data, rows, config.seed)
    metric = metric or data.task.headline
    if metric not in (known := metric_names(data.task)):
        raise UserError(f"The metric {metric!r} is not measured here.{did_you_mean(metric, known)}")
    found, outcomes, left_out = [], [], {}
    for candidate in (bar := tqdm(_candidates(config, names, data), desc="checkpoints", leave=False, disable=None)):
        bar.set_postfix_str(candidate.name)
        with _skipping(candidate.name, names == ["auto"]):
            ranked, part = _ranked(config, candidate, data)
            if reason := limits.exceeded(ranked):
                left_out[candidate.name] = reason
                continue
            found, outcomes = [*found, ranked], [*outcomes, part]
    for name, reason in left_out.items():
        log.info("Left out %s: %s", name, reason)
    if left_out and not found:
        raise UserError(f"No checkpoint keeps the limits: {'; '.join(map(': '.join, left_out.items()))}.")
    if not found:
        raise UserError("No checkpoint could be tried. Name some with --models: folders, Hub ids, or starter/….")
    if any(metric not in ranked.metrics for ranked in found):
        raise UserError(f"The metric {metric!r} is undefined on these rows: choose another with --metric.")
    pairs = compare_parts(data.task, outcomes, [ranked.name for ranked in found], metric)
    best_first = sorted(found, key=lambda ranked: ranked.metrics[metric].value, reverse=higher_is_better(metric))
    return Ranking(metric, len(data.frame), best_first, pairs, left_out)


def sample(data: LabelledData, rows: int, seed: int) -> LabelledData:
    """At most so many of the training and validation rows, in the proportions of the classes."""
    known = data.frame[data.frame["split"] != "test"]
    taken = known.index if rows >= len(known) else known.index[_taken(known, data, rows, seed)]
    log.info("Ranking on %d of %d training and validation rows", len(taken), len(known))
    frame = data.frame.loc[taken].reset_index(drop=True).assign(split="train")
    return replace(data, frame=frame, inspections=[data.inspections[row] for row in taken], links=None)


def _taken(known: pd.DataFrame, data: LabelledData, rows: int, seed: int) -> list[int]:
    """Return the places in `known` of so many rows."""
    return list(take_examples(known.reset_index(drop=True), data.task, rows, seed, "--rows "))


def _candidates(config: RunConfig, names: list[str], data: LabelledData) -> list[Reachable]:
    """Return what to try. A name that the user gave has to be found, before anything is computed."""
    if names == ["auto"]:
        return list(reachable(known.name for known in CANDIDATES if known.modality == data.modality))
    for name in names:
        find(config.model.model_copy(update={"name": name}))
    return [Reachable(name, name) for name in dict.fromkeys(names)]


@contextmanager
def _skipping(name: str, auto: bool) -> Iterator[None]:
    """Of the automatic list, a checkpoint that turns out not to load costs a line, not the ranking."""
    try:
        yield
    except UserError as error:
        if not auto:
            raise
        log.info("Skipped %s: %s", name, error)


def _ranked(config: RunConfig, candidate: Reachable, data: LabelledData) -> tuple[Ranked, Part]:
    begin = time.perf_counter()
    model = config.model.model_copy(update={"name": candidate.place})
    context, probe = probed(config.model_copy(update={"model": model}), data)
    task = context.data.task
    scores = task.probabilities(task.in_units(unseen_logits(context, probe)))
    part = Part(data.frame[["id", "group"]], context.targets, scores)
    known, sizes = described(candidate.name), [tensor.numel() for tensor in context.model.parameters()]
    ranked = Ranked(
        candidate.name, known.objective if known else None, known.licence if known else None, probe.feature_source.name,
        measure(task, part.targets, scores, part.groups),
        _milliseconds(context), sum(sizes), 4 * sum(sizes),
        time.perf_counter() - begin,
    )  # fmt: skip
    return ranked, part


def _milliseconds(context: RunContext) -> float:
    """Of one row in a batch: collating and the whole network, the best of several."""
    items, compute_config = context.items[: context.compute_config.batch_size], context.compute_config

    def step() -> None:
        batch = compute_config.place(context.modality.collate(items))
        with torch.inference_mode(), compute_config.context():
            context.model(**batch)

    return 1000 * autotune.best_seconds([step], compute_config.device)[0] / len(items)
