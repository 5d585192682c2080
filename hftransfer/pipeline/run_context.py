"""The steps of a run, between loading and the run folder."""

import logging
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hftransfer.config import RunConfig
from hftransfer.core.errors import UserError
from hftransfer.core.hashing import content_key, remote_code_key
from hftransfer.data import LabelledData
from hftransfer.features.extract import FrozenPass
from hftransfer.features.passes import ComputeConfig, in_pieces
from hftransfer.features.sources import open_head, read_features
from hftransfer.features.store import FeatureStore
from hftransfer.modalities import Modality, ModalityKind
from hftransfer.models.heads import final_linear, output_layers
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import Checkpoint, load_checkpoint
from hftransfer.models.weights import architecture_key, weights_hash
from hftransfer.pipeline.words import of_texts, words_of
from hftransfer.probe.fit import Probe, Rows, fold_scale, fold_temperature, solve_probe
from hftransfer.runs.predictions import Predictions
from hftransfer.runtime import autotune, devices
from hftransfer.runtime.cpu_kernels import replaced
from hftransfer.runtime.launch import World
from hftransfer.strategies import ProbeStrategy
from hftransfer.strategies.head import HeadConfig
from hftransfer.tasks import Task
from hftransfer.tasks.tokens import ragged

log = logging.getLogger(__name__)

MOST_MOVED = 0.05  # of the distance between two examples, by padding: rounding moves less than 0.001


