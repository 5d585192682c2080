"""One file of the feature store: named rows of many inputs, written whole or not at all, and mapped back into memory.

A shard is a safetensors file whose metadata lists the keys of its rows. It is written under a temporary name and
renamed to the BLAKE2 checksum of its bytes, so that a damaged or half-written file can never be taken for whole.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from hftransfer.core.errors import UserError
from hftransfer.core.files import replacing

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

OFFSETS = ":offsets"  # suffix of the array that says where each row of a ragged array begins
FLUSH_SECONDS = 60  # a killed pass loses at most this much work

Array = "np.ndarray | torch.Tensor"
Batch = tuple[Sequence[int], Mapping[str, "Array | Sequence[Array]"]]
Compute = Callable[[Sequence[int]], Iterator[Batch]]


class Shard:
    """One file's rows, mapped into memory. Travels to worker processes as its path."""

    def __init__(self, path: Path):
        self.path = path
        with safe_open(path, framework="pt") as file:
            self.keys: list[str] = json.loads(file.metadata()["keys"])
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict

    def __reduce__(self):
        return Shard, (self.path,)

    def fixed(self, name: str) -> "torch.Tensor":
        if name + OFFSETS in self.tensors:
            raise ValueError(f"The rows of {name!r} differ in length: read them with `rows`")
        return self.tensors[name]

    def row(self, name: str, row: int) -> "torch.Tensor":
        if name + OFFSETS not in self.tensors:
            return self.tensors[name][row]
        begin, end = self.tensors[name + OFFSETS][row : row + 2].tolist()
        return self.tensors[name][begin:end]


class Writer:
    """Gathers computed rows and writes a shard whenever enough of them wait."""

    def __init__(self, folder: Path, about: str, shard_bytes: int):
        self.folder, self.about, self.shard_bytes = folder, about, shard_bytes
        self.rows = 0
        self._clear()

    def _clear(self) -> None:
        self._keys: list[str] = []
        self._columns: dict[str, _Column] = {}
        self._since = time.monotonic()

    def stream(self, keys: Sequence[str], positions: Sequence[int], compute: Compute) -> Iterator[Shard]:
        """Shards as they get full. What was computed before an error is kept."""
        expected = set(positions)
        try:
            for batch_positions, arrays in compute(positions):
                expected.difference_update(batch_positions)
                self._add([keys[position] for position in batch_positions], arrays)
                if self._is_due():
                    yield self._write()
        except BaseException:
            if self._keys:
                self._write()
            raise
        if self._keys:
            yield self._write()
        if expected:
            raise ValueError(f"{len(expected)} of {len(positions)} rows asked for were not computed")

    def _add(self, keys: list[str], arrays: Mapping[str, Any]) -> None:
        for name, array in arrays.items():
            if len(array) != len(keys):
                raise ValueError(f"{len(array)} rows of {name!r} came for {len(keys)} positions")
        if self._columns and set(arrays) != set(self._columns):
            raise ValueError(f"Every batch must carry the same names: {sorted(self._columns)}, not {sorted(arrays)}")
        for name, array in arrays.items():
            self._columns.setdefault(name, _Column(name)).add(array)
        self._keys += keys

    def _is_due(self) -> bool:
        waiting = sum(len(column.data) for column in self._columns.values())
        return waiting >= self.shard_bytes or time.monotonic() - self._since > FLUSH_SECONDS

    def _write(self) -> Shard:
        """Write what waits as one shard, whole or not at all."""
        from safetensors.torch import save

        metadata = {"keys": json.dumps(self._keys), "about": self.about}
        tensors = {name: tensor for column in self._columns.values() for name, tensor in column.tensors().items()}
        self.rows += len(self._keys)
        self._clear()
        return Shard(self._replace(save(tensors, metadata)))

    def _replace(self, data: bytes) -> Path:
        path = self.folder / f"{_checksum(data)}.safetensors"
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return path


class _Column:
    """The waiting rows of one name, copied into one growing piece of memory.

    A copy, since a view would keep the whole activation it was cut from alive; one piece, since many small ones between
    the activations of a running network scatter the heap (three times the memory of the rows).
    """

    def __init__(self, name: str):
        self.name, self.data, self.ends = name, bytearray(), [0]
        self.kind: tuple[bool, torch.dtype, torch.Size] | None = None

    def add(self, array: Any) -> None:
        """Rows as one array, or as a list of arrays that differ in their first dimension."""
        import torch

        ragged = isinstance(array, list | tuple)
        for rows in array if ragged else [array]:
            tensor = torch.as_tensor(rows).detach().cpu().contiguous()
            kind = (ragged, tensor.dtype, tensor.shape[1:])
            self.kind = self.kind or kind
            if kind != self.kind:
                raise ValueError(f"Rows of {self.name!r} changed from {self.kind} to {kind} (ragged, type, shape)")
            self.data += tensor.view(-1).view(torch.uint8).numpy().data
            self.ends.append(self.ends[-1] + len(tensor))

    def tensors(self) -> dict[str, "torch.Tensor"]:
        """All rows as one tensor, and for ragged rows the offsets of each row and of the end."""
        import torch

        ragged, dtype, shape = self.kind
        rows = torch.frombuffer(self.data, dtype=dtype) if self.data else torch.empty(0, dtype=dtype)
        rows = rows.view(self.ends[-1], *shape)
        return {self.name: rows, self.name + OFFSETS: torch.tensor(self.ends)} if ragged else {self.name: rows}


def _checksum(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def read_header(path: Path) -> dict[str, Any] | None:
    """Return the `keys` of a shard's rows and what it is `about`, or None for a file that is not whole."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
        return {"keys": json.loads(metadata["keys"]), "about": metadata["about"]}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def open_checked(path: Path) -> Shard | None:
    """Return the shard, or None when it is gone or its bytes are not those that were written; a damaged file is removed."""
    try:
        with path.open("rb") as file:
            whole = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest() == path.stem
        if whole:
            return Shard(path)
    except FileNotFoundError:
        return None
    logger.warning("Damaged shard in the feature store, its rows are computed again: %s", path)
    remove(path)
    return None


def remove(path: Path) -> bool:
    with suppress(OSError):  # gone already, or held open (Windows)
        path.unlink()
        return True
    return False


def unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"The feature store could not write to {folder}: {error.strerror or error}. Free space with `hftransfer cache "
        "--clear`, name another folder in the environment variable HFTRANSFER_CACHE, or keep none (store=false)."
    )
