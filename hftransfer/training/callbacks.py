"""What happens at the steps of a training: what stays still, the progress bar, and an end before its time."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerCallback, TrainingArguments

from hftransfer.core.bars import Bar
from hftransfer.features.passes import ComputeConfig
from hftransfer.runtime.interruption import LOSS_DIVERGED, Stop, StopRequest
from hftransfer.strategies import Plan
from hftransfer.training.checkpointing import keep_only


class FreezeCallback(TrainerCallback):
    """Keeps what is frozen as in evaluation, and opens layer groups when their time has come (a function of progress alone)."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.still: list[nn.Module] = []
        self.closed: set[int] | None = None
        plan.model.register_forward_pre_hook(self._hold)

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        progress = state.global_step / max(state.max_steps, 1)
        closed = self.plan.closed(progress)
        if closed == self.closed:
            return
        self.closed, self.still = closed, self.plan.still_modules(progress)
        for name, parameter in self.plan.model.named_parameters():
            wanted = name in self.plan.rate_factors and self.plan.is_open(self.plan.depth_of(name), progress)
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
                parameter.grad = None

    def _hold(self, model: nn.Module, args: tuple) -> None:
        if model.training:  # the Trainer calls model.train() before every step
            for module in self.still:
                module.training = False


class Evaluations(TrainerCallback):
    """Evaluates and saves `count` times, evenly spread, the last time at the last step.

    The Trainer's own fixed interval looked seven times at 14 steps where five were asked for.
    """

    def __init__(self, count: int):
        self.count = count

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in {round(state.max_steps * part / self.count) for part in range(1, self.count + 1)}:
            control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"


class OwnDraws(TrainerCallback):
    """Gives each process its own random numbers: the Trainer seeds all alike, and their dropout and crops would be equal.

    A resumed training then takes those of its checkpoint, which are kept by process.
    """

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            set_seed(args.seed + args.process_index)


class SharedStatistics(TrainerCallback):
    """Averages the running statistics of BatchNorm over the processes after every step.

    Each process moves them by its own share of a batch. The first one's are saved, so all must evaluate with them.
    Statistics that stand still are left alone, to the last bit.
    """

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        norms = [module for module in kwargs["model"].modules() if isinstance(module, _BatchNorm)]
        moving = [norm for norm in norms if norm.training and norm.running_mean is not None]
        if args.world_size == 1 or not moving:
            return
        buffers = [buffer for norm in moving for buffer in (norm.running_mean, norm.running_var)]
        together = torch.cat(buffers)
        torch.distributed.all_reduce(together)
        for buffer, mean in zip(buffers, (together / args.world_size).split([len(b) for b in buffers]), strict=True):
            buffer.copy_(mean)


class ProgressBarCallback(TrainerCallback):
    """One progress bar that shows the loss and the last validation score."""

    def __init__(self):
        self.bar, self.shown = None, {}

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            begin = state.global_step
            self.bar = Bar(total=state.max_steps, initial=begin, desc="train", unit="step")

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        metric = args.metric_for_best_model
        wanted = {"loss": "loss", f"eval_{metric}": f"validation {metric}"}
        found = {title: logs[name] for name, title in wanted.items() if name in (logs or {})}
        self.shown |= {title: f"{value:.4g}" for title, value in found.items()}
        if self.bar is not None:
            self.bar.set_postfix(self.shown)
            if found:
                self.bar.tell(found)

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class StopCallback(TrainerCallback):
    """Ends training early when any process was asked to; then, and only then, with an evaluation of these weights.

    After a loss that is no number the weights are lost: they are neither evaluated nor kept.
    """

    def __init__(self, stop: Stop, compute_config: ComputeConfig):
        self.stop, self.compute_config = stop, compute_config

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        own = self.stop.request.code if self.stop.request else 0
        agreed = StopRequest.of_code(self.compute_config.world.largest(own, self.compute_config.device))
        if agreed:  # a signal that came while the processes waited for each other counts at the next step
            self.stop.request = agreed
            control.should_training_stop = True
            control.should_save = agreed != LOSS_DIVERGED
            control.should_evaluate = control.should_save and args.eval_strategy != "no"

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the newest checkpoint and the best."""
        if state.is_world_process_zero:
            best = [state.best_model_checkpoint] if state.best_model_checkpoint else []
            keep_only(Path(args.output_dir), Path(f"checkpoint-{state.global_step}"), *map(Path, best))
