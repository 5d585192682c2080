"""Check that the saved model is the evaluated one: load it as an outside user would and ask it recorded examples.

The check uses plain transformers classes in float32: no feature store, no split point, no autocast, no replaced CPU
operations. It runs before the run folder is complete, so that `metrics.json` cannot describe another network.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.features.passes import predict_logits
from hftransfer.models.loading import quiet_transformers
from hftransfer.pipeline.pixel_check import check_pixels
from hftransfer.pipeline.run_context import RunContext
from hftransfer.pipeline.tolerance import EXAMPLES, Tolerance
from hftransfer.pipeline.word_check import check_words
from hftransfer.probe.fit import Probe
from hftransfer.runs.predictions import Predictions

log = logging.getLogger(__name__)

SECONDS = 0.6  # after which no further batch is begun: 16 texts of 400 tokens take three


def check_saved_model(
    folder: Path, context: RunContext, model: nn.Module, predictions: Predictions, probe: Probe | None
) -> dict[str, Any]:
    """Compare the model in `folder` with up to 16 recorded logits; return what `run.json` says of it.

    The smallest and the largest inputs are always among the examples: the smallest is padded beside the largest, and
    read alone too. Others follow, from small to large, as long as they take no more than `SECONDS`. Raises `UserError`
    that names the stage where the saved model answers otherwise.
    """
    if context.data.task.by_word:
        return check_words(folder, context, model, predictions)
    if context.data.task.by_pixel:
        return check_pixels(folder, context, model, predictions)
    begin = time.perf_counter()
    rows, recorded = recorded_logits(context, model, predictions, probe)
    if not len(rows):
        return {"examples": 0}
    saved = Saved.load(folder, context)
    asked, found = saved.logits(context, rows, SECONDS)
    spread, rows, recorded = _spread(recorded), rows[asked], recorded[asked]
    found[0] = _farther(recorded[0], found[0], saved.logits(context, rows[:1])[1][0])
    gap, tolerance = float(np.abs(recorded - found).max()) / spread, Tolerance.of(context.compute_config)
    task = context.data.task
    differ = task.decides_otherwise(task.probabilities(recorded), task.probabilities(found), tolerance.tie)
    if not gap <= tolerance.logits or differ.any():
        stage = _stage(context, model, saved, rows, found, tolerance)
        raise UserError(_difference(context, rows, differ, gap, tolerance, stage))
    seconds = time.perf_counter() - begin
    log.info("Self-check: the saved model gives the recorded answers to %d examples (%.1f s)", len(rows), seconds)
    return {"examples": len(rows), "max_difference": gap, "tolerance": tolerance.logits, "seconds": seconds}


@dataclass(frozen=True)
class Saved:
    """A model folder as plain transformers loads it."""

    model: nn.Module
    processor: Any

    @classmethod
    def load(cls, folder: Path, context: RunContext) -> "Saved":
        remote = context.config.model.trust_remote_code
        reader = context.modality.kind.auto_processor
        with quiet_transformers():
            model = context.modality.kind.auto_class.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=remote
            )
            processor = reader.from_pretrained(folder, trust_remote_code=remote)
        return cls(model.to(context.compute_config.device).eval(), processor)

    def logits(self, context: RunContext, rows: np.ndarray, seconds: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Return positions (n,) of the raw inputs that were asked, ascending, and their logits (n, C).

        `rows` are in order of size. The smallest and the largest are always asked, further batches where they fit into
        `seconds` at the rate of those before them.
        """
        sizes, begin = _sizes(context, rows), time.perf_counter()
        asked, found, done = [], [], 0.0
        for batch in _batches(len(rows), context.modality.mixes_lengths):
            cost, taken = len(batch) * sizes[batch].max(), time.perf_counter() - begin
            if found and taken + taken / done * cost > seconds:
                break
            frame = context.data.frame.iloc[rows[batch]]
            found.append(_logits(self.model, context, context.modality.plain_batch(self.processor, frame)))
            asked.append(batch)
            done += cost
        order = np.argsort(np.concatenate(asked))
        return np.concatenate(asked)[order], np.concatenate(found)[order]


