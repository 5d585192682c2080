"""Work on many inputs, divided into shards: one Parquet file for each, by any number of workers in any order.

An input belongs to a shard by the hash of its text, of its path, or of its bytes where it has no file. Rows that are added,
left out or put in another order move no other row to another shard. A shard is complete when its file is there.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json, replacing, write_json
from hftransfer.core.hashing import content_key
from hftransfer.modalities import Modality
from hftransfer.modalities.base import INPUTS
from hftransfer.runtime.shares import Worker

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

PLAN = "_shards.json"  # readers of Parquet folders pass over names that begin with "_" or "."
BLOCK = 1024  # rows that are in memory at a time, with what is computed of them


@dataclass(frozen=True)
class Shards:
    """A folder of `count` shards of `frame` (`id`, `input`, for pairs `input_pair`); `hashes` (N,) of its rows divide it."""

    folder: Path
    count: int
    frame: pd.DataFrame
    hashes: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame, folder: Path, count: int, made_by: dict[str, Any]) -> "Shards":
        """Divide the rows of `frame`, and write the plan where there is none yet.

        Raises `UserError` where the folder holds shards of other inputs, of another number of shards, or not `made_by`
        the same model and options.
        """
        columns = [frame[name] for name in INPUTS if name in frame]
        keys = (content_key(*row) for row in zip(*columns, strict=True))
        hashes = np.fromiter((int(key[:15], 16) for key in keys), dtype=np.int64, count=len(frame))
        plan = {"shards": count, "inputs": len(frame), "content": f"{hashes.sum() % 2**60:015x}"} | made_by
        found = cls(folder, count, frame, hashes)
        found._agree(plan)
        return found

    def _agree(self, plan: dict[str, Any]) -> None:
        file = self.folder / PLAN
        if not file.exists():
            return write_json(file, plan)
        known = read_json(file)
        differing = [name for name in {**known, **plan} if known.get(name) != plan.get(name)]
        if differing:
            name = differing[0]
            raise UserError(
                f"{self.folder} holds shards of other work: {name} is {known.get(name)!r} there and {plan.get(name)!r} "
                "here. Name another folder with --output, or remove this one."
            )

    def file(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}-of-{self.count:05d}.parquet"

    def missing(self, wanted: Sequence[int]) -> list[int]:
        return [number for number in wanted if not self.file(number).exists()]

    def rows(self, number: int) -> pd.DataFrame:
        """Return the rows of a shard, in an order that does not depend on that of all rows."""
        rows = np.flatnonzero(self.hashes % self.count == number)
        chosen = self.frame.iloc[rows].assign(hash=self.hashes[rows]).sort_values(["hash", "id"], kind="stable")
        return chosen.drop(columns="hash").reset_index(drop=True)


def wanted_shards(count: int, shard: int | None, worker: Worker) -> Sequence[int]:
    """Return the shard that is named, else the share of this worker. Raises `UserError` for a number that is none."""
    if shard is None:
        return worker.share(count)
    if not 0 <= shard < count:
        raise UserError(f"--shard {shard}: expected a number from 0 to {count - 1} with --shards {count}.")
    return [shard]


def write_missing(
    shards: Shards,
    wanted: Sequence[int],
    schema: "pa.Schema",
    answer: Callable[[pd.DataFrame], "pa.Table"],
    modality: Modality,
    worker: Worker,
) -> None:
    """Write the shards `wanted` that are not there yet; `answer` gives the rows of a block in the form of `schema`."""
    missing = shards.missing(wanted)
    log.info("%s: %d of %d shards, %d of them to do.", worker.describe(), len(wanted), shards.count, len(missing))
    rows = unreadable = cut = 0
    with tqdm(missing, desc="shards", unit="shard", disable=None, leave=False) as bar:
        for number in bar:
            for table in _written(shards, number, schema, answer):
                rows += table.num_rows
                unreadable += table.num_rows - table["error"].null_count
                cut += round(modality.truncated_share * (table["error"].null_count))
    if unreadable:
        log.warning("%d of %d inputs could not be read: see the column error.", unreadable, rows)
    if cut:
        log.warning("%d of %d inputs are longer than the model reads, and lost their end.", cut, rows)
    left = len(shards.missing(range(shards.count)))
    state = f"{left} of {shards.count} shards missing" if left else f"all {shards.count} shards are there"
    log.info("%d rows in %d files of %s; %s.", rows, len(missing), shards.folder, state)


def _written(shards: Shards, number: int, schema: "pa.Schema", answer: Callable[[pd.DataFrame], "pa.Table"]) -> Any:
    """Write one shard block by block, and yield each block; the file appears when the last one is written."""
    import pyarrow.parquet as pq

    rows = shards.rows(number)
    with replacing(shards.file(number)) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(rows), BLOCK):
            table = answer(rows.iloc[start : start + BLOCK].reset_index(drop=True))
            writer.write_table(table)
            yield table
