"""The features of inputs, of a checkpoint or of a finished run, without labels: for search, clusters, and other tools."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hftransfer.core.errors import UserError
from hftransfer.data.named_inputs import NamedInputs
from hftransfer.features.passes import ComputeConfig, in_order, passes
from hftransfer.features.sources import FeatureSource, Reader, mean_is_exact, open_head, read_features
from hftransfer.modalities import Modality, kind_of
from hftransfer.models.heads import final_linear
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import load_checkpoint
from hftransfer.models.partial import MASK, Batch, SplitPoint
from hftransfer.models.references import ModelConfig
from hftransfer.models.weights import weights_hash
from hftransfer.prediction.predictor import load
from hftransfer.prediction.readable import faults
from hftransfer.runtime import devices
from hftransfer.runtime.launch import World
from hftransfer.tasks import SingleLabel

Pooling = Literal["auto", "head", "mean"]
SEED = 0  # of layers that a checkpoint lacks: all workers draw the same


@dataclass(frozen=True)
class Embedder:
    """A network that gives one vector for each input. `made_by` tells it from others; `columns` are those of its run."""

    modality: Modality
    compute_config: ComputeConfig
    read: Callable[[Batch], Tensor]
    width: int
    made_by: dict[str, Any]
    columns: tuple[str, ...] | NamedInputs = ()

    def features(self, frame: pd.DataFrame) -> np.ndarray:
        """Return the features (N, D) float32 of rows with `input` (and `input_pair`). Raises `UnreadableInput`."""
        items = self.modality.encode(frame)
        found = passes(self.modality, items, range(len(items)), self.compute_config, self.read, "embed")
        rows = ((positions, values.float().cpu().numpy()) for positions, values in found)
        return in_order(rows, len(items), self.width)


def of_run(run: str, batch_size: int, world: World = World()) -> Embedder:
    """Return what the last layer of a finished run reads. Raises `UserError`."""
    predictor = load(run, batch_size=batch_size, world=world)
    predictor.require("embed")
    model = predictor.model
    made_by = {"weights": weights_hash(model), "features": "what the last layer of the run reads"}
    return Embedder(
        predictor.modality, predictor.compute_config, lambda batch: read_features(model, batch),
        final_linear(model).in_features, made_by, predictor.own,
    )  # fmt: skip


def of_checkpoint(
    config: ModelConfig,
    modality: str,
    frame: pd.DataFrame,
    layer: int | None = None,
    pooling: Pooling = "auto",
    batch_size: int = 32,
    world: World = World(),
) -> Embedder:
    """Return the features of a checkpoint: of block `layer` (the last by default), pooled over its tokens.

    `head` is what the checkpoint's own head reads; `mean` is the mean over all tokens but padding; `auto` is the mean in
    post-norm encoders (BERT, RoBERTa, MiniLM), else `head`. Raises `UserError`.
    """
    device = devices.choose_device(world)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        checkpoint = load_checkpoint(config, kind_of(modality), SingleLabel(("0", "1")))
    model = checkpoint.model.to(device).eval()
    devices.channels_last(model)
    bound = kind_of(modality).bind(checkpoint.processor)
    compute_config = ComputeConfig(device, workers=devices.thread_plan(device, world).workers, batch_size=batch_size)
    sample = compute_config.place(_few(bound, frame))
    open_head(model, checkpoint.new_parameters, sample)
    source = _source(model, sample, layer, pooling)
    reader = Reader(model, LayerGroups.of(model), [source])
    width = reader(sample)[source.name].shape[1]
    made_by = {"weights": checkpoint.weights_hash, "features": source.name}
    return Embedder(bound, compute_config, lambda batch: reader(batch)[source.name], width, made_by)


def _few(modality: Modality, frame: pd.DataFrame) -> Batch:
    """Return a batch of the first inputs that can be read, to try the network on. Raises `UserError` where none can."""
    for start in range(0, len(frame), 8):
        rows = frame.iloc[start : start + 8].reset_index(drop=True)
        good = faults(modality.kind, rows).isna()
        if good.any():
            return modality.collate(modality.encode(rows[good].reset_index(drop=True)))
    raise UserError(f"None of the {len(frame)} inputs can be read.")


def _source(model: torch.nn.Module, sample: Batch, layer: int | None, pooling: Pooling) -> FeatureSource:
    """Return block and pooling of the features, checked against the network. Raises `UserError`."""
    groups = LayerGroups.of(model)
    depth = len(groups.blocks)
    layer = depth if layer is None else layer
    if not 1 <= layer <= depth:
        raise UserError(f"--layer {layer}: {type(model).__name__} has the blocks 1 to {depth}.")
    if pooling == "auto":
        pooling = "mean" if mean_is_exact(model, groups, sample) else "head"
    if pooling == "mean" and not _has_tokens(model, groups, layer, sample):
        raise UserError(f"--pooling mean: block {layer} of {type(model).__name__} gives no vector for each token.")
    return FeatureSource(layer, pooling)


def _has_tokens(model: torch.nn.Module, groups: LayerGroups, layer: int, sample: Batch) -> bool:
    """Return whether a block gives a vector for each entry of the attention mask."""
    return MASK in sample and SplitPoint(model, groups, layer + 1).activations(sample).shape[:2] == sample[MASK].shape
