"""What a run leaves: predictions, metrics, splits, and the record of how it was made."""

import importlib.metadata
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.core.files import finite
from hftransfer.core.version import __version__
from hftransfer.core.wording import describe
from hftransfer.data import LabelledData
from hftransfer.data.named_rows import is_column, recorded
from hftransfer.data.sources import SPLITS
from hftransfer.evaluation import EvaluationConfig, evaluate_predictions
from hftransfer.modalities import Modality
from hftransfer.models.heads import final_linear
from hftransfer.models.loading import save_model
from hftransfer.pipeline.fit import Fitted
from hftransfer.pipeline.kept_inputs import keep_inputs
from hftransfer.pipeline.reliability_fit import fit_reliability, reliability_metrics
from hftransfer.pipeline.repeats import cross_validate_head, folds_of, headline_of
from hftransfer.pipeline.run_context import RunContext
from hftransfer.pipeline.self_check import check_saved_model
from hftransfer.pipeline.words import unseen_logits
from hftransfer.probe.fit import Probe
from hftransfer.runs.predictions import NO_UNITS, Predictions, prediction_table
from hftransfer.runs.record import (
    SCHEMA_VERSION,
    CheckpointRecord,
    DataRecord,
    FeatureSourceRecord,
    HistoryRecord,
    MetricsRecord,
    PrecisionRecord,
    RunRecord,
    TaskRecord,
)
from hftransfer.runtime import devices
from hftransfer.strategies.base import rates_by_depth
from hftransfer.training.freeze_check import freeze_check

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "timm", "peft", "accelerate", "datasets", "scikit-learn", "numpy")


def labelled_table(data: LabelledData, predictions: Predictions, places: np.ndarray) -> pd.DataFrame:
    """`prediction_table` with the split and the label of each row: what `predictions.parquet` holds.

    `places` (N,) are those of the units of all rows.
    """
    rows = data.frame.iloc[predictions.positions]
    units = rows["input"].tolist(), places[predictions.positions]
    table = prediction_table(rows["id"].tolist(), data.task, predictions.logits, units)
    table.insert(1, "split", rows["split"].to_numpy())
    table.insert(2, "label", pd.Series(rows["label"].tolist(), dtype=object))
    table.insert(4, "out_of_fold", predictions.out_of_fold)
    return table


def split_table(data: LabelledData, modality: Modality) -> pd.DataFrame:
    """Return what `splits.parquet` holds: id, split, group, label, digest of the content, input (empty for images as bytes)."""
    frame = data.frame
    inputs = [modality.recorded(value) for value in frame["input"]]
    named = [name for name in frame if is_column(name)]
    table = frame[["id", "split", "group", "label", "digest"]].assign(input=inputs)
    for name in named:
        table[name] = [recorded(value) for value in frame[name]]
    return table.assign(input_pair=frame["input_pair"]) if "input_pair" in frame else table


def measured(
    data: LabelledData, predictions: Predictions, targets: np.ndarray, config: EvaluationConfig, averaged: bool = False
) -> dict[str, Any]:
    """`metrics.json`: per split its metrics with intervals, `per_class`, and how the numbers came about.

    `averaged`: the weights are a mean over steps, and no step was chosen.
    """
    result: dict[str, Any] = {"per_class": {}, "notes": {}}
    for split in ("test", "validation"):
        part = predictions.of_split(data.frame, split)
        if split == "validation" and part.out_of_fold.any():
            part = Predictions(
                *(
                    a[predictions.out_of_fold]
                    for a in (predictions.positions, predictions.logits, predictions.out_of_fold)
                )
            )
            result["notes"][split] = "cross-validated predictions of every row the head was fitted on"
        elif split == "validation" and len(part.positions) and not predictions.out_of_fold.any():
            chose = [] if averaged else ["the best checkpoint"]
            chose += [] if data.task.by_pixel else ["the temperature"]
            if chose:
                result["notes"][split] = f"this part chose {' and '.join(chose)}: expect it to flatter"
        if len(part.positions):
            scores = data.task.probabilities(part.logits)
            groups = groups_of(data, part.positions)
            found = evaluate_predictions(data.task, targets[part.positions], scores, groups, config)
            result[split], result["per_class"][split] = found["metrics"], found["per_class"]
    _note_patch(result["notes"], data.patch)
    return result