def recorded_logits(
    context: RunContext, model: nn.Module, predictions: Predictions, probe: Probe | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and what the evaluated network gave for them (n, C): held-out rows, or where there are none fitted ones.

    Out-of-fold predictions come from other heads and are no part of it.
    """
    own = ~predictions.out_of_fold
    if own.any():
        chosen = np.flatnonzero(own)[_extremes(context, predictions.positions[own])]
        return predictions.positions[chosen], predictions.logits[chosen]
    rows = context.fitted[_extremes(context, context.fitted)]
    if probe is not None and not context.trains:
        return rows, context.data.task.in_units(probe.logits[rows]) / predictions.temperature
    return rows, predict_logits(model, context.modality, [context.items[row] for row in rows], context.compute_config)


def _extremes(context: RunContext, rows: np.ndarray) -> np.ndarray:
    """Return which of `rows` to ask, by size: the largest, and others spread evenly over the smallest quarter.

    Small inputs tell as much as long ones and cost less.
    """
    ordered = np.argsort(_sizes(context, rows), kind="stable")
    last = len(rows) - 1
    quarter = min(last, max(EXAMPLES - 2, last // 4))
    return ordered[np.unique(np.append(np.linspace(0, quarter, EXAMPLES - 1).round(), last).astype(int))[: len(rows)]]


def _sizes(context: RunContext, rows: np.ndarray) -> np.ndarray:
    """Return the size (n,) of each input: tokens times pixels."""
    lengths = np.array(context.modality.lengths(context.items))[rows]
    pixels = np.array([max(1, inspection.size[0] * inspection.size[1]) for inspection in context.data.inspections])[
        rows
    ]
    return lengths * pixels


def _batches(count: int, mixed: bool = True) -> list[np.ndarray]:
    """Return positions of examples in order of size: the smallest beside the largest, the others by fours of like sizes.

    Unless `mixed`, each is asked alone.
    """
    if not mixed:
        return [np.array([place]) for place in (0, *range(count - 1, 0, -1))]
    others = np.arange(1, count - 1)
    return [np.unique([0, count - 1]), *np.split(others, range(4, len(others), 4))][: 1 + len(others)]


def relative_gap(recorded: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference of a logit, as a share of the spread of the recorded ones over the examples."""
    return float(np.abs(recorded - found).max()) / _spread(recorded)


def _spread(recorded: np.ndarray) -> float:
    return max(float(recorded.std(0, dtype=np.float64).max()), 0.01 * float(np.abs(recorded).max()), 1e-6)


def _farther(recorded: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return max(one, other, key=lambda found: np.abs(found - recorded).max())


def _logits(model: nn.Module, context: RunContext, batch: Any) -> np.ndarray:
    was_training = model.training
    with torch.no_grad():
        found = model.eval()(**context.compute_config.place(dict(batch))).logits.float().cpu().numpy()
    model.train(was_training)
    return found


def _stage(
    context: RunContext, model: nn.Module, saved: Saved, rows: np.ndarray, found: np.ndarray, tolerance: Tolerance
) -> str:
    """Return where the answers part: the same rows through the network in memory, the saved one, and both readers."""
    own_inputs = context.modality.collate([context.items[row] for row in rows])
    in_memory, loaded = _logits(model, context, own_inputs), _logits(saved.model, context, own_inputs)
    if relative_gap(in_memory, loaded) > tolerance.logits:
        return "saving and loading"
    return "reading the inputs" if relative_gap(loaded, found) > tolerance.logits else "evaluation"


def _difference(
    context: RunContext, rows: np.ndarray, differ: np.ndarray, gap: float, tolerance: Tolerance, stage: str
) -> str:
    ids = context.data.frame["id"].iloc[rows[differ]].tolist()[:5]
    return (
        f"The saved model is not the evaluated one (stage: {stage}): {int(differ.sum())} of {len(rows)} decisions differ"
        f"{' (' + ', '.join(map(str, ids)) + ')' if ids else ''}, logits by {gap:.2g} of their spread (expected at most "
        f"{tolerance.logits:g}). The run is not complete. Try store=false and training.bf16=false; if it stays, "
        f"{type(context.model).__name__} cannot be used here: please report it."
    )
