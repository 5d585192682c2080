"""The training loop: from a plan and examples to the best weights, with their record."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from hftransfer.config import TrainingConfig
from hftransfer.core.errors import UserError
from hftransfer.core.files import remove
from hftransfer.evaluation.calibration import apply_temperature, calibrated_log_loss, fit_temperature
from hftransfer.evaluation.metrics import compute_metrics, row_losses
from hftransfer.features.passes import ComputeConfig
from hftransfer.models.loading import quiet_transformers
from hftransfer.runtime.cpu_kernels import quick_operations
from hftransfer.runtime.interruption import LOSS_DIVERGED, Interruption, Stop
from hftransfer.runtime.memory import with_less
from hftransfer.strategies import Defaults, Plan
from hftransfer.tasks import Task
from hftransfer.training.arguments import global_batch, training_arguments
from hftransfer.training.averaging import FEW, FILE, SHARE, WeightMean
from hftransfer.training.callbacks import (
    Evaluations,
    FreezeCallback,
    OwnDraws,
    ProgressBarCallback,
    SharedStatistics,
    StopCallback,
)
from hftransfer.training.checkpointing import STATE, Snapshot, complete_best, keep_tracks, last_complete
from hftransfer.training.examples import Collator, Examples, Rows, training_order
from hftransfer.training.pixel_metrics import PixelMetrics
from hftransfer.training.plan_trainer import Loss, PlanTrainer
from hftransfer.training.start_penalty import StartPenalty

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """How to train: the configuration, what the strategy leaves to it, and the devices.

    `begins_trained`: the network has answers before its first step, so the start is evaluated too.
    """

    config: TrainingConfig
    defaults: Defaults
    compute_config: ComputeConfig
    seed: int
    begins_trained: bool


@dataclass
class Trained:
    """What the loop leaves besides the weights: the log, the rates and batches it used, and whether it ended early."""

    history: list[dict[str, Any]] = field(default_factory=list)
    learning_rate: float = 0.0
    steps: int = 0
    batch_size: int = 0
    accumulation: int = 1
    interruption: Interruption | None = None
    # (V, C) of each evaluation that could have been kept, in the order of validation
    steps_logits: list[np.ndarray] = field(default_factory=list)
    averaged: bool = False  # the weights are a mean over steps: no step was chosen


def train(plan: Plan, examples: Examples, setup: Setup, folder: Path, stop: Stop) -> Trained:
    """Train the plan's model in place, ending with the weights that did best on the validation part, or with the last.

    Those that it has now are among them where it `begins_trained`. With a random head they never are: on a handful of rows
    its even probabilities can have a smaller loss than answers that are mostly right.

    Writes `folder`/checkpoints while it runs and goes on from a complete one that it finds there. Where memory runs out, a
    single process tries again with fewer rows at a time and as many in all. Raises `UserError` for training arguments
    that do not exist, and when the loss is no number before there is anything to keep.
    """
    plan.freeze()  # what opens later enters the optimizer (and DDP) now; FreezeCallback closes it until its time
    config, compute_config = setup.config, setup.compute_config
    _check_evaluated(config, len(examples.validation), plan.model)
    asked, alone = config.per_device_train_batch_size, compute_config.world_size == 1
    start = Snapshot.of(plan.model) if alone or setup.begins_trained else None

    def attempt(size: int) -> Trained:
        if size != asked:
            start.restore()
        tried = replace(setup, config=config.model_copy(update=_same_global_batch(config, size)))
        return _attempt(plan, examples, tried, folder / "checkpoints", stop, start)

    trained = with_less(asked, attempt, "training", least=1 if alone else asked)
    if compute_config.rank == 0 and config.report_to != "none":
        keep_tracks(folder)
    return trained


def _attempt(
    plan: Plan, examples: Examples, setup: Setup, checkpoints: Path, stop: Stop, start: Snapshot | None
) -> Trained:
    """Train with one batch size."""
    evaluated_first = setup.begins_trained and len(examples.validation) > 0
    by_length = np.argsort(examples.lengths[examples.validation])
    trainer = _trainer(plan, examples, setup, checkpoints, stop, examples.validation[by_length])
    with quiet_transformers(), stop.gently(), quick_operations(setup.compute_config.device):
        written = (FILE,) if trainer.mean else ()
        _train(trainer, last_complete(checkpoints, setup.compute_config.world_size, written), evaluated_first)
        averaged = _take_mean(trainer, start if setup.begins_trained else None)
    if evaluated_first and (not averaged or _is_surely_worse(examples, by_length, trainer.seen)):
        _undo_a_loss(trainer, start)
    return Trained(
        trainer.state.log_history, trainer.args.learning_rate, trainer.state.global_step,
        setup.config.per_device_train_batch_size, setup.config.gradient_accumulation_steps,
        _interruption(trainer, stop, start if evaluated_first else None),
        _all_evaluations(trainer, examples.task, by_length, averaged), averaged,
    )  # fmt: skip


def _trainer(
    plan: Plan, examples: Examples, setup: Setup, checkpoints: Path, stop: Stop, validation: np.ndarray
) -> PlanTrainer:
    """Build the Trainer for one batch size, with callbacks of its own."""
    config, compute_config = setup.config, setup.compute_config
    counts = {"train": len(examples.train), "validation": len(validation)}
    arguments = training_arguments(
        config, setup.defaults, examples.task, compute_config, checkpoints, setup.seed, counts
    )
    batch = global_batch(config, compute_config)
    order = training_order(examples.lengths[examples.train], batch, arguments.max_steps, setup.seed)
    seen: list[np.ndarray] = []
    averaging = [WeightMean(plan)] if _averages(config, len(examples.train)) else []
    trainer = PlanTrainer(
        model=plan.model,
        args=arguments,
        train_dataset=Rows(examples, examples.train[order], training=True),
        eval_dataset=Rows(examples, validation, training=False),
        data_collator=Collator(examples, setup.seed),
        compute_loss_func=Loss(examples.task, config.label_smoothing_factor),
        compute_metrics=PixelMetrics(examples.task)
        if examples.task.by_pixel
        else _metrics(examples.task, arguments.metric_for_best_model, seen),
        callbacks=[*_callbacks(plan, config), *averaging, StopCallback(stop, compute_config)],
    )
    trainer.plan, trainer.stop, trainer.seen, trainer.mean = plan, stop, seen, next(iter(averaging), None)
    trainer.model_accepts_loss_kwargs = False  # else timm's forward is handed `num_items_in_batch`
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    log.info("Training: %d steps of %d examples, %d at a time, learning rate %.3g, weight decay %.3g, %s",
             arguments.max_steps, batch, config.per_device_train_batch_size,
             arguments.learning_rate, arguments.weight_decay,
             "bf16 autocast" if arguments.bf16 else "float32")  # fmt: skip
    return trainer


def _same_global_batch(config: TrainingConfig, size: int) -> dict[str, int]:
    """`size` rows at a time on a device, accumulated to as many as the configuration asks for."""
    times = config.per_device_train_batch_size // size
    accumulation = config.gradient_accumulation_steps * times
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}


def _check_evaluated(config: TrainingConfig, rows: int, model: nn.Module) -> None:
    """Raise `UserError` for settings that need validation rows where there are none, or another network."""
    if config.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", True):
        raise UserError(f"training.gradient_checkpointing: {type(model).__name__} does not have it. Leave it out.")
    if rows:
        return
    for name in ("early_stopping_patience", "metric_for_best_model"):
        if getattr(config, name):
            raise UserError(f"training.{name} needs validation rows, and there are none: see data.split.validation.")
    log.warning("No validation rows: nothing chooses a step, and probabilities are not calibrated")


def _train(trainer: Trainer, checkpoint: Path | None, evaluated_first: bool) -> None:
    """From the beginning, from a checkpoint, or (where the last step was saved already) straight to the best weights."""
    if checkpoint is None:
        trainer.args.eval_on_start = evaluated_first
        trainer.train()
        return
    if trainer.is_world_process_zero():
        complete_best(checkpoint)
    trainer.accelerator.wait_for_everyone()
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    log.info("Goes on from step %d of %d", state.global_step, trainer.args.max_steps)
    if state.global_step < trainer.args.max_steps:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:  # the Trainer would take one step more
        trainer.state = state
        trainer._load_best_model() if state.best_model_checkpoint else trainer._load_from_checkpoint(str(checkpoint))
        if trainer.mean:
            trainer.mean.read(checkpoint)


def _averages(config: TrainingConfig, examples: int) -> bool:
    """Whether the mean of the weights is kept, rather than those of a step."""
    if config.weights != "auto":
        return config.weights == "mean"
    return examples < FEW and not (config.early_stopping_patience or config.metric_for_best_model)


def _take_mean(trainer: PlanTrainer, start: Snapshot | None) -> bool:
    """Take the mean of the weights of a training that came to its end, and evaluate it; whether it was taken.

    `start` is None where the network has no answers before its first step. The evaluation stands in the log beside those
    of the steps, with `mean_` in front of each metric. `seen` becomes the logits of start and mean.
    """
    state, evaluates = trainer.state, trainer.args.eval_strategy != "no"
    if not trainer.mean or not trainer.mean.count or state.global_step < state.max_steps:
        return False
    before = None
    if start is not None and evaluates:  # a resumed training has not seen it
        start.restore()
        _, before = _evaluated(trainer)
    trainer.mean.put(start)
    what = "The mean" if start is None else f"{SHARE:.0%} of the way from the start to the mean"
    log.info("%s of the weights over the last %d steps is kept (training.weights)", what, trainer.mean.count)
    if evaluates:
        found, after = _evaluated(trainer)
        entry = {name.replace("eval_", "mean_", 1): value for name, value in found.items()}
        state.log_history.append(entry | {"step": state.global_step})
        state.best_metric = found[f"eval_{trainer.args.metric_for_best_model}"]
        state.best_global_step = state.global_step
        trainer.seen[:] = [logits for logits in (before, after) if logits is not None]
    return True


def _evaluated(trainer: PlanTrainer) -> tuple[dict[str, float], np.ndarray | None]:
    """Return metrics and logits of the weights as they are, without a line in the log; None for logits that are no numbers."""
    trainer.seen.clear()
    found = trainer.evaluate()
    del trainer.state.log_history[-1]
    return found, trainer.seen[-1] if trainer.seen else None


def _is_surely_worse(examples: Examples, order: np.ndarray, seen: list[np.ndarray]) -> bool:
    """Whether losses grew from the first to the last of `seen` by more than twice the standard error of their difference.

    Which of the two is better on few examples is chance. A training that ruins the network is not: it knows nothing more.
    """
    if len(seen) < 2:  # no numbers any more
        return True
    task, targets = examples.task.of_unit, examples.task.units(examples.targets[examples.validation[order]])
    before, after = (_losses(task, logits, targets) for logits in seen)
    if before.mean() < after.mean() and after.mean() > 0.95 * task.uninformed_loss:
        return True
    change = after - before
    return len(change) > 1 and bool(change.mean() > 2 * change.std(ddof=1) / np.sqrt(len(change)))


def _losses(task: Task, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the loss of each example (N,) at the best temperature, or its squared error in standard deviations."""
    if not task.has_classes:
        return ((logits - task.standardised(targets)) ** 2).mean(1)
    return row_losses(task, targets, apply_temperature(task, logits, fit_temperature(task, logits, targets)))


