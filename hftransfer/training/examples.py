"""What the training loop reads: examples, the order of their batches, and the batches themselves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.utils import ModelOutput

from hftransfer.features.extract import replayed_batch
from hftransfer.features.passes import batches_of_like_length
from hftransfer.features.store import Features
from hftransfer.modalities import Modality
from hftransfer.tasks import Task

APART = "apart"  # the name of what is evaluated in batches of equal length
WINDOW = 16  # batches of random rows that are sorted by length before they are cut


@dataclass(frozen=True)
class Examples:
    """All pieces of a run's examples, with the positions of those that train and of those that choose the step.

    `items` are encoded inputs (`ModalityKind.pieces`), `targets` follow them; `stored` are activations at the split point,
    where there are any.
    """

    items: Sequence[Any]
    targets: np.ndarray
    modality: Modality
    task: Task
    train: np.ndarray
    validation: np.ndarray
    stored: Features | None = None

    @cached_property
    def lengths(self) -> np.ndarray:
        """The cost of every example, by which batches are made."""
        return np.array(self.modality.lengths(self.items))


def training_order(lengths: np.ndarray, batch: int, steps: int, seed: int) -> np.ndarray:
    """Return the rows (numbers into `lengths`) of all batches of a training, (steps * batch,): texts of like length together.

    Every row comes once an epoch, give or take the rows that an epoch leaves to the next one's first batches. Drawn at
    once from `seed`, so that a resumed run, and any number of processes, see the same batches.
    """
    random, batches, carried = np.random.default_rng(seed), [], np.zeros(0, dtype=int)
    while len(batches) < steps:
        epoch = np.concatenate([carried, random.permutation(len(lengths))])
        whole = len(epoch) // batch * batch
        carried = epoch[whole:]
        windows = [epoch[start : min(start + WINDOW * batch, whole)] for start in range(0, whole, WINDOW * batch)]
        cut = [window[np.argsort(lengths[window], kind="stable")].reshape(-1, batch) for window in windows]
        batches += list(random.permutation(np.concatenate(cut))) if cut else []
    return np.concatenate(batches[:steps])


class Rows(Dataset):
    """The rows at `positions`, by number."""

    def __init__(self, examples: Examples, positions: np.ndarray, training: bool):
        self.examples, self.positions, self.training = examples, positions, training

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"position": int(self.positions[index]), "training": self.training, "place": index}


@dataclass(frozen=True)
class Collator:
    """Rows -> the model's inputs and `labels`; from stored activations where there are any.

    Augmentation is drawn from `seed` and the place of the batch in the training: a resumed run draws the same.
    Recordings of several lengths that must not share a batch come `APART` for evaluation.
    """

    examples: Examples
    seed: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        positions = [row["position"] for row in rows]
        items = [self.examples.items[position] for position in positions]
        targets = self.examples.task.standardised(self.examples.targets[positions])
        batch = self._batch(rows, items, positions)
        return {"labels": torch.from_numpy(self.examples.modality.kind.labels(items, targets, batch))} | batch

    def _batch(self, rows: list[dict[str, Any]], items: list[Any], positions: list[int]) -> dict[str, Any]:
        modality, training = self.examples.modality, rows[0]["training"]
        if self.examples.stored is not None:
            return replayed_batch(self.examples.stored, modality, items, positions)
        if not training:
            return _evaluated(modality, items)
        with torch.random.fork_rng([]):
            seed = np.random.SeedSequence([self.seed, rows[0]["place"]]).generate_state(1)[0]
            torch.default_generator.manual_seed(int(seed))  # `torch.manual_seed` would set the GPU's, of dropout, too
            return modality.collate(items, training)


def _evaluated(modality: Modality, items: list[Any]) -> dict[str, Any]:
    """Return one batch, or under `APART` pairs of places and batch of equal length each."""
    if modality.mixes_lengths:
        return modality.collate(items)
    batches = batches_of_like_length(modality.lengths(items), range(len(items)), len(items), mixed=False)
    return {APART: [(torch.tensor(places), modality.collate([items[place] for place in places])) for places in batches]}


def joined(model: Callable[..., Any], apart: list[tuple[Tensor, dict[str, Tensor]]]) -> ModelOutput:
    """Return the logits (N, C) of batches that came `APART`, in the order of their rows."""
    logits = [model(**batch).logits for _, batch in apart]
    order = torch.cat([places for places, _ in apart]).argsort()
    return ModelOutput(logits=torch.cat(logits)[order])
