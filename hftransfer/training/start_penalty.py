"""L2-SP: hold the pretrained tensors that train near their values at the start.

Li et al. 2018 (arXiv 1802.01483, section 3): the penalty strength / 2 * sum of (w - w0)^2, in place of weight decay. It is
applied beside the optimizer, as AdamW decays weights (arXiv 1711.05101): after each step, the proximal step of the
penalty (arXiv 2202.00089, section 3) takes w to (w + rate * strength * w0) / (1 + rate * strength). That is stable for
every strength. Adam does not rescale it, and a rate of its own for each layer stretches step and penalty alike.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from hftransfer.strategies import Plan

log = logging.getLogger(__name__)


class StartPenalty(TrainerCallback):
    """Pulls pretrained tensors towards their values when this is made, which is before a checkpoint is read.

    A resumed training therefore has the same start. Costs one copy of these tensors.
    """

    def __init__(self, plan: Plan):
        self.strength = plan.l2_sp
        self.start: dict[nn.Parameter, Tensor] = {
            parameter: parameter.detach().clone()
            for name, parameter in plan.model.named_parameters()
            if plan.is_held(name)
        }
        if self.start:
            log.info("L2-SP of strength %.3g holds %d pretrained tensors near their start, in place of weight decay",
                     self.strength, len(self.start))  # fmt: skip
        else:
            log.warning("strategy.l2_sp has no effect: no pretrained tensor trains")

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = {parameter: start.to(parameter.device) for parameter, start in self.start.items()}

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        for group in optimizer.param_groups:
            pull = group["lr"] * self.strength
            for parameter in group["params"]:
                if parameter in self.start:
                    parameter.lerp_(self.start[parameter], pull / (1 + pull))