def _undo_a_loss(trainer: Trainer, start: Snapshot) -> None:
    """Go back to the start where all that was trained is worse: who begins from a solved head must not end below it."""
    state, metric = trainer.state, f"eval_{trainer.args.metric_for_best_model}"
    first = next((entry[metric] for entry in state.log_history if entry["step"] == 0 and metric in entry), None)
    if first is None or np.isnan(first) or state.best_metric is None:
        return
    sign = 1 if trainer.args.greater_is_better else -1
    if sign * first <= sign * state.best_metric:
        return
    log.warning(
        "Training gained nothing: %s of the validation part is %.4f before and %.4f at best after. The start is kept.",
        trainer.args.metric_for_best_model, first, state.best_metric,
    )  # fmt: skip
    start.restore()
    state.best_metric, state.best_global_step = first, 0


def _interruption(trainer: PlanTrainer, stop: Stop, start: Snapshot | None) -> Interruption | None:
    """Whether training ended before its time, said aloud.

    A loss that is no number before anything was saved leaves the weights of the `start`, where those were evaluated.
    Raises `UserError` where nothing good is left.
    """
    state = trainer.state
    diverged = stop.request == LOSS_DIVERGED
    if not stop.request or (not diverged and state.global_step >= state.max_steps):
        return None
    found = Interruption(stop.request, state.global_step, state.max_steps)
    nothing_saved = diverged and state.best_model_checkpoint is None
    if nothing_saved and start is not None:
        start.restore()
        state.best_global_step = 0
    elif nothing_saved:
        remove(Path(trainer.args.output_dir))
        raise UserError(
            f"Training stopped: {found.describe()}, before anything was saved. Lower training.learning_rate (it is "
            f"{trainer.args.learning_rate:.3g}), or set training.bf16=false."
        )
    kept = state.best_global_step if trainer.args.load_best_model_at_end else state.global_step
    log.warning("Training ended early (%s): the weights of step %s are kept", found.describe(), kept)
    return found


