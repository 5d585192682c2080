"""One pass of a network over rows, in batches of like length, on every process its share."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hftransfer.core.bars import Bar
from hftransfer.core.hashing import content_key
from hftransfer.modalities import Modality, ModalityKind
from hftransfer.runtime.launch import World
from hftransfer.runtime.memory import is_lack_of_memory, release
from hftransfer.tasks.tokens import ragged

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComputeConfig:
    """Where and how forward passes run: decided once a run (`compute`, `trials`) and said in the log."""

    device: torch.device
    autocast: torch.dtype | None = None  # of passes without gradients; None computes in float32
    train_in_bf16: bool = False
    workers: int = 0
    batch_size: int = 32
    world: World = World()

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def world_size(self) -> int:
        return self.world.size

    def context(self) -> Any:
        """Autocast where it was found to pay, for the network alone: heads are solved in float64."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def place(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}


class Items(Dataset):
    """Encoded rows with their positions, for a data loader."""

    def __init__(self, items: Sequence[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        return position, self.items[position]


@dataclass(frozen=True)
class Collate:
    """Makes (positions, batch); an object rather than a closure, so that loader workers can receive it.

    With `seeds`, one for each position, every item is augmented by its own: the batch it is in plays no part.
    """

    modality: Modality
    seeds: Sequence[int] | None = None

    def __call__(self, rows: list[tuple[int, Any]]) -> tuple[list[int], dict[str, Tensor]]:
        positions, items = zip(*rows, strict=True)
        if self.seeds is None:
            return list(positions), self.modality.collate(items)
        views = [self._view(item, self.seeds[position]) for position, item in rows]
        return list(positions), {name: torch.cat([view[name] for view in views]) for name in views[0]}

    def _view(self, item: Any, seed: int) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.modality.collate([item], training=True)


def batches_of_like_length(
    lengths: Sequence[int], positions: Sequence[int], size: int, mixed: bool = True
) -> list[list[int]]:
    """Positions sorted by length, longest first (memory runs out at once or not at all), cut into batches.

    Unless `mixed`, a batch holds one length.
    """
    ordered = sorted(positions, key=lambda position: -lengths[position])
    runs = [ordered] if mixed else [list(run) for _, run in groupby(ordered, key=lambda position: lengths[position])]
    return [run[start : start + size] for run in runs for start in range(0, len(run), size)]


def passes(
    modality: Modality,
    items: Sequence[Any],
    positions: Sequence[int],
    compute_config: ComputeConfig,
    forward: Callable[[dict[str, Tensor]], Any],
    title: str,
    seeds: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], Any]]:
    """Run `forward` over batches of the rows at `positions`: yields (positions of the batch, what it returned).

    The stream of random numbers stays as it is, so that a pass that the feature store spares changes nothing after it.
    With `seeds`, one for each of `items`, images come augmented.
    """
    batches = batches_of_like_length(
        modality.lengths(items), positions, compute_config.batch_size, modality.mixes_lengths
    )
    loader = DataLoader(
        Items(items), batch_sampler=batches, collate_fn=Collate(modality, seeds), num_workers=compute_config.workers,
        pin_memory=compute_config.device.type == "cuda", generator=torch.Generator(),
    )  # fmt: skip
    hidden = compute_config.rank > 0 or len(batches) < 2
    with (
        torch.no_grad(),  # not inference_mode: BEiT keeps tensors of a pass, and a later training needs ordinary ones
        Bar(total=len(positions), desc=title, unit="row", disable=hidden or None) as bar,
    ):
        for batch_positions, batch in loader:
            yield from _in_parts(batch_positions, batch, compute_config, forward)
            bar.update(len(batch_positions))


