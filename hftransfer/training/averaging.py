"""Average the weights of the second half of a training, in place of choosing a step on few examples.

Izmailov et al. 2018 (arXiv 1803.05407, section 3): the mean along a trajectory generalises better than its end. Where the
network has answers before its first step, the weights lie three quarters of the way from there to the mean (Wortsman
et al. 2021, arXiv 2109.01903, section 3). Below about 200 training examples the validation part has some 30 or fewer,
and the step that it chooses is chance (`scripts/ablate_weights.py`, docs/results.md).
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from hftransfer.strategies import Plan
from hftransfer.training.checkpointing import Snapshot

FEW = 200  # training examples, below which the mean is kept by default
SHARE = 0.75  # of the way from a start that has answers to the mean
FILE = "mean.safetensors"


class WeightMean(TrainerCallback):
    """Keeps the mean over the second half of the steps of all that trains or moves.

    It lies in every checkpoint, so that a resumed training ends with the same mean. Tensors that stand still keep every bit.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.mean: dict[str, Tensor] = {}
        self.count = 0

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self.read(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if 2 * state.global_step <= state.max_steps:
            return
        self.count += 1
        for name, tensor in self._moving().items():
            found = self.mean.setdefault(name, tensor.detach().clone())
            found += (tensor.detach() - found) / self.count

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            tensors = {name: tensor.contiguous() for name, tensor in self.mean.items()}
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_file(tensors, folder / FILE, metadata={"count": str(self.count)})

    def read(self, checkpoint: Path) -> None:
        """Take the mean up to a checkpoint."""
        moving = self._moving()
        with safe_open(checkpoint / FILE, "pt") as file:
            self.count = int(file.metadata()["count"])
            self.mean = {name: file.get_tensor(name).to(moving[name].device) for name in file.keys()}

    @torch.no_grad()
    def put(self, start: Snapshot | None) -> None:
        """Give the network the mean, or what lies between a `start` that has answers and the mean."""
        for name, tensor in self._moving().items():
            mean = self.mean[name]
            tensor.copy_(mean if start is None else torch.lerp(start.tensors[name].to(mean.device), mean, SHARE))

    def _moving(self) -> dict[str, Tensor]:
        trained = {n: p for n, p in self.plan.model.named_parameters() if n in self.plan.rate_factors}
        return trained | {n: b for n, b in self.plan.model.named_buffers() if b.is_floating_point()}
