"""Several inputs as one row of features, and the linear head on them: made by a run, read from its folder.

An input with a network gives the features of its own model, a number itself, a category one column for each name. What is
missing gets the mean of the training examples, and a column that says so. Files: `fusion.json`, `fusion.safetensors`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json, replacing, write_json

log = logging.getLogger(__name__)

ABOUT, WEIGHTS = "fusion.json", "fusion.safetensors"
VERSION = 1


@dataclass(frozen=True)
class Block:
    """The features of one input: `width` of them, and one more that marks missing examples where `marked`.

    `kind` is a modality, "number" or "category"; `categories` are the names that training examples have.
    """

    name: str
    kind: str
    width: int
    marked: bool = False
    categories: tuple[str, ...] = ()

    @property
    def columns(self) -> int:
        return self.width + self.marked


@dataclass(frozen=True)
class Values:
    """One input of N examples: which have it (N,), and the features (P, W) of those that do."""

    present: np.ndarray
    features: np.ndarray

    def filled(self, fill: np.ndarray, marked: bool) -> np.ndarray:
        """Return (N, W), or (N, W + 1) with the mark, where missing examples get `fill` (W,)."""
        rows = np.tile(np.asarray(fill, np.float64), (len(self.present), 1))
        rows[self.present] = self.features
        return np.column_stack([rows, ~self.present]) if marked else rows


def of_numbers(column: pd.Series) -> Values:
    """Return a column of numbers, None where one is missing."""
    present = column.notna().to_numpy()
    return Values(present, column[present].to_numpy(np.float64).reshape(-1, 1))


def of_categories(column: pd.Series, categories: Sequence[str], name: str) -> Values:
    """Return a column of names as one column for each of `categories`; a name that is none of them is all zeros."""
    present = column.notna().to_numpy()
    found = column[present].tolist()
    unknown = sorted(set(found) - set(categories))
    if unknown:
        count = sum(value in unknown for value in found)
        log.warning("%s: %d values are none of the training categories, and are read as no category (%s%s).",
                    name, count, ", ".join(map(repr, unknown[:3])), ", …" if len(unknown) > 3 else "")  # fmt: skip
    return Values(present, np.array(found, dtype=object)[:, None] == np.array(categories, dtype=object)[None, :])


@dataclass(frozen=True)
class Layout:
    """The blocks of a row of features, and what stands for missing ones: `fill` (D,)."""

    blocks: tuple[Block, ...]
    fill: np.ndarray

    @classmethod
    def of(cls, blocks: Sequence[Block], values: Mapping[str, Values], fitted: np.ndarray) -> "Layout":
        """Return the layout of training examples, of which `fitted` (F,) are the numbers of those that a head is fitted on.

        An input gets a mark where some fitted examples lack it, and others do not.
        """
        marked, fills = [], []
        for block in blocks:
            given, there = values[block.name], values[block.name].present[fitted]
            of_fitted = given.features[np.isin(np.flatnonzero(given.present), fitted)]
            fills.append(of_fitted.mean(0) if len(of_fitted) else np.zeros(block.width))
            marked.append(Block(**asdict(block) | {"marked": bool(there.any() and not there.all())}))
            if marked[-1].marked:
                fills.append(np.zeros(1))
        return cls(tuple(marked), np.concatenate(fills))

    @property
    def slices(self) -> dict[str, slice]:
        """The columns of each input."""
        ends = np.cumsum([block.columns for block in self.blocks])
        return {block.name: slice(end - block.columns, end) for block, end in zip(self.blocks, ends, strict=True)}

    @property
    def numbers(self) -> np.ndarray:
        """The number of the block of each column (D,); a mark is a block of its own."""
        parts = [[2 * place] * block.width + [2 * place + 1] * block.marked for place, block in enumerate(self.blocks)]
        return np.concatenate(parts).astype(int)

    def columns_of(self, names: Sequence[str]) -> np.ndarray:
        """Return the numbers of the columns of some inputs."""
        return np.concatenate([np.arange(len(self.fill))[self.slices[name]] for name in names])

    def matrix(self, values: Mapping[str, Values]) -> np.ndarray:
        """Return the features (N, D) of examples by the values of each input."""
        parts = [
            values[block.name].filled(self.fill[self.slices[block.name]][: block.width], block.marked)
            for block in self.blocks
        ]
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class FusedHead:
    """A linear head on the features of several inputs: weight (C, D) and bias (C,), calibrated and in the user's units.

    `mean` and `scale` (D,) bring the features to the scale on which the head was solved, and distances are measured.
    """

    layout: Layout
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        return (features @ self.weight.T + self.bias).astype(np.float32)

    def scaled(self, features: np.ndarray) -> np.ndarray:
        return ((features - self.mean) / self.scale).astype(np.float32)

    def write(self, folder: Path) -> None:
        """Write `fusion.json`, what each input is, and `fusion.safetensors`, the numbers."""
        from safetensors.numpy import save_file

        tensors = {"weight": self.weight, "bias": self.bias, "mean": self.mean, "scale": self.scale}
        tensors |= {"fill": self.layout.fill}
        with replacing(folder / WEIGHTS) as temporary:
            save_file({name: np.ascontiguousarray(each, np.float64) for name, each in tensors.items()}, temporary)
        slices = self.layout.slices
        inputs = [asdict(block) | {"columns": [slices[block.name].start, slices[block.name].stop]}
                  for block in self.layout.blocks]  # fmt: skip
        write_json(folder / ABOUT, {"version": VERSION, "inputs": inputs, "weights": WEIGHTS})

    @classmethod
    def read(cls, folder: Path) -> "FusedHead":
        """Read the head of a run folder. Raises `UserError` for one that is damaged or of a later version."""
        from safetensors.numpy import load_file

        try:
            about, tensors = read_json(folder / ABOUT), load_file(folder / WEIGHTS)
            if about["version"] > VERSION:
                raise UserError(
                    f"{folder / ABOUT} is of a later version of hftransfer: pip install --upgrade hftransfer"
                )
            blocks = tuple(
                Block(each["name"], each["kind"], each["width"], each["marked"], tuple(each["categories"]))
                for each in about["inputs"]
            )
            layout = Layout(blocks, tensors.pop("fill"))
            return cls(layout, **tensors)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / ABOUT} cannot be read as the head of several inputs: {error}") from error
