"""A run on several inputs: a probe for each input with a network, and one linear head on the features of all."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hftransfer.config import RunConfig
from hftransfer.core.errors import UserError
from hftransfer.data import LabelledData
from hftransfer.data.named_inputs import CATEGORY
from hftransfer.data.named_rows import column_of, missing_of, networks_of
from hftransfer.evaluation.contributions import combinations_of, contributions, sentences
from hftransfer.features.sources import FeatureSource
from hftransfer.modalities import MODALITIES
from hftransfer.models.loading import load_checkpoint
from hftransfer.pipeline import outputs
from hftransfer.pipeline.fit import Seconds, fit
from hftransfer.pipeline.reliability_fit import fit_reliability, reliability_metrics
from hftransfer.pipeline.run_context import RunContext, finalise, prepare, probe_predictions, temperature_of
from hftransfer.pipeline.self_check import relative_gap
from hftransfer.pipeline.tolerance import EXAMPLES, Tolerance
from hftransfer.prediction.fused import assembled
from hftransfer.probe.fit import Probe
from hftransfer.probe.fused import Block, FusedHead, Layout, Values, of_categories, of_numbers
from hftransfer.probe.solver import LinearProbe, make_folds, solve_head, standardiser
from hftransfer.runs import folder as run_folder
from hftransfer.runs.folder import MODELS
from hftransfer.runs.predictions import Predictions
from hftransfer.runs.reader import Part
from hftransfer.runs.record import (
    CheckpointRecord,
    FreezeCheckRecord,
    HistoryRecord,
    InputRecord,
    MetricsRecord,
    RunRecord,
)
from hftransfer.runtime.interruption import Stop
from hftransfer.runtime.launch import World
from hftransfer.strategies import ProbeStrategy
from hftransfer.tasks import Task
from hftransfer.training.freeze_check import tensor_hashes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Single:
    """The finished probe of one input: its context (of the examples that have it), and the features of these."""

    context: RunContext
    features: np.ndarray


@dataclass(frozen=True)
class Fusion:
    """All examples with the features of all inputs, (N, D) as the head reads them.

    `context` is that of the input that pages show, with the data, rows and targets of all examples.
    """

    context: RunContext
    layout: Layout
    features: np.ndarray

    @property
    def task(self) -> Task:
        return self.context.data.task

    @property
    def folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        context = self.context
        groups = None if context.groups is None else context.groups[context.fitted]
        folds, seed = context.config.head.folds, context.config.seed
        return make_folds(self.task, context.targets[context.fitted], groups, folds, seed)

    def solve(self, names: Sequence[str]) -> LinearProbe:
        """Return the head on the features of some inputs."""
        columns, fitted = self.layout.columns_of(names), self.context.fitted
        wanted = self.task.standardised(self.context.targets[fitted])
        features = self.features[fitted][:, columns]
        return solve_head(features, wanted, self.task, self.folds, blocks=self.layout.numbers[columns])

    def logits(self, head: LinearProbe, names: Sequence[str]) -> np.ndarray:
        """Return logits (N, C) of all examples: of those that the head was fitted on, out of fold."""
        found = head.logits(self.features[:, self.layout.columns_of(names)])
        found[self.context.fitted] = head.out_of_fold
        return found


def fuse(
    config: RunConfig, data: LabelledData, device: torch.device, world: World, folder: Path, stop: Stop
) -> dict[str, Any]:
    """Fill the run folder of several inputs, and return its metrics. Raises `UserError`.

    Each input with a network becomes a run of its own in `models/`, on the examples that have it.
    """
    _check(config, data, world)
    seconds = Seconds(world)
    _log_missing(data)
    singles = {name: _single(config, data, name, device, folder, stop) for name in networks_of(data.kinds)}
    with seconds("fusion"):
        fusion = _fusion(config, data, singles)
        head = fusion.solve(list(data.kinds))
    with seconds("writing"):
        predictions, final, metrics = _write(folder, config, fusion, head)
        checked = _checked(folder, fusion, final)
    _record(folder, fusion, predictions, list(singles), seconds.phases, checked)
    return metrics


def _check(config: RunConfig, data: LabelledData, world: World) -> None:
    """Raise `UserError` for a setting that does not take several inputs."""
    for wanted, name in ((config.evaluation.seeds > 1, "evaluation.seeds"), (config.push_to_hub.repo_id, "push")):
        if wanted:
            data.require(name)
    train = data.frame[data.frame["split"] == "train"]
    for name in data.kinds:
        if train[column_of(name)].notna().sum() < 2:
            raise UserError(f"Fewer than two training examples have the input {name}: leave it out of data.input.")
    if world.size > 1:
        raise UserError("A run on several inputs is made by one process: start it without a launcher.")
    if not isinstance(config.strategy, ProbeStrategy):
        raise UserError(
            f"strategy {config.strategy.type} does not take several inputs yet: use strategy.type=probe, or name one "
            "input with data.input."
        )


def _log_missing(data: LabelledData) -> None:
    for name, counts in missing_of(data.frame, data.kinds).items():
        parts = ", ".join(f"{count} {split}" for split, count in counts.items())
        log.info("Missing %s: %d of %d examples (%s); they get the mean of the training examples, and a mark.",
                 name, sum(counts.values()), len(data.frame), parts)  # fmt: skip


# --- one input -------------------------------------------------------------------------------------------------------


def _single(config: RunConfig, data: LabelledData, name: str, device: torch.device, folder: Path, stop: Stop) -> Single:
    """Make the run of one input on the examples that have it."""
    from accelerate.utils import set_seed

    view, place = data.of_input(name), folder / MODELS / name
    own = config.of_input(name, place).resolved(view)
    seconds = Seconds(World())
    place.mkdir(parents=True)
    log.info("Input %s: %d %s, %s.", name, len(view.frame), view.kind.plural, own.model.name)
    with seconds("checkpoint"):
        set_seed(own.seed)
        checkpoint = load_checkpoint(own.model, view.kind, view.task)
    with seconds("preparation"):
        context = prepare(own, view, checkpoint, device, World(), run_folder.scratch(config.output_folder) / name)
    fitted = fit(context, place, stop, seconds)
    predictions = finalise(context, fitted.predictions)
    model = fitted.plan.finish(fitted.plan.model)
    record = outputs.Record(fitted, tensor_hashes(model, fitted.plan.layer_groups), seconds.phases)
    outputs.write_run(place, context, model, predictions, record)
    return Single(context, fitted.probe.features)


# --- all inputs ------------------------------------------------------------------------------------------------------


def _fusion(config: RunConfig, data: LabelledData, singles: dict[str, Single]) -> Fusion:
    shown = next(single for name, single in singles.items() if data.modality == data.kinds[name])
    targets = data.task.encode_all(list(data.frame["label"]))
    context = replace(shown.context, config=config, data=data, items=[""] * len(data.frame), targets=targets)
    if config.training.imbalance == "balanced":
        balanced = data.task.with_balance(targets[context.fitted])
        context = replace(context, data=replace(data, task=balanced))
    values, blocks = {}, []
    for name, kind in data.kinds.items():
        column = data.frame[column_of(name)]
        categories = _categories(column.iloc[context.fitted]) if kind == CATEGORY else ()
        values[name] = _values(column, kind, categories, name, singles.get(name))
        blocks.append(Block(name, kind, values[name].features.shape[1], categories=categories))
    layout = Layout.of(blocks, values, context.fitted)
    return Fusion(context, layout, layout.matrix(values))


def _values(column: pd.Series, kind: str, categories: tuple[str, ...], name: str, single: Single | None) -> Values:
    if kind in MODALITIES:
        return Values(column.notna().to_numpy(), single.features)
    return of_categories(column, categories, name) if kind == CATEGORY else of_numbers(column)


def _categories(column: pd.Series) -> tuple[str, ...]:
    """Return the names in the examples that the head is fitted on, in order."""
    return tuple(sorted(set(column.dropna())))


def _write(
    folder: Path, config: RunConfig, fusion: Fusion, head: LinearProbe
) -> tuple[Predictions, FusedHead, dict[str, Any]]:
    """Write everything but `run.json` and the freeze check; return predictions, the final head and metrics."""
    context, data, task = fusion.context, fusion.context.data, fusion.task
    mean, scale = standardiser(fusion.features[context.fitted], True, fusion.layout.numbers)
    probe = Probe(head, FeatureSource(0), {}, fusion.features, [(fusion.features, fusion.features)],
                  blocks=fusion.layout.numbers)  # fmt: skip
    predictions, final = _finalised(context, probe, FusedHead(fusion.layout, head.weight, head.bias, mean, scale))
    final.write(folder)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    outputs.split_table(data, context.modality).to_parquet(folder / "splits.parquet", index=False)
    outputs.keep_inputs(folder, data.frame, data.kind)
    no_places = np.full(len(data.frame), None, dtype=object)
    outputs.labelled_table(data, predictions, no_places).to_parquet(folder / "predictions.parquet", index=False)
    outputs.out_of_fold_table(context, probe, predictions.temperature).to_parquet(folder / "oof.parquet", index=False)
    scaled = replace(probe, features=final.scaled(fusion.features))
    reliability = fit_reliability(context, context.model, predictions, scaled)
    if reliability is not None:
        reliability.write(folder, task)
    metrics = outputs.measured(data, predictions, context.targets, config.evaluation)
    test = predictions.of_split(data.frame, "test")
    groups = outputs.groups_of(data, test.positions)
    metrics |= reliability_metrics(task, reliability, test, context.targets[test.positions], groups)
    metrics |= outputs.cross_validated(context, probe, True)
    metrics["headline"] = outputs.headline_of(config, len(data.frame), data.given, metrics)
    if found := _contributions(fusion, head, metrics["headline"]):
        metrics["contributions"] = found.model_dump()
    MetricsRecord.of(metrics).write(folder)
    HistoryRecord().write(folder)
    return predictions, final, metrics


def _finalised(context: RunContext, probe: Probe, head: FusedHead) -> tuple[Predictions, FusedHead]:
    """Return predictions and head with the scale of the targets, or the temperature, folded in."""
    predictions, task = probe_predictions(context, probe), context.data.task
    if not task.has_classes:
        std, mean = np.array(task.std), np.array(task.mean)
        folded = replace(head, weight=head.weight * std[:, None], bias=head.bias * std + mean)
        return replace(predictions, logits=task.in_units(predictions.logits)), folded
    temperature = temperature_of(context, predictions)
    folded = replace(head, weight=head.weight / temperature, bias=head.bias / temperature)
    return replace(predictions, logits=predictions.logits / temperature, temperature=temperature), folded


def _contributions(fusion: Fusion, head: LinearProbe, headline: str | None) -> Any:
    """Measure every combination of inputs on the test rows, or where the headline is cross-validated on all rows."""
    context, task, names = fusion.context, fusion.task, tuple(fusion.context.data.kinds)
    if headline is None or len(names) < 2:
        return None
    if headline == "test":
        rows, how = context.positions("test"), "test examples"
    else:
        rows = np.unique(np.concatenate([context.fitted, context.positions("test")]))
        how = "all examples, each by a head that did not see it"
    heads = {chosen: head if chosen == names else fusion.solve(chosen) for chosen in combinations_of(names)}
    scores = {
        chosen: task.probabilities(task.in_units(fusion.logits(found, chosen)[rows])) for chosen, found in heads.items()
    }
    frame = context.data.frame.iloc[rows][["id", "group"]].reset_index(drop=True)
    part = Part(frame, context.targets[rows], scores[names])
    found = contributions(task, part, scores, how, context.config.evaluation.resamples)
    for sentence in sentences(found):
        log.info("%s", sentence)
    return found


def _checked(folder: Path, fusion: Fusion, head: FusedHead) -> dict[str, Any]:
    """Ask the saved folder some examples, as an outside user would. Raises `UserError` where it answers otherwise."""
    context = fusion.context
    rows = np.unique(np.linspace(0, len(context.targets) - 1, EXAMPLES).round().astype(int))
    saved = assembled(folder, fusion.task, context.config.use_cpu)
    recorded, found = head.logits(fusion.features[rows]), saved.logits(context.data.frame.iloc[rows])
    gap, tolerance = relative_gap(recorded, found), Tolerance.of(context.compute_config)
    if not gap <= tolerance.logits:
        raise UserError(
            f"The saved folder is not the evaluated model: logits of {len(rows)} examples differ by {gap:.2g} of their spread "
            f"(expected at most {tolerance.logits:g}). The run is not complete. Try store=false and training.bf16=false."
        )
    log.info("Self-check: the folder gives the recorded answers to %d examples", len(rows))
    return {"examples": len(rows), "max_difference": gap, "tolerance": tolerance.logits}


def _record(
    folder: Path, fusion: Fusion, predictions: Predictions, networks: list[str], seconds: dict[str, float],
    checked: dict[str, Any],
) -> None:  # fmt: skip
    """Write the freeze check of all models, and `run.json` last, because it says that the folder is complete."""
    data, runs = fusion.context.data, {name: RunRecord.read(folder / MODELS / name) for name in networks}
    checks = {name: FreezeCheckRecord.read(folder / MODELS / name) for name in networks}
    groups = [
        group.model_copy(update={"name": f"{name}: {group.name}"})
        for name, check in checks.items()
        for group in check.layer_groups
    ]
    trained, all_of_them = (sum(getattr(group, size) for group in groups) for size in ("trainable", "parameters"))
    FreezeCheckRecord(trainable_share=trained / max(1, all_of_them), layer_groups=groups).write(folder)
    missing = missing_of(data.frame, data.kinds)
    inputs = tuple(
        InputRecord(name=name, kind=kind, checkpoint=runs[name].checkpoint if name in runs else None,
                    missing=missing.get(name, {}))
        for name, kind in data.kinds.items()
    )  # fmt: skip
    for run in runs.values():
        for phase, took in run.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + took
    sources = ", ".join(f"{name}: {run.checkpoint.source}" for name, run in runs.items())
    hashes = "-".join(run.checkpoint.weights_hash for run in runs.values())
    outputs.run_record(fusion.context, predictions, seconds, checked).model_copy(
        update={"checkpoint": CheckpointRecord(source=sources, weights_hash=hashes), "inputs": inputs}
    ).write(folder)
