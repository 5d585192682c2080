"""The linear probe put into a network: choose what it reads, solve it, fold it into the model's own last layer."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.features.extract import FrozenPass
from hftransfer.features.sources import (
    FeatureSource,
    can_be_cut,
    cut_above,
    mean_is_exact,
    norm_epsilon,
    normalised_mean,
    put_mean_layer,
    read_features,
)
from hftransfer.models.heads import final_linear, output_layers
from hftransfer.models.layers import LayerGroups
from hftransfer.models.partial import MASK, Batch, SplitPoint
from hftransfer.probe.solver import LinearProbe, make_folds, out_of_fold_of_best, solve_head
from hftransfer.strategies.head import HeadConfig
from hftransfer.tasks import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """All rows of a run: encoded items, content keys, targets, and groups where there are any.

    `fitted` are the numbers of those that the head is fitted on.
    """

    items: Sequence[Any]
    keys: Sequence[str]
    targets: np.ndarray
    fitted: np.ndarray
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Probe:
    """The head that was folded in, what it reads, and the cross-validated loss of each feature source that was tried.

    `features` (N, D) belong to all rows, `head.out_of_fold` (F, C) to those it was fitted on. `tried` holds, of every
    feature source, the features it was compared by and those that a head on it is solved on. Modules at the paths `constant`
    express the feature source and must never train.
    """

    head: LinearProbe
    feature_source: FeatureSource
    losses: dict[str, float]
    features: np.ndarray
    tried: list[tuple[np.ndarray, np.ndarray]]
    constant: tuple[str, ...] = ()
    cross_validated: np.ndarray | None = (
        None  # (F, C): out of fold, the feature source chosen for each fold by the others
    )

    reads_published: bool = True  # the last block, as the checkpoint's own head reads it
    blocks: np.ndarray | None = None  # (D,): the input that each feature is of, where there are several

    @property
    def logits(self) -> np.ndarray:
        """Of all rows (N, C), as the plain model gives them."""
        return self.head.logits(self.features)


def candidates(model: nn.Module, layer_groups: LayerGroups, config: HeadConfig, batch: Batch) -> list[FeatureSource]:
    """Return the feature sources to compare. Raises `UserError` when the family cannot express the one that was asked for."""
    blocks = _blocks(model, layer_groups, config, batch)
    if config.pooling == "head" or MASK not in batch:
        poolings = ["head"]
    elif mean_is_exact(model, layer_groups, batch):
        poolings = ["mean"] if config.pooling == "mean" else ["head", "mean"]
    elif config.pooling == "mean":
        raise UserError(f"{type(model).__name__} cannot express mean pooling as a plain model: use head.pooling=head.")
    else:
        log.info("Pooling: what the head reads (mean pooling has no plain form in %s)", type(model).__name__)
        poolings = ["head"]
    return [FeatureSource(block, pooling) for block in blocks for pooling in poolings]


def _blocks(model: nn.Module, layer_groups: LayerGroups, config: HeadConfig, batch: Batch) -> list[int]:
    depth = len(layer_groups.blocks)
    if config.layer == "last" or config.layer == depth:
        return [depth]
    if not can_be_cut(model, layer_groups, batch):
        if config.layer == "best":
            log.info("Layer: the last (blocks of %s cannot be taken off a plain model)", type(model).__name__)
            return [depth]
        raise UserError(f"Blocks of {type(model).__name__} cannot be taken off a plain model: use head.layer=last.")
    if config.layer == "best":
        return list(range(1, depth + 1))
    if not 1 <= config.layer <= depth:
        raise UserError(f"head.layer={config.layer}: expected a block from 1 to {depth}, 'last' or 'best'.")
    return [config.layer]


@dataclass(frozen=True)
class Solved:
    """Heads on every feature source that was tried, on the features (N, D) of all rows; `seconds` of the heads alone."""

    features: dict[FeatureSource, np.ndarray]
    heads: dict[FeatureSource, LinearProbe]
    problem: "_Problem"
    seconds: float


def solve_feature_sources(
    frozen: FrozenPass, rows: Rows, task: Task, config: HeadConfig, seed: int, wanted: list[FeatureSource]
) -> Solved:
    """Solve a head on each of the feature sources `wanted`, from one pass over the rows; the model stays as it is."""
    read = frozen.feature_sources(rows.items, rows.keys, wanted)
    features = {
        feature_source: _comparable(read, feature_source, frozen.model, frozen.layer_groups)
        for feature_source in wanted
    }
    problem = _Problem.of(frozen, rows, task, config, seed)
    begin = time.perf_counter()
    heads = {feature_source: problem.solve(features[feature_source]) for feature_source in wanted}
    return Solved(features, heads, problem, time.perf_counter() - begin)


def solve_probe(frozen: FrozenPass, rows: Rows, task: Task, config: HeadConfig, seed: int) -> Probe:
    """Read the features of all rows in one pass, choose the feature source, and leave the head solved in `frozen.model`.

    The model is changed in place where the feature source asks for it; the caller's layer groups is then out of date.
    """
    model, layer_groups = frozen.model, frozen.layer_groups
    wanted = candidates(model, layer_groups, config, sample(frozen, rows))
    solved = solve_feature_sources(frozen, rows, task, config, seed, wanted)
    heads = solved.heads
    best = min(wanted, key=lambda feature_source: heads[feature_source].loss)
    if len(wanted) > 1:
        log.info("Feature source: %s of %s", best.name, ", ".join(f"{r.name} {heads[r].loss:.4f}" for r in wanted))
    constant = express(model, layer_groups, best)
    final, head = solved.features[best], heads[best]
    if best.pooling == "mean":
        final = _deployed_features(frozen, final)
        head = solved.problem.solve(final)
    fold_in(model, head, sample(frozen, rows))
    tried = [(read, final if feature_source == best else read) for feature_source, read in solved.features.items()]
    fitted, folds = task.standardised(rows.targets[rows.fitted]), solved.problem.folds
    cross_validated = out_of_fold_of_best(task, [heads[feature_source] for feature_source in wanted], fitted, folds)
    published = best == FeatureSource(len(layer_groups.blocks))
    losses = {r.name: heads[r].loss for r in wanted}
    return Probe(head, best, losses, final, tried, constant, cross_validated, published)


def features_again(
    untouched: FrozenPass, deployed: FrozenPass, items: Sequence[Any], keys: Sequence[str], config: HeadConfig,
    chosen: FeatureSource,
) -> np.ndarray:  # fmt: skip
    """Return (N, D) of further rows as the head on `chosen` reads them, by way of the store.

    `untouched` has the network before `solve_probe`, `deployed` the network after it. The same feature sources are
    read as there, so that rows that are in the store are not computed again.
    """
    rows = Rows(items, keys, np.empty(0), np.empty(0, dtype=int))
    wanted = candidates(untouched.model, untouched.layer_groups, config, sample(untouched, rows))
    read = _comparable(untouched.feature_sources(items, keys, wanted), chosen, untouched.model, untouched.layer_groups)
    return _deployed_features(deployed, read) if chosen.pooling == "mean" else read


def plain_features(frozen: FrozenPass, items: Sequence[Any], keys: Sequence[str]) -> np.ndarray:
    """(N, D) without labels to choose by: the mean of the tokens where the family has it, else what its head reads."""
    rows = Rows(items, keys, np.empty(0), np.empty(0, dtype=int))
    wanted = candidates(frozen.model, frozen.layer_groups, HeadConfig(), sample(frozen, rows))
    read = frozen.feature_sources(items, keys, wanted)  # all of them, as a probe reads: it finds them in the store
    return _comparable(read, wanted[-1], frozen.model, frozen.layer_groups)


@dataclass(frozen=True)
class _Problem:
    """What a head is fitted on, whichever features it reads: targets and folds."""

    rows: Rows
    task: Task
    folds: list[tuple[np.ndarray, np.ndarray]]
    intercept: bool

    @classmethod
    def of(cls, frozen: FrozenPass, rows: Rows, task: Task, config: HeadConfig, seed: int) -> "_Problem":
        groups = rows.groups[rows.fitted] if rows.groups is not None else None
        folds = make_folds(task, rows.targets[rows.fitted], groups, config.folds, seed)
        return cls(rows, task, folds, final_linear(frozen.model).bias is not None)

    def solve(self, features: np.ndarray) -> LinearProbe:
        fitted = self.rows.fitted
        wanted = self.task.standardised(self.rows.targets[fitted])
        return solve_head(features[fitted], wanted, self.task, self.folds, self.intercept)


def sample(frozen: FrozenPass, rows: Rows) -> Batch:
    """Return a few rows, to try things on."""
    return frozen.compute_config.place(frozen.modality.collate(list(rows.items[:4])))


def _comparable(
    read: dict[str, np.ndarray], feature_source: FeatureSource, model: nn.Module, layer_groups: LayerGroups
) -> np.ndarray:
    """Return the features of a feature source; the mean ones as the appended layer will give them."""
    if feature_source.pooling == "head":
        return read[feature_source.name]
    mean, first = (torch.from_numpy(read[f"{name}@{feature_source.block}"]) for name in ("mean", "first"))
    return normalised_mean(mean, first, norm_epsilon(model, layer_groups)).numpy()


def express(model: nn.Module, layer_groups: LayerGroups, feature_source: FeatureSource) -> tuple[str, ...]:
    """Change the model so that its head reads `feature source`; returns the paths that express it."""
    if feature_source.block < len(layer_groups.blocks):
        cut_above(model, layer_groups, feature_source.block)
        layer_groups = LayerGroups.of(model)
    return put_mean_layer(model, layer_groups) if feature_source.pooling == "mean" else ()


def _deployed_features(frozen: FrozenPass, pooled: np.ndarray) -> np.ndarray:
    """Return what the last linear layer of the changed model reads: its tail run on sequences of one token."""
    model, compute_config = frozen.model, frozen.compute_config
    layer_groups = LayerGroups.of(model)
    ids = torch.zeros((len(pooled), 1), dtype=torch.long)
    batch = compute_config.place({model.main_input_name: ids, MASK: torch.ones_like(ids)})
    hidden = torch.from_numpy(pooled)[:, None].to(compute_config.device)
    split_point = SplitPoint(model, layer_groups, layer_groups.head_depth)
    split_point.activations({name: value[:1] for name, value in batch.items()})
    model.eval()
    with split_point.replaying():
        return read_features(model, batch | {"split_point": hidden}).float().cpu().numpy()


@torch.no_grad()
def fold_in(model: nn.Module, head: LinearProbe, batch: Batch) -> None:
    """Put the solved head into the model's last linear layer, so that the logits are the head's.

    Where the logits are the mean of several layers (distilled DeiT), the others are silenced and the share of the last
    one is found on `batch`. Raises `UserError` where the logits are no fixed multiple of that layer's outputs.
    """
    *others, linear = output_layers(model)
    for tensor in (t for other in others for t in (other.weight, other.bias) if t is not None):
        tensor.zero_()
    linear.weight.copy_(torch.from_numpy(head.weight))
    if linear.bias is not None:
        linear.bias.copy_(torch.from_numpy(head.bias))
    if others:
        share = _share_of_logits(model, linear, batch)
        for tensor in (t for t in (linear.weight, linear.bias) if t is not None):
            tensor.div_(share)


def _share_of_logits(model: nn.Module, linear: nn.Linear, batch: Batch) -> float:
    """Return the factor between a layer's outputs and the logits on `batch`, in evaluation mode."""
    caught: list[torch.Tensor] = []
    hook = linear.register_forward_hook(lambda module, args, output: caught.append(output))
    try:
        logits = model.eval()(**batch).logits
    finally:
        hook.remove()
    same = caught[0].shape == logits.shape
    share = float((logits * caught[0]).sum() / (caught[0] ** 2).sum()) if same else 0.0
    if not share or not torch.allclose(logits, share * caught[0], atol=1e-4 * float(logits.abs().max())):
        raise UserError(
            f"{type(model).__name__} makes its logits of several layers in a way that a linear probe cannot take over. "
            "Use strategy.head_init=random, or a checkpoint of the plain class with one classifier."
        )
    return share


@torch.no_grad()
def fold_scale(model: nn.Module, task: Task) -> None:
    """Fold the scale of the targets in, so that the plain model answers in the user's units (regression; see `Task.mean`)."""
    if task.has_classes or not task.std:
        return
    for linear in output_layers(model):  # a mean of scaled outputs is the scaled mean
        std = torch.tensor(task.std, device=linear.weight.device)
        linear.weight.mul_(std[:, None])
        if linear.bias is not None:
            linear.bias.mul_(std).add_(torch.tensor(task.mean, device=linear.bias.device))


@torch.no_grad()
def fold_temperature(model: nn.Module, temperature: float) -> None:
    """Fold the temperature in, so that every way to run the model gives calibrated probabilities (Guo et al. 2017)."""
    for linear in output_layers(model):
        linear.weight.div_(temperature)
        if linear.bias is not None:
            linear.bias.div_(temperature)
