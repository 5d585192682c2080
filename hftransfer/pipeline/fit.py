"""Fit a network as its strategy says: the one pipeline of a run and of the trials of `advise`."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hftransfer.models.layers import LayerGroups
from hftransfer.pipeline.activations import network_predictions, stored_activations
from hftransfer.pipeline.run_context import RunContext, probe_predictions, solve_head
from hftransfer.pipeline.summary import log_training
from hftransfer.probe.fit import Probe
from hftransfer.runs.predictions import Predictions
from hftransfer.runtime.interruption import Stop
from hftransfer.runtime.launch import World
from hftransfer.strategies import Plan
from hftransfer.training.freeze_check import Sizes, check_frozen, tensor_hashes

log = logging.getLogger(__name__)


@dataclass
class Seconds:
    """Measure the wall seconds of each phase. The processes of a launch go through a phase together.

    Not `in_step`: a phase in which the Trainer exchanges tensors between them.
    """

    world: World
    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str, in_step: bool = True) -> Iterator[None]:
        begin = time.perf_counter()
        with self.world.together() if in_step else nullcontext():
            yield
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - begin


@dataclass(frozen=True)
class Fitted:
    """The fitted network in `plan.model`, and its predictions of all examples that did not train it.

    `trained` is the record of the training loop, None where only a head was solved; `before` are hashes of the tensors.
    """

    plan: Plan
    probe: Probe | None
    sizes: Sizes
    before: dict[str, str]
    predictions: Predictions
    trained: Any


def fit(context: RunContext, folder: Path, stop: Stop, seconds: Seconds) -> Fitted:
    """Solve the head, train what the strategy opens, predict the rest, and check that nothing else moved.

    Checkpoints lie in `folder` while it trains. Raises `UserError` as the training does, `FrozenMoved` for a tensor that
    moved although it is frozen.
    """
    with seconds("features"):
        probe = solve_head(context)
    plan = _plan(context, probe)
    before, sizes = tensor_hashes(plan.model, plan.layer_groups), Sizes.of(plan)
    log_training(context, plan, sizes)
    if context.trains:
        predictions, trained = _train(context, plan, probe, folder, stop, seconds)
    else:
        predictions, trained = probe_predictions(context, probe), None
    check_frozen(plan, before)
    return Fitted(plan, probe, sizes, before, predictions, trained)


def _plan(context: RunContext, probe: Probe | None) -> Plan:
    """Return what trains, on the layer groups of the network as the head left it."""
    layer_groups = LayerGroups.of(context.model, probe.constant if probe else ())
    plan = context.config.strategy.prepare(context.model, layer_groups)
    if plan.save_adapter and context.data.kind.encoder:
        log.info("The adapter is not saved on its own: no published checkpoint has this decoder")
        plan = replace(plan, save_adapter=None)
    if plan.batchnorm == "frozen" and not context.data.kind.solves_head:
        plan = replace(plan, batchnorm="head")  # a decoder made at random has statistics to learn
    if plan.save_adapter and probe and not probe.reads_published:
        log.info("The adapter is not saved on its own: the head reads %s, which the published checkpoint does not have",
                 probe.feature_source.name)  # fmt: skip
        plan = replace(plan, save_adapter=None)
    return plan


def _train(
    context: RunContext, plan: Plan, probe: Probe | None, folder: Path, stop: Stop, seconds: Seconds
) -> tuple[Predictions, Any]:
    """Train, from stored activations where that is exact; return predictions and the record of the loop."""
    from hftransfer.training import trainer as loop  # six seconds of imports that a probe does not need
    from hftransfer.training.examples import Examples

    with seconds("features"):
        split_point, stored = stored_activations(context, plan)
    pieces = context.pieces
    train, validation = (pieces.of(context.positions(part)) for part in ("train", "validation"))
    examples = Examples(pieces.items, pieces.targets, context.modality, context.data.task, train, validation, stored)
    config = context.config
    defaults = config.strategy.defaults_for(context.data.kind, context.model)
    setup = loop.Setup(config.training, defaults, context.compute_config, config.seed, context.begins_trained(probe))
    with split_point.replaying() if split_point else nullcontext():
        with seconds("training", in_step=False):
            trained = loop.train(plan, examples, setup, folder, stop)
        with seconds("prediction"):
            return network_predictions(context, plan, stored), trained