def _callbacks(plan: Plan, config: TrainingConfig) -> list[TrainerCallback]:
    stopping = [EarlyStoppingCallback(config.early_stopping_patience)] if config.early_stopping_patience else []
    evaluations = [] if {"eval_strategy", "eval_steps"} & config.extra.keys() else [Evaluations(config.evaluations)]
    shared = [SharedStatistics()] if plan.batchnorm != "frozen" else []
    held = [StartPenalty(plan)] if plan.l2_sp else []
    return [OwnDraws(), FreezeCallback(plan), *held, *shared, *evaluations, ProgressBarCallback(), *stopping]


def _all_evaluations(trainer: PlanTrainer, task: Task, order: np.ndarray, averaged: bool) -> list[np.ndarray]:
    """Return the logits of what could have been kept, in the order of the validation part; none where some are not at hand.

    These are all evaluations; of `averaged` weights, the start and the mean.
    """
    if task.by_part:
        return []
    chosen = trainer.args.metric_for_best_model
    values = [entry[f"eval_{chosen}"] for entry in trainer.state.log_history if f"eval_{chosen}" in entry]
    whole = averaged or len(trainer.seen) == np.isfinite(values).sum()
    if chosen == task.selection_metric and whole:
        return [logits[np.argsort(order)] for logits in trainer.seen]
    if values:
        log.info("Prediction sets: the choice of the step is not cross-fitted (a resumed training, or another metric)")
    return []


def _metrics(task: Task, chosen: str, seen: list[np.ndarray]) -> Callable[[Any], dict[str, float]]:
    def compute(prediction: Any) -> dict[str, float]:
        logits, targets = prediction.predictions, prediction.label_ids
        if isinstance(logits, tuple):
            logits = logits[0]
        if not np.isfinite(logits).all():  # the loss will say so at the next step; never the best until then
            return {chosen: float("nan")}
        logits, targets = task.collected(logits, targets), task.collected(targets, targets)
        seen.append(np.array(task.units(logits), dtype=np.float32))
        found = compute_metrics(task, targets, task.probabilities(logits))
        if task.has_classes:
            found[task.selection_metric] = calibrated_log_loss(task.of_unit, task.units(logits), task.units(targets))
        return found

    return compute
