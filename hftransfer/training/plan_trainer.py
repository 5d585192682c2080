"""The stock `transformers.Trainer`, told by a plan which rate each parameter has and what is lost."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer

from hftransfer.runtime.interruption import LOSS_DIVERGED, Stop
from hftransfer.runtime.memory import with_less
from hftransfer.strategies import Plan
from hftransfer.tasks import Task
from hftransfer.tasks.tokens import IGNORED
from hftransfer.training.arguments import refused_as
from hftransfer.training.averaging import WeightMean
from hftransfer.training.examples import APART, joined

# Tensors that weight decay must spare besides everything of one dimension (norms, biases, layer scale).
NOT_DECAYED = ("cls_token", "pos_embed", "position_embedding", "relative_position", "mask_token", "register_tokens")


@dataclass(frozen=True)
class Loss:
    """The task's loss with its weights and label smoothing, normalised over the whole (accumulated) batch."""

    task: Task
    smoothing: float = 0.0

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs.logits.float()
        per_item = self.task.loss(logits, labels.to(logits.device), self.smoothing)
        if num_items_in_batch is None:
            return per_item.sum() / (labels != IGNORED).sum()
        return per_item.sum() / num_items_in_batch


class PlanTrainer(Trainer):
    """The stock Trainer, told by a plan which rate each parameter has. A loss that is no number asks to `stop`."""

    plan: Plan
    stop: Stop
    seen: list[np.ndarray]  # logits of the validation part at each evaluation
    mean: WeightMean | None = None  # of the weights, where it is kept

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(self.plan, self.args.learning_rate, self.args.weight_decay)
            with refused_as(f"The optimizer ({self.args.optim}, training.extra)"):
                optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer = optimizer_class(groups, **settings | {"lr": self.args.learning_rate})
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self.stop.request = LOSS_DIVERGED
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict, *args: Any, **options: Any) -> Any:
        apart = inputs.pop(APART, None)
        forward = model if apart is None else lambda: joined(model, apart)
        return super().compute_loss(forward, inputs, *args, **options)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        def attempt(size: int) -> dict:
            if size != self.args.per_device_eval_batch_size:
                self.args.per_device_eval_batch_size = size
                self._eval_dataloaders = {}  # where the Trainer keeps loaders with their workers
            return super(PlanTrainer, self).evaluate(eval_dataset, ignore_keys, metric_key_prefix)

        size = self.args.per_device_eval_batch_size
        with torch.random.fork_rng([]):  # a loader draws a number: a second attempt must not change the training
            return with_less(size, attempt, "evaluation", least=1 if self.args.world_size == 1 else size)


def parameter_groups(plan: Plan, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """One group for each pair of rate and decay, the highest rate first: it is the one that the Trainer's log shows.

    Rates are set as `lr`: torch's schedulers ignore timm's `lr_scale`.
    """
    spared = _not_decayed(plan.model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in plan.model.named_parameters():
        if name in plan.rate_factors:
            undecayed = parameter.ndim <= 1 or plan.is_held(name) or any(part in name for part in spared)
            decay = 0.0 if undecayed else weight_decay
            groups.setdefault((learning_rate * plan.rate_factors[name], decay), []).append(parameter)
    return [
        {"params": found, "lr": rate, "weight_decay": decay}
        for (rate, decay), found in sorted(groups.items(), reverse=True)
    ]


def _not_decayed(model: nn.Module) -> tuple[str, ...]:
    declared = [m.no_weight_decay() for m in model.modules() if callable(getattr(m, "no_weight_decay", None))]
    return NOT_DECAYED + tuple(name for names in declared for name in names)
