"""Metrics of a training whose answers are pixels: counted batch by batch, so that no logits are kept."""

from typing import Any

import torch

from hftransfer.tasks import Task
from hftransfer.tasks.masks import sized
from hftransfer.tasks.tokens import IGNORED


class PixelMetrics:
    """Counts pixels by true and predicted class at the size of the network's inputs (`batch_eval_metrics` of the Trainer).

    The same mask at the size of its image, which the run reports in the end, differs by a few pixels along edges.
    """

    def __init__(self, task: Task):
        self.task, self.counts = task, self._none(task)

    @staticmethod
    def _none(task: Task) -> torch.Tensor:
        return torch.zeros(task.head_size, task.head_size, dtype=torch.int64)

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        labels = prediction.label_ids.long()
        predicted = sized(prediction.predictions.float(), labels.shape[-2:]).argmax(1)
        known = labels != IGNORED
        pairs = labels[known] * self.task.head_size + predicted[known]
        self.counts += torch.bincount(pairs.cpu(), minlength=self.task.head_size**2).reshape(self.counts.shape)
        return self._found() if compute_result else {}

    def _found(self) -> dict[str, float]:
        counts, self.counts = self.counts.double(), self._none(self.task)
        hit, either = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
        seen = either > 0
        return {
            "mean_iou": (hit[seen] / either[seen]).mean().item() if seen.any() else float("nan"),
            "pixel_accuracy": (hit.sum() / counts.sum()).item() if counts.sum() else float("nan"),
        }