def _in_parts(
    positions: list[int],
    batch: dict[str, Tensor],
    compute_config: ComputeConfig,
    forward: Callable[[dict[str, Tensor]], Any],
) -> list[tuple[list[int], Any]]:
    """Run a batch at once, or in halves where memory runs out: batches come longest first, so that later ones may fit."""
    try:
        with compute_config.context():
            return [(positions, forward(compute_config.place(batch)))]
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error) or len(positions) == 1:
            raise
    release()
    half = len(positions) // 2
    log.warning("Memory ran out with %d rows at a time: they are taken in halves", len(positions))
    parts = (slice(0, half), slice(half, None))
    halves = [(positions[part], {name: value[part] for name, value in batch.items()}) for part in parts]
    return [found for half in halves for found in _in_parts(*half, compute_config, forward)]


Read = Callable[[list[int], Tensor], Any]  # what a batch has for the units at these positions (`ModalityKind.read`)


def in_pieces(kind: ModalityKind, items: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """Return all pieces of the items, and the number of the item (M,) that each belongs to."""
    pieces = [kind.pieces(item) for item in items]
    return [piece for each in pieces for piece in each], np.repeat(
        np.arange(len(items)), [len(each) for each in pieces]
    )


def joined(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Return the units of `count` items from those of their pieces; `rows` (M,) are the items of the pieces, in order."""
    if values.dtype != object or len(rows) == count:
        return values  # each item is one piece
    ends = np.cumsum(np.bincount(rows, minlength=count))
    return ragged([np.concatenate(list(part)) for part in np.split(values, ends[:-1])] if count else [])


def predict_logits(
    model: nn.Module,
    modality: Modality,
    items: Sequence[Any],
    compute_config: ComputeConfig,
    training: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Logits of every row, float32 (N, head size), on every process; each process computes its share once.

    Of rows with several units an object array (N,) of those of its units. `training` gives each image in an augmented
    view, drawn by `seed`.
    """
    kind = modality.kind
    pieces, rows = in_pieces(kind, items)

    def read(positions: list[int], logits: Tensor) -> Any:
        return kind.read([pieces[position] for position in positions], logits)

    return joined(predict_pieces(model, modality, pieces, compute_config, read, training, seed), rows, len(items))


def predict_pieces(
    model: nn.Module,
    modality: Modality,
    items: Sequence[Any],
    compute_config: ComputeConfig,
    read: Read,
    training: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Return what `predict_logits` does, of pieces that pass through the network as they are."""
    model.eval()
    seeds = [int(content_key(str(item), str(seed))[:15], 16) for item in items] if training else None
    mine = range(compute_config.rank, len(items), compute_config.world_size)
    results = passes(modality, items, mine, compute_config, lambda batch: model(**batch).logits, "predict", seeds)
    rows = [(positions, as_arrays(read(positions, logits))) for positions, logits in results]
    return in_order(
        (row for share in compute_config.world.gather(rows) for row in share), len(items), model.config.num_labels
    )


def as_arrays(values: Tensor | list[Tensor] | list[bytes]) -> np.ndarray | list[np.ndarray] | list[bytes]:
    """Return float32 arrays of a tensor, or of a list of tensors; predicted masks are bytes and stay so."""
    if isinstance(values, list):
        return [value if isinstance(value, bytes) else value.float().cpu().numpy() for value in values]
    return values.float().cpu().numpy()


def in_order(batches: Iterable[tuple[list[int], Any]], count: int, width: int) -> np.ndarray:
    """Rows of batches put back in the order of their positions; each position exactly once. No rows: (0, `width`).

    Lists of arrays, of any lengths, become an object array.
    """
    result: np.ndarray | None = None
    seen = np.zeros(count, dtype=int)
    for positions, values in batches:
        values = ragged(values) if isinstance(values, list) else values
        if result is None:
            result = np.empty((count, *values.shape[1:]), dtype=values.dtype)
        result[positions] = values
        np.add.at(seen, positions, 1)
    if count and (result is None or (seen != 1).any()):
        raise RuntimeError(f"expected every row once, found {int((seen != 1).sum())} rows missing or repeated")
    return result if result is not None else np.empty((0, width), dtype=np.float32)
