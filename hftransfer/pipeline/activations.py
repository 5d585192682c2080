"""What lies below the layers that train: stored once, replayed in training, and the start of the predictions."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hftransfer.features.extract import NotStored, replayed_batch
from hftransfer.features.passes import joined, predict_logits, predict_pieces
from hftransfer.features.store import Features
from hftransfer.modalities import Modality
from hftransfer.models.encoder_output import EncoderOutput
from hftransfer.models.partial import SplitPoint
from hftransfer.pipeline.run_context import RunContext
from hftransfer.runs.predictions import Predictions
from hftransfer.strategies import Plan

log = logging.getLogger(__name__)


def stored_activations(context: RunContext, plan: Plan) -> tuple[SplitPoint | None, Features | None]:
    """Return split point and activations below the layers that train; None where they cannot be stored exactly."""
    augmentation = context.modality.augmentation
    if plan.split_point is None or (augmentation and augmentation.level != "none"):
        return None, None
    split_point = _split_point(context, plan)
    if split_point is None:
        return None, None
    pieces, few = context.pieces, _of_all_lengths(context)
    if split_point.is_exact(
        context.compute_config.place(context.modality.collate([pieces.items[piece] for piece in few]))
    ):
        with suppress(NotStored):
            stored = context.frozen(plan.layer_groups).split_point(pieces.items, pieces.keys, split_point)
            if _replays(context, split_point, stored, few):
                log.info("Activations below %s are computed once", plan.layer_groups.name_of(plan.split_point))
                return split_point, stored
    log.info("Activations are not stored: %s cannot be run from a split point", type(context.model).__name__)
    return None, None


def _split_point(context: RunContext, plan: Plan) -> SplitPoint | None:
    """Return where a network is run from; None for one whose decoder reads frozen and trained stages alike."""
    if not context.data.task.by_pixel:
        return SplitPoint(context.model, plan.layer_groups, plan.split_point)
    whole = plan.split_point == plan.layer_groups.head_depth
    return EncoderOutput(context.model, plan.layer_groups) if whole else None


def _of_all_lengths(context: RunContext, count: int = 4) -> list[int]:
    """Return positions of a few pieces, from the shortest to the longest."""
    ordered = np.argsort(context.modality.lengths(context.pieces.items), kind="stable")
    return ordered[np.unique(np.linspace(0, len(ordered) - 1, count).astype(int))].tolist()


def _replays(context: RunContext, split_point: SplitPoint, stored: Features, rows: list[int]) -> bool:
    """Return whether pieces of different length give the live network's logits from what is stored of them."""
    items = [context.pieces.items[row] for row in rows]
    context.model.eval()
    with torch.no_grad(), context.compute_config.context():
        live = context.model(**context.compute_config.place(context.modality.collate(items))).logits.float()
        try:
            with split_point.replaying():
                batch = context.compute_config.place(replayed_batch(stored, context.modality, items, rows))
                replayed = context.model(**batch).logits.float()
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False  # stored in another order of dimensions (XLNet), or of another length
    tolerance = 1e-3 if context.compute_config.autocast is None else 0.05
    return torch.allclose(live, replayed, atol=tolerance * max(1.0, live.abs().max().item()))


def network_predictions(context: RunContext, plan: Plan, stored: Features | None) -> Predictions:
    """Of the validation and test rows, by the trained network, from stored activations where there are any."""
    positions = context.positions("validation", "test")
    none = np.zeros(len(positions), bool)
    if stored is None:
        items = [context.items[position] for position in positions]
        return Predictions(positions, predict_logits(plan.model, context.modality, items, context.compute_config), none)
    source, chosen = Replayed(context.modality, stored), context.pieces.of(positions)
    items = [context.pieces.items[piece] for piece in chosen]

    def read(places: list[int], logits: torch.Tensor) -> Any:
        return context.modality.kind.read([items[place] for place in places], logits)

    found = predict_pieces(plan.model, source, list(zip(chosen, items, strict=True)), context.compute_config, read)
    rows = np.searchsorted(positions, context.pieces.rows[chosen])
    return Predictions(positions, joined(found, rows, len(positions)), none)


@dataclass(frozen=True)
class Replayed:
    """A modality whose items are (position, item) and whose batches start at the split point."""

    modality: Modality
    stored: Features

    @property
    def mixes_lengths(self) -> bool:
        return self.modality.mixes_lengths

    def lengths(self, items: list[Any]) -> list[int]:
        return self.modality.lengths([item for _, item in items])

    def collate(self, items: list[Any], training: bool = False) -> dict[str, torch.Tensor]:
        positions, inner = zip(*items, strict=True)
        return replayed_batch(self.stored, self.modality, inner, positions)
