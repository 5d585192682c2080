"""The feature store: what the frozen part of a network gives for an input is computed once and kept on disk.

The store knows no model and no modality. A *space* is a hash of everything that determines the numbers except the
input (`space_key`), a *key* is a hash of one input's content (`content_key`), and a callback computes missing rows.

On disk: `<folder>/<space>/<checksum>.safetensors` (see `shards`). Several processes can write side by side.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from filelock import FileLock, Timeout

from hftransfer.core.files import cache_folder, has_no_locks
from hftransfer.core.hashing import content_key
from hftransfer.features.shards import OFFSETS, Compute, Shard, Writer, open_checked, read_header, remove, unwritable

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

STALE_SECONDS = 3600  # a temporary file older than this was left by a process that died


def space_key(**ingredients: Any) -> str:
    """Return a hash of what determines the features except the input: weights, transform, split point, precision, versions.

    Raises `TypeError` or `ValueError` for an ingredient that JSON cannot hold: its `repr` may change between runs.
    """
    return content_key(json.dumps(ingredients, sort_keys=True, allow_nan=False))


Place = tuple[Shard, int]  # the shard a row lies in, and its number there


@dataclass(frozen=True)
class SpaceSummary:
    """What the store holds of one space: `about` in the writer's words, and when it was last used (Unix time)."""

    space: str
    about: str
    rows: int
    bytes: int
    last_used: float


class FeatureStore:
    """Arrays per input, kept under `folder` up to `limit_bytes`; the least recently used shards go first.

    What a process reads from stays while it does: one run may take more than the limit, until `keep_to_limit` after it.

    `folder` None: `features` in the package's cache (`core.files.cache_folder`). `shard_bytes` bounds the memory that rows
    wait in before they are written.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int = 10 * 2**30, shard_bytes: int = 32 * 2**20):
        self.folder = Path(folder or cache_folder() / "features")
        self.limit_bytes = limit_bytes
        self.shard_bytes = shard_bytes
        # Shards that this process has checked and still reads from: never evicted by it, forgotten when unused.
        self._open: WeakValueDictionary[Path, Shard] = WeakValueDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how another process opens the same store: by its place, without what is open here."""
        return type(self), (self.folder, self.limit_bytes, self.shard_bytes)

    def collect(
        self,
        space: str,
        keys: Sequence[str],
        compute: Compute,
        about: str = "",
        share: tuple[int, int] = (0, 1),
        barrier: Callable[[], None] = lambda: None,
    ) -> "Features":
        """Return the features of `keys`, in their order; only rows that the store lacks are computed, equal keys once.

        `compute(positions)` yields batches in any order: positions into `keys`, and named arrays with one row for each;
        a list of arrays stands for rows of different lengths. All batches carry the same names. `about` is shown by
        `summary`. With `share=(rank, world_size)` every process computes its part of what is missing, then `barrier`.

        Raises `UserError` when the folder cannot be written.
        """
        folder = self._space_folder(space)
        first: dict[str, int] = {}
        for position, key in enumerate(keys):
            first.setdefault(key, position)
        places = self._find(folder, first)
        missing = self._lacking(first, places)
        rank, world_size = share
        writer = Writer(folder, about, self.shard_bytes)
        if world_size > 1:
            barrier()  # nobody writes before everybody has seen the same rows missing
            self._fill(writer, keys, missing[rank::world_size], compute, places)
            barrier()
        elif missing:
            with _locked(folder / "lock"):
                places |= self._find(folder, {keys[position] for position in missing})
                self._fill(writer, keys, self._lacking(first, places), compute, places)
        places |= self._find(folder, first.keys() - places.keys())
        self._fill(writer, keys, self._lacking(first, places), compute, places)  # evicted or damaged meanwhile
        logger.info("Features: %d rows, %d computed, the others read from %s", len(first), writer.rows, folder)
        features = Features([places[key] for key in keys], writer.rows)
        self.keep_to_limit()
        return features

    def summary(self) -> list[SpaceSummary]:
        """Return what is stored, the most recently used space first."""
        spaces: dict[str, list[tuple[float, int, Path]]] = {}
        for file in self._files():
            spaces.setdefault(file[2].parent.name, []).append(file)
        return sorted((_summarise(*item) for item in spaces.items()), key=lambda space: -space.last_used)

    def clear(self, space: str | None = None) -> int:
        """Remove the shards of one space, or all; return the bytes freed. Other files are left alone."""
        return sum(size for _, size, path in self._files(space or "*") if remove(path))

    def _space_folder(self, space: str) -> Path:
        if not re.fullmatch(r"[\w-]+", space):
            raise ValueError(f"A space is named by letters, digits, '-' and '_', not {space!r}")
        return self.folder / space

    def _files(self, space: str = "*", kind: str = "safetensors") -> list[tuple[float, int, Path]]:
        """Time of last use, bytes and path of every file, the longest unused first."""
        files = []
        for path in self.folder.glob(f"{space}/*.{kind}"):
            with suppress(OSError):  # another process may have removed it
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        return sorted(files)

    def _find(self, folder: Path, wanted: Collection[str]) -> dict[str, Place]:
        """Where the wanted rows lie; shards that hold none of them are not opened."""
        places: dict[str, Place] = {}
        for path in sorted(folder.glob("*.safetensors")) if wanted else []:
            header = read_header(path)
            rows = {key: row for row, key in enumerate(header["keys"]) if key in wanted} if header else {}
            shard = self._opened(path) if rows or header is None else None
            if shard:
                places |= {key: (shard, row) for key, row in rows.items()}
        return places

    def _opened(self, path: Path) -> Shard | None:
        shard = self._open.get(path) or open_checked(path)
        if shard:
            self._open[path] = shard
            with suppress(OSError):  # a store that may only be read is still useful
                os.utime(path)
        return shard

    @staticmethod
    def _lacking(first: Mapping[str, int], places: Mapping[str, Place]) -> list[int]:
        return [position for key, position in first.items() if key not in places]

    def _fill(self, writer: Writer, keys: Sequence[str], positions: Sequence[int], compute: Compute, places: dict):
        """Compute `positions`, write them as they come and enter them in `places`."""
        for shard in writer.stream(keys, positions, compute) if positions else ():
            self._open[shard.path] = shard
            places |= {key: (shard, row) for row, key in enumerate(shard.keys)}
            self.keep_to_limit()

    def keep_to_limit(self) -> None:
        """Remove the least recently used shards until the limit is kept; those that this store has open stay."""
        files = self._files()
        excess = sum(size for _, size, _ in files) - self.limit_bytes
        for _, size, path in files:
            if excess > 0 and path not in self._open and remove(path):
                logger.info("Feature store over its limit of %d bytes: removed %s", self.limit_bytes, path)
                excess -= size
        for written, _, path in self._files(kind="tmp"):
            if written < time.time() - STALE_SECONDS:
                remove(path)


