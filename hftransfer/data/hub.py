"""Data in the form of the `datasets` library: saved to a folder, on the Hub, or given from Python."""

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Union

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.sources import SPLIT_WORDS, Source, declared_inputs, describe_counts, in_order

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

PREFIX = "hub:"  # a name without it is never looked up on the Hub: a mistyped path would train on a stranger's data


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def looks_like_hub_id(reference: str) -> bool:
    """`name`, `owner/name` or either with `:configuration` behind it."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?", reference) is not None


def read_saved(folder: Path) -> Source:
    """Return the rows of a folder that `save_to_disk` wrote."""
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    except IndexError:  # what `datasets` raises for one without rows
        raise UserError(f"{folder} holds no rows.") from None
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} looks like a saved dataset but cannot be read: {error}") from error
    return from_dataset(dataset, str(folder), root=folder)


def read_hub(reference: str) -> Source:
    """Return the rows of a data set on the Hub, `owner/name` or `owner/name:configuration`."""
    import datasets

    name, _, configuration = reference.partition(":")
    try:
        dataset = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # network, Hub, script and format errors share no base class
        raise UserError(f"The Hub data set {reference!r} cannot be loaded: {type(error).__name__}: {error}") from error
    return from_dataset(dataset, reference, root=None)


def from_dataset(dataset: Union["datasets.Dataset", "datasets.DatasetDict"], name: str, root: Path | None) -> Source:
    """Any `Dataset` or `DatasetDict` as rows; images stay encoded, class names are kept."""
    import datasets

    if isinstance(dataset, datasets.Dataset):
        parts = {"all": dataset}
    elif isinstance(dataset, dict) and all(isinstance(part, datasets.Dataset) for part in dataset.values()):
        parts = _known_splits(dataset, name)
    else:
        raise UserError(
            f"{name}: expected a datasets.Dataset or DatasetDict, or a pandas.DataFrame, found {type(dataset).__name__}. "
            "A streaming data set has to be downloaded first (streaming=False)."
        )
    features = next(iter(parts.values())).features
    frames = {split: _frame(part) for split, part in parts.items()}
    log.info("Read %s (%s), columns %s.", name, describe_counts(frames), ", ".join(map(repr, features)))
    class_names = {column: kind.names for column, kind in _class_labels(features).items()}
    return Source(name, "dataset", frames, root, class_names, _declared(features))


def _declared(features: "datasets.Features") -> dict[str, str]:
    return declared_inputs({column: type(feature).__name__ for column, feature in features.items()})


def _known_splits(dataset: "datasets.DatasetDict", name: str) -> dict[str, "datasets.Dataset"]:
    """Return the splits of `dataset` by what they are for: of two for one purpose the more usual name."""
    order = list(SPLIT_WORDS)
    known = sorted((key for key in dataset if key.lower() in SPLIT_WORDS), key=lambda key: order.index(key.lower()))
    used: dict[str, str] = {}
    for key in known:
        used.setdefault(SPLIT_WORDS[key.lower()], key)
    left_out = [key for key in dataset if key not in used.values()]
    if not used:
        raise UserError(
            f"{name} is divided into {', '.join(left_out)}: expected splits named train, validation or test."
        )
    if left_out:
        log.info("%s: the splits %s are left out; %s are used.", name, ", ".join(left_out), ", ".join(used.values()))
    return in_order({split: dataset[key] for split, key in used.items()})


def _class_labels(features: "datasets.Features") -> dict[str, "datasets.ClassLabel"]:
    """Return the columns of class indices, and of lists of them."""
    inner = {column: getattr(kind, "feature", kind) for column, kind in features.items()}
    return {column: kind for column, kind in inner.items() if type(kind).__name__ == "ClassLabel"}


def _frame(dataset: "datasets.Dataset") -> pd.DataFrame:
    for column in _declared(dataset.features):
        dataset = dataset.cast_column(column, type(dataset.features[column])(decode=False))
    rows = dataset.with_format(None)[:]
    return pd.DataFrame({column: pd.Series(values, dtype=object) for column, values in rows.items()})
