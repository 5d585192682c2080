"""The convex head put into a network: choose what it reads, solve it, fold it into the model's own last layer."""

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
from hftransfer.features.readout import (
    Readout,
    can_be_cut,
    cut_above,
    mean_is_exact,
    norm_epsilon,
    normalised_mean,
    put_mean_layer,
    read_features,
)
from hftransfer.models.heads import final_linear, output_layers
from hftransfer.models.layers import Ladder
from hftransfer.models.partial import MASK, Batch, Boundary
from hftransfer.probe.solver import ConvexHead, make_folds, out_of_fold_of_best, solve_head
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
    """The head that was folded in, what it reads, and the cross-validated loss of each readout that was tried.

    `features` (N, D) belong to all rows, `head.out_of_fold` (F, C) to those it was fitted on. `tried` holds, of every
    readout, the features it was compared by and those that a head on it is solved on. Modules at the paths `constant`
    express the readout and must never train.
    """

    head: ConvexHead
    readout: Readout
    losses: dict[str, float]
    features: np.ndarray
    tried: list[tuple[np.ndarray, np.ndarray]]
    constant: tuple[str, ...] = ()
    cross_validated: np.ndarray | None = None  # (F, C): out of fold, the readout chosen for each fold by the others

    @property
    def logits(self) -> np.ndarray:
        """Of all rows (N, C), as the plain model gives them."""
        return self.head.logits(self.features)


def candidates(model: nn.Module, ladder: Ladder, config: HeadConfig, batch: Batch) -> list[Readout]:
    """The readouts to compare. Raises `UserError` when the family cannot express the one that was asked for."""
    blocks = _blocks(model, ladder, config, batch)
    if config.pooling == "head" or MASK not in batch:
        poolings = ["head"]
    elif mean_is_exact(model, ladder, batch):
        poolings = ["mean"] if config.pooling == "mean" else ["head", "mean"]
    elif config.pooling == "mean":
        raise UserError(f"{type(model).__name__} cannot express mean pooling as a plain model: use head.pooling=head.")
    else:
        log.info("Pooling: what the head reads (mean pooling has no plain form in %s)", type(model).__name__)
        poolings = ["head"]
    return [Readout(block, pooling) for block in blocks for pooling in poolings]


def _blocks(model: nn.Module, ladder: Ladder, config: HeadConfig, batch: Batch) -> list[int]:
    depth = len(ladder.blocks)
    if config.layer == "last" or config.layer == depth:
        return [depth]
    if not can_be_cut(model, ladder, batch):
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
    """Heads on every readout that was tried, on the features (N, D) of all rows; `seconds` of the heads alone."""

    features: dict[Readout, np.ndarray]
    heads: dict[Readout, ConvexHead]
    problem: "_Problem"
    seconds: float


def solve_readouts(
    frozen: FrozenPass, rows: Rows, task: Task, config: HeadConfig, seed: int, wanted: list[Readout]
) -> Solved:
    """A head on each of the readouts `wanted`, from one pass over the rows; the model stays as it is.

    Raises `UserError` where views are asked for and inputs have none.
    """
    kind = frozen.modality.kind
    if config.views and not kind.augments:
        raise UserError(
            f"head.views={config.views}: augmented views are of images, and the data are {kind.plural}. Leave it out."
        )
    read = frozen.readouts(rows.items, rows.keys, wanted)
    features = {readout: _comparable(read, readout, frozen.model, frozen.ladder) for readout in wanted}
    problem = _Problem.of(frozen, rows, task, config, seed, wanted)
    begin = time.perf_counter()
    heads = {readout: problem.solve(features[readout], readout) for readout in wanted}
    return Solved(features, heads, problem, time.perf_counter() - begin)


def solve_probe(frozen: FrozenPass, rows: Rows, task: Task, config: HeadConfig, seed: int) -> Probe:
    """Read the features of all rows in one pass, choose the readout, and leave the head solved in `frozen.model`.

    The model is changed in place where the readout asks for it; the caller's ladder is then out of date.
    """
    model, ladder = frozen.model, frozen.ladder
    wanted = candidates(model, ladder, config, sample(frozen, rows))
    solved = solve_readouts(frozen, rows, task, config, seed, wanted)
    heads = solved.heads
    best = min(wanted, key=lambda readout: heads[readout].loss)
    if len(wanted) > 1:
        log.info("Readout: %s of %s", best.name, ", ".join(f"{r.name} {heads[r].loss:.4f}" for r in wanted))
    constant = express(model, ladder, best)
    final, head = solved.features[best], heads[best]
    if best.pooling == "mean":
        final = _deployed_features(frozen, final)
        head = solved.problem.solve(final, best)
    fold_in(model, head, sample(frozen, rows))
    tried = [(read, final if readout == best else read) for readout, read in solved.features.items()]
    fitted, folds = task.standardised(rows.targets[rows.fitted]), solved.problem.folds
    cross_validated = out_of_fold_of_best(task, [heads[readout] for readout in wanted], fitted, folds)
    return Probe(head, best, {r.name: heads[r].loss for r in wanted}, final, tried, constant, cross_validated)