def groups_of(data: LabelledData, positions: np.ndarray) -> list[str | None] | None:
    """Return the groups of some rows; None where none of them has one."""
    groups = data.frame["group"].to_numpy()[positions]
    return None if pd.isna(groups).all() else list(groups)


def _note_patch(notes: dict[str, str], patch: dict[str, Any] | None) -> None:
    """Note what the patch did to each split, beside what else is to be known of its numbers."""
    for split in SPLITS if patch else ():
        if done := describe(patch, split):
            notes[split] = "; ".join([*([notes[split]] if split in notes else []), f"by the patch {done}"])


def write_pages(folder: Path) -> None:
    """`report.html` and the model card of a whole run folder; a run that measured nothing has neither."""
    from hftransfer.publish.card import write_card
    from hftransfer.report import write_report

    if not {"test", "validation"} & MetricsRecord.read(folder).parts.keys():
        log.info("Neither test nor validation rows: no report and no model card")
        return
    write_report(folder)
    write_card(folder)


def versions() -> dict[str, str]:

    return {"hftransfer": __version__} | _installed()


@cache
def _installed() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@dataclass(frozen=True)
class Record:
    """How a run went: for `receipt.json`, `run.json` and `history.json`."""

    fitted: Fitted
    after: dict[str, str]
    seconds: dict[str, float]

    @property
    def interruption(self) -> str | None:
        """Why training ended before its time, in words."""
        found = self.fitted.trained.interruption if self.fitted.trained else None
        return found.describe() if found else None


def write_run(
    folder: Path, context: RunContext, model: nn.Module, predictions: Predictions, record: Record
) -> dict[str, Any]:
    """Everything of the run folder but the adapter; `run.json` last, because it says that the folder is whole."""
    config, data, probe, trained = context.config, context.data, record.fitted.probe, record.fitted.trained
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    split_table(data, context.modality).to_parquet(folder / "splits.parquet", index=False)
    keep_inputs(folder, data.frame, data.kind)
    labelled_table(data, predictions, context.places).to_parquet(folder / "predictions.parquet", index=False)
    if probe is not None:
        out_of_fold_table(context, probe, predictions.temperature).to_parquet(folder / "oof.parquet", index=False)
    save_model(model, context.checkpoint.processor, folder / "model")
    checked = check_saved_model(folder / "model", context, model, predictions, probe)
    steps = trained.steps_logits if trained else ()
    reliability = fit_reliability(context, model, predictions, probe, steps)
    if reliability is not None:
        reliability.write(folder, data.task)
    test = predictions.of_split(data.frame, "test")
    averaged = trained is not None and trained.averaged
    metrics = measured(data, predictions, context.targets, config.evaluation, averaged)
    metrics |= reliability_metrics(
        data.task, reliability, test, context.targets[test.positions], groups_of(data, test.positions)
    )
    if data.task.weights:
        metrics["notes"]["probabilities"] = (
            "training.imbalance=balanced: they are calibrated for classes that are equally frequent, not for these data"
        )
    metrics |= cross_validated(context, probe, final_linear(model).bias is not None)
    metrics["headline"] = headline_of(config, len(data.frame), data.given, metrics)
    if record.interruption:
        kept = "best weights until then" if "validation" in metrics else "weights of that step"
        metrics["notes"]["training"] = f"ended early ({record.interruption}); these are the {kept}"
    MetricsRecord.of(metrics).write(folder)
    plan = record.fitted.plan
    rates = rates_by_depth(plan, trained.learning_rate) if trained else {}
    HistoryRecord(entries=trained.history if trained else ()).write(folder)
    freeze_check(plan.layer_groups, record.fitted.sizes, rates, record.fitted.before, record.after).write(folder)
    run_record(context, predictions, record.seconds, checked, record).write(folder)
    return metrics