class Features:
    """Stored rows in the order of the keys they were asked for, memory-mapped; `computed` of them by this process now.

    bfloat16 is kept in two bytes and given back as float32 by everything but `tensors` (each bfloat16 is one float32).
    """

    def __init__(self, places: Sequence[Place], computed: int):
        self.computed = computed
        self._shards = list({id(shard): shard for shard, _ in places}.values())
        number = {id(shard): index for index, shard in enumerate(self._shards)}
        self._shard_of = np.array([number[id(shard)] for shard, _ in places], dtype=np.int64)
        self._row_of = np.array([row for _, row in places], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def names(self) -> list[str]:
        return [name for name in self._shards[0].tensors if not name.endswith(OFFSETS)] if self._shards else []

    def __getitem__(self, name: str) -> "Column":
        """Return the array-like (N, …) of a name whose rows have one shape. Raises `KeyError`, `ValueError` (ragged rows)."""
        return Column(self, name)

    def rows(self, name: str, positions: Sequence[int]) -> list[np.ndarray]:
        """One array for each position; the rows of a ragged name differ in their first dimension."""
        return [_numpy(row) for row in self.tensors(name, positions)]

    def tensors(self, name: str, positions: Sequence[int]) -> list["torch.Tensor"]:
        """As `rows`, but torch tensors in the stored type: views of the files, to be read, not written."""
        return [self._shards[self._shard_of[position]].row(name, self._row_of[position]) for position in positions]

    def gather(self, name: str, positions: np.ndarray) -> np.ndarray:
        """Return the rows at `positions` (n,) of a name of fixed shape, as one array (n, …) in memory."""
        shard_of, row_of = self._shard_of[positions], self._row_of[positions]
        column = self[name]
        gathered = np.empty((len(positions), *column.shape[1:]), column.dtype)
        for number in np.unique(shard_of):
            chosen = np.flatnonzero(shard_of == number)
            gathered[chosen] = _numpy(self._shards[number].tensors[name][row_of[chosen]])
        return gathered


class Column:
    """A name's rows as an array-like (N, …) that stays on disk: index it, slice it, or hand it to `np.asarray`."""

    def __init__(self, features: Features, name: str):
        self._features, self._name = features, name
        arrays = [shard.fixed(name) for shard in features._shards]
        shapes = {tuple(array.shape[1:]) for array in arrays}
        if len(shapes) > 1:
            raise ValueError(f"Rows of {name!r} have different shapes {sorted(shapes)}: read them with `rows`")
        self.shape = (len(features), *(shapes.pop() if shapes else ()))
        self.dtype = _numpy(arrays[0][:0]).dtype if arrays else np.dtype(np.float32)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(index, int | np.integer):
            return self._features.rows(self._name, [index])[0]
        return self._features.gather(self._name, np.arange(len(self))[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


def _summarise(space: str, files: list[tuple[float, int, Path]]) -> SpaceSummary:
    used, sizes, paths = zip(*files, strict=True)
    headers = [header for header in map(read_header, paths) if header]
    about = headers[-1]["about"] if headers else "damaged"
    rows = len({key for header in headers for key in header["keys"]})
    return SpaceSummary(space, about, rows, sum(sizes), max(used))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time computes a space; others wait, then read. The system frees the lock of a dead process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("Waiting for another process that computes the same features (%s)", path)
            lock.acquire()
    except OSError as error:
        if not has_no_locks(error):
            raise unwritable(path.parent, error) from error
        logger.warning("The file system of %s has no locks: two processes may compute the same features.", path.parent)
    try:
        yield
    finally:
        lock.release()


def _numpy(tensor: "torch.Tensor") -> np.ndarray:
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