@dataclass(frozen=True)
class Pieces:
    """What passes through the network for the rows of a run, and the number of the row (M,) that each belongs to."""

    items: list[Any]
    rows: np.ndarray
    keys: list[str]
    targets: np.ndarray

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the positions of the pieces of some rows."""
        return np.flatnonzero(np.isin(self.rows, rows))


@dataclass
class RunContext:
    """Everything a run works on, once it is loaded. `items` and `targets` follow the rows of `data.frame`."""

    config: RunConfig
    data: LabelledData
    checkpoint: Checkpoint
    modality: Modality
    compute_config: ComputeConfig
    store: FeatureStore
    items: list[Any]
    targets: np.ndarray

    @property
    def model(self) -> nn.Module:
        return self.checkpoint.model

    @property
    def trains(self) -> bool:
        """Whether anything is left to train once the head is made."""
        return self.config.strategy.defaults(self.data.kind) is not None

    def begins_trained(self, probe: Probe | None) -> bool:
        """Whether the network has answers before its first step: its head was solved, or came with the checkpoint."""
        return probe is not None or self.config.model.keep_head and not self.config.strategy.from_random_weights

    def positions(self, *splits: str) -> np.ndarray:
        return np.flatnonzero(self.data.frame["split"].isin(splits))

    @cached_property
    def pieces(self) -> Pieces:
        """The pieces of all rows, in order, with targets of their own; most rows are one piece."""
        kind, digests = self.modality.kind, self.data.frame["digest"].tolist()
        items, rows = in_pieces(kind, self.items)
        if not self.data.task.by_word:
            return Pieces(items, rows, digests, self.targets)
        cuts = [np.cumsum(kind.shares(item))[:-1] for item in self.items]
        targets = [part for tags, cut in zip(self.targets, cuts, strict=True) for part in np.split(tags, cut)]
        number = np.arange(len(rows)) - np.searchsorted(rows, rows)
        keys = [f"{digests[row]}-{place}" if place else digests[row] for row, place in zip(rows, number, strict=True)]
        return Pieces(items, rows, keys, ragged(targets))

    @property
    def places(self) -> np.ndarray:
        """The places of the units of each row, (N,) of arrays (W, 2) or None."""
        return ragged([self.modality.kind.places(item) for item in self.items])

    @property
    def groups(self) -> np.ndarray | None:
        """The group of each row, or its id where it has none; None where no row has one."""
        groups = self.data.frame["group"]
        return None if groups.isna().all() else groups.fillna(self.data.frame["id"]).to_numpy()

    @property
    def fitted(self) -> np.ndarray:
        """Rows that the linear probe is fitted on.

        A validation part that was merely cut off has nothing to choose where only a head is solved: its rows train too.
        Not so where it was given, or where the number of training rows was, nor where units are fitted.
        """
        given = self.data.task.by_word or "validation" in self.data.given or self.config.data.train_examples
        return self.positions("train") if self.trains or given else self.positions("train", "validation")

    def frozen(self, layer_groups: LayerGroups) -> FrozenPass:
        identity = features_identity(self.checkpoint)
        return FrozenPass(self.model, layer_groups, self.modality, self.compute_config, identity, self.store)


def features_identity(checkpoint: Checkpoint) -> str:
    """Return what stands for every tensor that features are computed with, and for the code that reads the inputs.

    The tensors are the checkpoint's own, and fresh ones below the last layer.

    A fresh layer that could not be opened (see `open_head`) is random: another seed must not be served its features.
    """
    last = output_layers(checkpoint.model)
    above = {name for name in checkpoint.new_parameters if _belongs_to(checkpoint.model, name, last)}
    below = checkpoint.new_parameters - above
    others = frozenset(name for name in checkpoint.model.state_dict() if name not in below)
    code = remote_code_key(type(checkpoint.processor)) or ""
    return content_key(checkpoint.weights_hash, weights_hash(checkpoint.model, leave_out=others), code)


def _belongs_to(model: nn.Module, name: str, modules: tuple[nn.Module, ...]) -> bool:
    return any(model.get_submodule(name.rpartition(".")[0]) is module for module in modules)


def prepare(
    config: RunConfig,
    data: LabelledData,
    checkpoint: Checkpoint,
    device: torch.device,
    world: World,
    scratch: Path,
) -> RunContext:
    """Encode the data, place the network, and decide how passes run. `scratch` holds what is not to be kept."""
    model = checkpoint.model.to(device)
    data = replace(data, task=_centred_only_with_bias(data.task, model))
    modality = data.kind.bind(checkpoint.processor, _augmentation(config, data.kind))
    items = modality.encode(data.frame)
    devices.channels_last(model)
    sample = {name: value.to(device) for name, value in modality.collate(items[:8]).items()}
    model.eval()
    if data.kind.solves_head:
        open_head(model, checkpoint.new_parameters, sample)
    _refuse_dependence_on_padding(model, modality, items, device)
    compute_config = _machine(config, checkpoint, modality, items, device, world)
    targets = _targets(data, modality, items)
    store = FeatureStore() if config.store else FeatureStore(scratch)
    context = RunContext(config, data, checkpoint, modality, compute_config, store, items, targets)
    if config.training.imbalance == "balanced":
        return replace(context, data=replace(data, task=data.task.with_balance(targets[context.fitted])))
    return context


def _targets(data: LabelledData, modality: Modality, items: list[Any]) -> np.ndarray:
    """Return the targets of all rows; entities that no words of this tokenizer make up are counted in a warning."""
    labels, places = list(data.frame["label"]), [modality.kind.places(item) for item in items]
    if data.task.by_word:
        lost = sum(data.task.unaligned(*each) for each in zip(labels, places, strict=True))
        if lost:
            log.warning(
                "%d of %d entities begin or end inside of a word, as this tokenizer and pipeline read words: they are trained "
                "and measured as whole words. A blank between words and marks, or a WordPiece checkpoint, avoids it.",
                lost, sum(map(len, labels)),
            )  # fmt: skip
    return data.task.targets(labels, places)


def _refuse_dependence_on_padding(model: nn.Module, modality: Modality, items: list[Any], device: torch.device) -> None:
    """Raise `UserError` where the features of an example depend on how far its batch is padded, as CANINE's do.

    The shortest example is read alone and beside the longest one.
    """
    lengths = modality.lengths(items)
    short, long = items[int(np.argmin(lengths))], items[int(np.argmax(lengths))]
    if min(lengths) == max(lengths) or not modality.mixes_lengths:
        return
    batches = [modality.collate([short]), modality.collate([short, long])]
    alone, both = (
        read_features(model, {name: value.to(device) for name, value in batch.items()}).float() for batch in batches
    )
    moved, apart = (both[0] - alone[0]).norm(), (both[0] - both[1]).norm()
    if moved > MOST_MOVED * apart + 1e-3 * alone[0].norm():
        raise UserError(
            f"{type(model).__name__} cannot be used here: what it predicts depends on the other {modality.kind.plural} of a "
            f"batch. Padding moves one by {100 * float(moved / apart):.0f} % of its distance to another one. Take a "
            "checkpoint that leaves padding out, such as google/byt5-small where single characters count."
        )


def probed(config: RunConfig, data: LabelledData) -> tuple[RunContext, Probe]:
    """One pass of the frozen checkpoint over `data` and the linear probe on it; nothing is written but the store."""
    from accelerate.utils import set_seed

    set_seed(config.seed)
    config = config.model_copy(update={"strategy": ProbeStrategy(), "model": data.fitted(config.model)})
    device = devices.choose_device(use_cpu=config.use_cpu)
    checkpoint = load_checkpoint(config.model, data.kind, data.task)
    with tempfile.TemporaryDirectory() as scratch:
        context = prepare(config, data, checkpoint, device, World(), Path(scratch))
        return context, solve_head(context)


def _centred_only_with_bias(task: Task, model: nn.Module) -> Task:
    """Return the task without centring for a head without bias (GPT-2), which cannot express the mean."""
    return task if final_linear(model).bias is not None else replace(task, mean=(0.0,) * len(task.mean))


def _augmentation(config: RunConfig, kind: ModalityKind) -> Any:
    """`auto` made definite: light where the whole image network trains, else none."""
    if config.augmentation.level != "auto":
        return config.augmentation
    defaults = config.strategy.defaults(kind)
    light = kind.augments and defaults is not None and defaults.augment
    if kind.augments:
        log.info("Augmentation: %s", "light" if light else "none")
    return config.augmentation.model_copy(update={"level": "light" if light else "none"})


def _machine(
    config: RunConfig,
    checkpoint: Checkpoint,
    modality: Modality,
    items: list[Any],
    device: torch.device,
    world: World,
) -> ComputeConfig:
    """Precision and batch size by trial on the real network and real rows; remembered for equal runs later."""
    threads = devices.thread_plan(device, world)
    model = checkpoint.model

    def make_batch(rows: int) -> dict[str, torch.Tensor]:
        chosen = [items[i % len(items)] for i in range(rows)]
        return {name: value.to(device) for name, value in modality.collate(chosen).items()}

    def inference() -> dict[str, Any]:
        precision = autotune.measure_precision(model, make_batch(16), device)
        size = autotune.batch_size_for_inference(model, make_batch, device, precision)
        return {"precision": precision, "batch_size": size}

    def training() -> dict[str, Any]:
        return {"precision": autotune.measure_precision(model, make_batch(16), device, training=True)}

    network = architecture_key(model)
    key = f"{checkpoint.weights_hash}-{devices.device_name(device)}-{threads.threads}-{modality.settings()}-{network}"
    # Measured on the first process alone: clocks differ, and all have to compute in the same precision.
    found = world.from_first(lambda: autotune.remembered(f"inference-{key}", inference))
    wanted = config.training.bf16
    forward_bf16 = found["precision"] == "bf16" if wanted is None else wanted
    trains = config.strategy.defaults(modality.kind) is not None
    if wanted is None and trains:
        measured = world.from_first(lambda: autotune.remembered(f"training-{replaced()}-{key}", training))
        wanted = measured["precision"] == "bf16"
    autocast = torch.bfloat16 if forward_bf16 else None
    return ComputeConfig(device, autocast, bool(wanted), threads.workers, found["batch_size"], world)


# --- head, plan, training ---------------------------------------------------------------------------------------------


def solve_head(context: RunContext) -> Probe | None:
    """Return the linear probe, where the strategy begins with it. A strategy that ends with it uses the validation rows too."""
    if context.config.strategy.head_init != "probe":
        return None
    frozen = context.frozen(LayerGroups.of(context.model))
    head = context.config.strategy.readable(context.config.head)
    rows, task, head = head_problem(context, head)
    return solve_probe(frozen, rows, task, head, context.config.seed)


def head_problem(context: RunContext, head: HeadConfig) -> tuple[Rows, Task, HeadConfig]:
    """Return what a linear probe is fitted on: the examples, or the words of all of them, with their task and options."""
    if context.data.task.by_word:
        return words_of(context, head)
    digests = context.data.frame["digest"].tolist()
    return Rows(context.items, digests, context.targets, context.fitted, context.groups), context.data.task, head


# --- predictions ------------------------------------------------------------------------------------------------------


def probe_predictions(context: RunContext, probe: Probe) -> Predictions:
    """Of the rows the head was fitted on by the folds that did not see them, and of all others by the head."""
    if context.data.task.by_word:
        positions = context.positions("validation", "test")
        logits = of_texts(probe.logits.astype(np.float32), context.targets)[positions]
        return Predictions(positions, logits, np.zeros(len(positions), bool))
    others = np.setdiff1d(np.arange(len(context.items)), context.fitted)
    logits = np.concatenate([probe.head.out_of_fold, probe.logits[others]])
    seen = np.concatenate([np.ones(len(context.fitted), bool), np.zeros(len(others), bool)])
    return Predictions(np.concatenate([context.fitted, others]), logits.astype(np.float32), seen)


def finalise(context: RunContext, predictions: Predictions) -> Predictions:
    """Fold the scale of the targets, or the temperature, into the head; the predictions likewise."""
    task = context.data.task
    if not task.has_classes:
        fold_scale(context.model, task)
        return replace(predictions, logits=task.in_units(predictions.logits))
    if task.by_pixel:  # no logits are kept that a temperature could be fitted on
        return predictions
    temperature = temperature_of(context, predictions)
    fold_temperature(context.model, temperature)
    return replace(predictions, logits=predictions.logits / temperature, temperature=temperature)


def calibration_rows(context: RunContext, predictions: Predictions) -> np.ndarray:
    """Which predictions (bool, (N,)) what comes after training is fitted on: out of fold, or of the validation rows."""
    if predictions.out_of_fold.any():
        return predictions.out_of_fold
    return np.isin(predictions.positions, context.positions("validation"))


def temperature_of(context: RunContext, predictions: Predictions) -> float:
    """From rows that no weight was fitted on; 1 where there are too few of them to tell."""
    from hftransfer.evaluation.calibration import MIN_ROWS_FOR_TEMPERATURE, fit_temperature

    evaluated, task = calibration_rows(context, predictions), context.data.task
    logits, targets = predictions.logits[evaluated], context.targets[predictions.positions[evaluated]]
    if not evaluated.any() or len(task.units(targets)) < MIN_ROWS_FOR_TEMPERATURE:
        return 1.0
    temperature = fit_temperature(task.of_unit, task.units(logits), task.units(targets))
    log.info("Temperature: %.3g, folded into the head", temperature)
    return temperature