def cross_validated(context: RunContext, probe: Probe | None, intercept: bool) -> dict[str, Any]:
    """Cross-validation of a head on its stored features, where it is asked for or affordable."""
    config, data = context.config, context.data
    folds = folds_of(config, len(data.frame), data.given, data.kind)
    if not folds or context.trains or data.task.by_word:
        return {}  # `repeats` makes a run of each fold
    evaluation = config.evaluation.model_copy(update={"folds": folds})
    try:
        return cross_validate_head(
            data.task, probe.tried, context.targets, context.groups, config.head, intercept, evaluation, config.seed,
            probe.blocks,
        )  # fmt: skip
    except UserError as error:  # a single group, or too few examples
        if config.evaluation.folds:
            raise
        log.warning("Cross-validation is left out, and the single test part is the headline: %s", error)
        return {}


def out_of_fold_table(context: RunContext, probe: Probe, temperature: float) -> pd.DataFrame:
    rows = context.data.frame.iloc[context.fitted]
    task = context.data.task
    units = (rows["input"].tolist(), context.places[context.fitted]) if task.by_word else NO_UNITS
    logits = unseen_logits(context, probe) if task.by_word else task.in_units(probe.head.out_of_fold)
    logits = logits / (1.0 if context.trains else temperature)
    table = prediction_table(rows["id"].tolist(), task, logits, units)
    table.insert(1, "label", pd.Series(rows["label"].tolist(), dtype=object))
    return table


def run_record(
    context: RunContext, predictions: Predictions, seconds: dict[str, float], self_check: dict[str, Any],
    record: Record | None = None,
) -> RunRecord:  # fmt: skip
    """Return what `run.json` holds; `record` is of a network, None of a head on several of them."""
    data, compute_config = context.data, context.compute_config
    trained, probe = (record.fitted.trained, record.fitted.probe) if record else (None, None)
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        modality=data.modality,
        pipeline_task=context.modality.kind.pipeline_task,
        task=TaskRecord.of(data.task),
        checkpoint=CheckpointRecord(source=context.checkpoint.source, weights_hash=context.checkpoint.weights_hash),
        strategy=context.config.strategy.type,
        feature_source=probe and FeatureSourceRecord(chosen=probe.feature_source.name, losses=finite(probe.losses)),
        temperature=predictions.temperature,
        steps=trained.steps if trained else 0,
        interrupted=record.interruption if record else None,
        batch_size=(trained.batch_size, trained.accumulation) if trained else None,
        learning_rate=trained.learning_rate if trained else None,
        truncated_share=context.modality.truncated_share,
        seconds=seconds,
        versions=versions(),
        seed=context.config.seed,
        world_size=compute_config.world_size,
        precision=PrecisionRecord(
            inference=_precision(compute_config.autocast), training=_precision(compute_config.train_in_bf16)
        ),
        data=DataRecord(
            fingerprint=data.fingerprint,
            columns=data.columns,
            counts=data.frame["split"].value_counts().to_dict(),
            skipped=data.skipped,
            patch=data.patch,
            given=tuple(data.given),
            fitted=tuple(data.frame["split"].iloc[context.fitted].unique()),
            **_copies(data),
        ),
        hardware=devices.hardware(compute_config.device),
        peak_memory_bytes=devices.peak_memory(compute_config.device),
        self_check=self_check,
    )


def _copies(data: LabelledData) -> dict[str, int]:
    """Rows whose input is, to the byte, that of an earlier row; and held-out rows whose input the training part holds."""
    digests, train = data.frame["digest"], data.frame["split"] == "train"
    return {"copies": int(digests.duplicated().sum()), "leaked": int((~train & digests.isin(digests[train])).sum())}


def _precision(bf16: object) -> str:
    return "bf16" if bf16 else "fp32"
