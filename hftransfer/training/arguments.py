"""From the training's configuration to the arguments of the stock Trainer; what only transformers can judge is said here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from hftransfer.config import TrainingConfig
from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.evaluation.kinds import higher_is_better
from hftransfer.evaluation.metrics import metric_names
from hftransfer.features.passes import ComputeConfig
from hftransfer.strategies import Defaults
from hftransfer.tasks import Task

# transformers 5.23 renamed it.
NAMES = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in NAMES if name in TrainingArguments.__dataclass_fields__)


def check_arguments(config: TrainingConfig) -> None:
    """Raise `UserError` for arguments, schedules and trackers that transformers does not have, or not here."""
    known = TrainingArguments.__dataclass_fields__
    for name in config.extra:
        if name not in known:
            raise UserError(f"training.extra.{name}: transformers has no such argument.{did_you_mean(name, known)}")
    _check_schedule(config.lr_scheduler_type, config.extra.get("lr_scheduler_kwargs"))
    if config.metric_for_best_model:
        higher_is_better(config.metric_for_best_model)
    with refused_as(f"training.report_to={config.report_to}"):
        for tracker in get_reporting_integration_callbacks(config.report_to):
            tracker()  # says which package is missing


def _check_schedule(name: str, settings: dict | None) -> None:
    schedules = [schedule.value for schedule in SchedulerType]
    if name not in schedules:
        raise UserError(
            f"training.lr_scheduler_type={name}: transformers has no such schedule.{did_you_mean(name, schedules)}"
        )
    one = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with refused_as(f"training.lr_scheduler_type={name} (training.extra={{lr_scheduler_kwargs: …}} sets its details)"):
        get_scheduler(name, one, num_warmup_steps=1, num_training_steps=2, scheduler_specific_kwargs=settings)


def _selection_metric(config: TrainingConfig, task: Task) -> str:
    """Return what chooses the step that is kept. Raises `UserError` for a metric that the task does not have."""
    chosen = config.metric_for_best_model or task.selection_metric
    known = {*metric_names(task), task.selection_metric, "loss"}
    if chosen not in known:
        raise UserError(
            f"training.metric_for_best_model={chosen} is none of a {task.type} task.{did_you_mean(chosen, sorted(known))}"
        )
    return chosen


@contextmanager
def refused_as(setting: str) -> Iterator[None]:
    """Raise what transformers or torch refuse inside as the user's mistake in `setting`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"{setting} is refused: {error}") from None


def training_arguments(
    config: TrainingConfig,
    defaults: Defaults,
    task: Task,
    compute_config: ComputeConfig,
    folder: Path,
    seed: int,
    rows: dict[str, int],
) -> TrainingArguments:
    """Return the Trainer's arguments: what the user named, else the strategy's defaults. Raises `UserError`.

    `rows` are counted for `train` and `validation`; without any of the latter nothing is evaluated.
    """
    check_arguments(config)
    steps = planned_steps(config, defaults, global_batch(config, compute_config), rows["train"])
    chosen = _selection_metric(config, task)
    values = dict(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=config.learning_rate or defaults.learning_rate,
        weight_decay=defaults.weight_decay if config.weight_decay is None else config.weight_decay,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type=config.lr_scheduler_type,
        max_grad_norm=config.max_grad_norm,
        bf16=compute_config.train_in_bf16,
        use_cpu=compute_config.device.type == "cpu",
        eval_strategy="steps" if rows["validation"] else "no", eval_steps=steps,
        save_strategy="steps", save_steps=steps,  # and see `Evaluations`
        load_best_model_at_end=rows["validation"] > 0, metric_for_best_model=chosen, greater_is_better=higher_is_better(chosen),
        logging_steps=max(1, steps // 50), report_to=config.report_to, disable_tqdm=True,
        remove_unused_columns=False, label_names=["labels"], seed=seed, data_seed=seed,
        dataloader_num_workers=compute_config.workers, dataloader_persistent_workers=compute_config.workers > 0,
        dataloader_pin_memory=compute_config.device.type == "cuda",
        ddp_find_unused_parameters=compute_config.world_size > 1 or None,
        batch_eval_metrics=task.by_pixel,  # their logits do not fit into memory together
        train_sampling_strategy="sequential",  # in the order of `training_order`
    )  # fmt: skip
    if config.gradient_checkpointing:
        values |= {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}}
    with refused_as(f"training.extra={config.extra}"):
        arguments = TrainingArguments(**(values | config.extra))
    # With several visible GPUs the Trainer would copy the network to all of them at every step (DataParallel).
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def planned_steps(config: TrainingConfig, defaults: Defaults, batch_size: int, examples: int) -> int:
    """How many optimizer steps a training of so many rows takes."""
    if config.max_steps:
        return config.max_steps
    if config.num_train_epochs:
        return max(1, int(round(config.num_train_epochs * -(-examples // batch_size))))
    return defaults.steps(examples, batch_size)


def global_batch(config: TrainingConfig, compute_config: ComputeConfig) -> int:
    """Rows of one optimizer step, over all processes."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * compute_config.world_size
