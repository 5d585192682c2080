"""Answers to rows of which some cannot be read: those get their reason in place of an answer."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from hftransfer.core.errors import UnreadableInput
from hftransfer.modalities import ModalityKind


def answered(kind: ModalityKind, frame: pd.DataFrame, answer: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Return `answer` (a row with an `id` for each) of the rows of `frame` that can be read; an `error` tells of the others.

    The column is there only where an input cannot be read. Files are decoded once unless one is broken.
    """
    if not kind.files:  # nothing has to be decoded to find faults
        return beside_errors(frame, faults(kind, frame), answer)
    try:
        return answer(frame)
    except UnreadableInput:
        errors = faults(kind, frame)
        if errors.isna().all():  # it was lost in between
            raise
        return beside_errors(frame, errors, answer)


def faults(kind: ModalityKind, frame: pd.DataFrame) -> pd.Series:
    """Why each row of `frame` cannot be read; None for those that can."""
    return pd.Series([inspection.fault for inspection in kind.inspect(frame)], index=frame.index, dtype=object)


def beside_errors(
    frame: pd.DataFrame, errors: pd.Series, answer: Callable[[pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    """Return `answer` of the rows without an error, and the errors of the others, where there are any."""
    good = errors.isna().to_numpy()
    if good.all():
        return answer(frame)
    ids = {"id": frame["id"].tolist(), "error": errors.tolist()}
    if not good.any():
        return pd.DataFrame(ids)
    table = answer(frame[good].reset_index(drop=True))
    return table.set_axis(np.flatnonzero(good)).reindex(range(len(frame))).assign(**ids)
