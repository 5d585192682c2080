"""Encoded inputs that have no file of their own: the run folder keeps some of them, for the commands after training.

Data in memory and tables with embedded files leave no path to read them from again. The kept files are the user's data:
`push` takes none of them.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from hftransfer.modalities import ModalityKind
from hftransfer.runs.reader import KEPT_INPUTS, file_name

EXAMPLES = 64  # of each split: enough for exports, explanations and the round-trip check
BYTES = 32 * 2**20  # of each split, at most


def keep_inputs(folder: Path, frame: pd.DataFrame, kind: ModalityKind) -> None:
    """Write some inputs of each split that were given as bytes into `inputs/` of the run folder.

    `frame` has the columns `id`, `split` and `input`. Nothing is written where all inputs are texts or paths.
    """
    given = frame[[isinstance(value, bytes) for value in frame["input"]]]
    for _, part in given.groupby("split"):
        for row in _some(part).itertuples():
            file = folder / KEPT_INPUTS / f"{file_name(row.id)}.{kind.suffix_of(row.input)}"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(row.input)


def _some(part: pd.DataFrame) -> pd.DataFrame:
    """Return up to `EXAMPLES` examples, spread evenly, that together have up to `BYTES`."""
    chosen = part.iloc[np.unique(np.linspace(0, len(part) - 1, EXAMPLES).round().astype(int))]
    return chosen[chosen["input"].map(len).cumsum() <= BYTES]
