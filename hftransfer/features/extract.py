"""The one pass of the frozen part over the data, by way of the feature store."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hftransfer.features.passes import ComputeConfig, as_arrays, passes
from hftransfer.features.sources import FeatureSource, Reader
from hftransfer.features.store import Features, FeatureStore, space_key
from hftransfer.modalities import Modality
from hftransfer.models.layers import LayerGroups
from hftransfer.models.partial import MASK, Batch, SplitPoint
from hftransfer.models.weights import architecture_key

log = logging.getLogger(__name__)


class NotStored(Exception):
    """Activations cannot be stored row by row: they are not as long as the input (Funnel), or no mask says how long it is."""


@dataclass(frozen=True)
class FrozenPass:
    """A network whose lower part is frozen, and where what it gives is kept.

    `weights_hash` stands for the frozen weights.
    """

    model: nn.Module
    layer_groups: LayerGroups
    modality: Modality
    compute_config: ComputeConfig
    weights_hash: str
    store: FeatureStore

    def feature_sources(
        self, items: Sequence[Any], keys: Sequence[str], wanted: list[FeatureSource]
    ) -> dict[str, np.ndarray]:
        """Return name -> features float32 of every feature source: (N, D), or of the units of all items below one another."""
        kind = self.modality.kind
        reader = Reader(self.model, self.layer_groups, wanted, kind.by_word)
        name = ", ".join(feature_source.name for feature_source in wanted)

        def compute(positions: Sequence[int]) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
            self.model.eval()

            title = f"features ({name})"
            for found, read in passes(self.modality, items, positions, self.compute_config, reader, title):
                batch = [items[position] for position in found]
                yield found, {key: as_arrays(kind.read(batch, value)) for key, value in read.items()}

        what = {"feature_sources": name} | ({"by_word": True} if kind.by_word else {})
        features = self._collect(keys, compute, what, f"features {name}")
        if kind.by_word:
            return {name: np.concatenate(features.rows(name, range(len(items)))) for name in features.names}
        return {name: np.asarray(features[name]) for name in features.names}

    def split_point(self, items: Sequence[Any], keys: Sequence[str], split_point: SplitPoint) -> Features:
        """Yield the hidden state at a split point for every row, under the name `split point`; texts without their padding."""

        def compute(positions: Sequence[int]) -> Iterator[tuple[list[int], dict[str, Any]]]:
            self.model.eval()

            def forward(batch: Batch) -> list[np.ndarray]:
                hidden = split_point.activations(batch).float().cpu()
                if MASK not in batch:
                    return list(hidden.numpy())
                masks = batch[MASK].bool().cpu()  # by the mask: some tokenizers pad on the left
                if hidden.shape[:2] != masks.shape:
                    raise NotStored
                return [row[mask].numpy() for row, mask in zip(hidden, masks, strict=True)]

            for found, rows in passes(self.modality, items, positions, self.compute_config, forward, title):
                yield found, {"split_point": rows}

        lengths = set(self.modality.lengths(items))
        if len(lengths) > 1 and MASK not in self.modality.skeleton(items[:1]):
            raise NotStored
        title = f"activations below {self.layer_groups.name_of(split_point.depth)}"
        return self._collect(keys, compute, {"split_point": split_point.depth}, title)

    def _collect(self, keys: Sequence[str], compute: Any, what: dict[str, Any], about: str) -> Features:
        space = space_key(
            **what,
            weights=self.weights_hash,
            inputs=self.modality.settings(),
            precision=str(self.compute_config.autocast or torch.float32),
            device=self.compute_config.device.type,
            network=architecture_key(self.model),
        )
        share = (self.compute_config.rank, self.compute_config.world_size)
        return self.store.collect(space, list(keys), compute, about, share, self.compute_config.world.barrier)


def replayed_batch(stored: Features, modality: Modality, items: Sequence[Any], positions: Sequence[int]) -> Batch:
    """Return a batch that starts at the split point (see `partial.SplitPoint.replaying`), padded where its mask says so."""
    batch, rows = modality.skeleton(items), stored.tensors("split_point", positions)
    if MASK not in batch:
        return batch | {"split_point": torch.stack(rows)}
    mask = batch[MASK].bool()
    hidden = rows[0].new_zeros((*mask.shape, *rows[0].shape[1:]))
    hidden[mask] = torch.cat(rows)
    return batch | {"split_point": hidden}