def plain_features(frozen: FrozenPass, items: Sequence[Any], keys: Sequence[str]) -> np.ndarray:
    """(N, D) without labels to choose by: the mean of the tokens where the family has it, else what its head reads."""
    rows = Rows(items, keys, np.empty(0), np.empty(0, dtype=int))
    wanted = candidates(frozen.model, frozen.ladder, HeadConfig(), sample(frozen, rows))
    read = frozen.readouts(items, keys, wanted)  # all of them, as a probe reads: it finds them in the store
    return _comparable(read, wanted[-1], frozen.model, frozen.ladder)


@dataclass(frozen=True)
class _Problem:
    """What a head is fitted on, whichever features it reads: targets, folds, and augmented views of the rows."""

    rows: Rows
    task: Task
    folds: list[tuple[np.ndarray, np.ndarray]]
    config: HeadConfig
    intercept: bool
    views: list[dict[str, np.ndarray]]

    @classmethod
    def of(
        cls, frozen: FrozenPass, rows: Rows, task: Task, config: HeadConfig, seed: int, wanted: list[Readout]
    ) -> "_Problem":
        groups = rows.groups[rows.fitted] if rows.groups is not None else None
        folds = make_folds(task, rows.targets[rows.fitted], groups, config.folds, seed)
        items, keys = [rows.items[i] for i in rows.fitted], [rows.keys[i] for i in rows.fitted]
        views = [frozen.readouts(items, keys, wanted, view, seed) for view in range(config.views)]
        return cls(rows, task, folds, config, final_linear(frozen.model).bias is not None, views)

    def solve(self, features: np.ndarray, readout: Readout) -> ConvexHead:
        """Views of a row stand on the side of the row itself in every fold, and are never held out."""
        count = len(self.rows.fitted)
        stacked = np.concatenate([features[self.rows.fitted], *(view[readout.name] for view in self.views)])
        targets = np.concatenate([self.rows.targets[self.rows.fitted]] * (1 + len(self.views)))
        shifts = count * np.arange(1 + len(self.views))[:, None]
        folds = [((train + shifts).ravel(), held_out) for train, held_out in self.folds]
        wanted = self.task.standardised(targets)
        return solve_head(stacked, wanted, self.task, folds, self.intercept)


def sample(frozen: FrozenPass, rows: Rows) -> Batch:
    """A few rows, to try things on."""
    return frozen.machine.place(frozen.modality.collate(list(rows.items[:4])))


def _comparable(read: dict[str, np.ndarray], readout: Readout, model: nn.Module, ladder: Ladder) -> np.ndarray:
    """The features of a readout; the mean ones as the appended layer will give them."""
    if readout.pooling == "head":
        return read[readout.name]
    mean, first = (torch.from_numpy(read[f"{name}@{readout.block}"]) for name in ("mean", "first"))
    return normalised_mean(mean, first, norm_epsilon(model, ladder)).numpy()


def express(model: nn.Module, ladder: Ladder, readout: Readout) -> tuple[str, ...]:
    """Change the model so that its head reads `readout`; returns the paths that express it."""
    if readout.block < len(ladder.blocks):
        cut_above(model, ladder, readout.block)
        ladder = Ladder.of(model)
    return put_mean_layer(model, ladder) if readout.pooling == "mean" else ()


def _deployed_features(frozen: FrozenPass, pooled: np.ndarray) -> np.ndarray:
    """What the last linear layer of the changed model reads: its tail run on sequences of one token."""
    model, machine = frozen.model, frozen.machine
    ladder = Ladder.of(model)
    ids = torch.zeros((len(pooled), 1), dtype=torch.long)
    batch = machine.place({model.main_input_name: ids, MASK: torch.ones_like(ids)})
    hidden = torch.from_numpy(pooled)[:, None].to(machine.device)
    boundary = Boundary(model, ladder, ladder.head_rung)
    boundary.activations({name: value[:1] for name, value in batch.items()})
    model.eval()
    with boundary.replaying():
        return read_features(model, batch | {"boundary": hidden}).float().cpu().numpy()


@torch.no_grad()
def fold_in(model: nn.Module, head: ConvexHead, batch: Batch) -> None:
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
    """The scale of the targets, so that the plain model answers in the user's units (regression; see `Task.mean`)."""
    if task.has_classes or not task.std:
        return
    for linear in output_layers(model):  # a mean of scaled outputs is the scaled mean
        std = torch.tensor(task.std, device=linear.weight.device)
        linear.weight.mul_(std[:, None])
        if linear.bias is not None:
            linear.bias.mul_(std).add_(torch.tensor(task.mean, device=linear.bias.device))


@torch.no_grad()
def fold_temperature(model: nn.Module, temperature: float) -> None:
    """The temperature, so that every way to run the model gives calibrated probabilities (Guo et al. 2017)."""
    for linear in output_layers(model):
        linear.weight.div_(temperature)
        if linear.bias is not None:
            linear.bias.div_(temperature)
