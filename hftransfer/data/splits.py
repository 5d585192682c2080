"""Dividing rows into train, validation and test: stratified, by seed, groups kept on one side, and kept as a file.

What holds when rows are appended to a data set that is divided here: rows of a class are ranked by a hash of seed and
id; the first ranks go to test, the next to validation. New rows slot into that order, so that only rows whose rank lies
at a border can change sides (one or so per class and border). With groups, several labels or numbers, more may move.
With `split.file` nothing moves.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.config import SplitConfig
from hftransfer.data.sources import SPLITS, missing
from hftransfer.tasks import Task

log = logging.getLogger(__name__)

REGRESSION_BINS = 10


def assign_splits(frame: pd.DataFrame, task: Task, config: SplitConfig) -> pd.Series:
    """Return the split of every row of `frame` (columns id, split, group, label; split None where the data gives none).

    Given splits are kept. What is missing is cut from the training rows; `split.file` overrides both. Raises `UserError`
    where nothing is left to train on.
    """
    if config.file:
        return _from_file(frame, config)
    given = set(frame["split"].dropna())
    if not given:
        frame = frame.assign(split="train")
    wanted = {"test": config.test, "validation": config.validation}
    shares = {split: share for split, share in wanted.items() if split not in given and share > 0}
    if given:
        _log_given(given, shares)
    rows = frame[frame["split"] == "train"]
    split = frame["split"].copy()
    if not shares or rows.empty:
        return split
    split[rows.index] = divide(rows, task, shares, config.seed, strict=config.group is None)
    if not (split == "train").any():
        cut = " and ".join(f"data.split.{name}={share:g}" for name, share in shares.items())
        raise UserError(f"Nothing is left to train on: {cut} take all {len(rows)} rows. Make them smaller.")
    counts = split.value_counts()
    how = "by group, " if config.group and rows["group"].notna().any() else ""
    _warn_absent(rows, split[rows.index], task, shares)
    log.info(
        "Cut %s from the training rows (%sstratified, seed %d): %s.",
        " and ".join(shares), how, config.seed, ", ".join(f"{name} {counts.get(name, 0)}" for name in SPLITS),
    )  # fmt: skip
    return split


def single_examples(frame: pd.DataFrame, task: Task, config: SplitConfig) -> pd.Series:
    """Return what is wrong with the rows whose class has no second example, where a test part is to be cut (else None)."""
    cut = not config.file and config.test > 0 and not (frame["split"] == "test").any()
    if not task.exclusive or not cut:
        return pd.Series(None, index=frame.index, dtype=object)
    count = frame["label"].map(frame["label"].value_counts())
    return (
        frame["label"]
        .map(
            lambda name: (
                f"its class {name!r} has one example only, which cannot be divided into training and test "
                "(add examples, merge the class with another, or give the splits yourself)"
            )
        )
        .where(count == 1, None)
    )


def divide(rows: pd.DataFrame, task: Task, shares: dict[str, float], seed: int, strict: bool = False) -> np.ndarray:
    """Return the split of each row, "train" for what is not in `shares` (columns id, group, label).

    Groups are balanced over all classes at once; with `strict`, for groups of a few copies, each class is cut by itself.
    """
    strata = stratum_counts(rows["label"], task)
    ranks = _ranks(rows["id"], seed)
    grouped = rows["group"].notna()
    group = rows["group"].where(grouped, "\0" + rows["id"])
    if task.several or grouped.any() and not strict:
        return _divide_groups(group, strata, ranks, shares)
    return _divide_strata(group, strata.argmax(1), ranks, shares)


def take_examples(
    rows: pd.DataFrame, task: Task, count: int, seed: int, option: str = "data.train_examples="
) -> pd.Index:
    """Return the index of `count` of the training `rows`, in the proportions of the classes, at least one of each.

    `option` is what the user calls the count.
    """
    if count >= len(rows):
        log.info("%s%d: there are only %d training rows, all are used.", option, count, len(rows))
        return rows.index
    strata, ranks = stratum_counts(rows["label"], task), _ranks(rows["id"], seed)
    # The first row of every class or label comes first of all.
    firsts = {int(np.where(column > 0, ranks, np.inf).argmin()) for column in strata.T if column.any()}
    if count < len(firsts) and task.has_classes:
        raise UserError(f"{option}{count} cannot hold one example of each class; at least {len(firsts)} are needed.")
    # A row's place inside of its stratum, as a share: taking the smallest shares takes from all strata alike.
    stratum = strata.argmax(1)
    place = pd.Series(ranks).groupby(stratum).rank(method="first").to_numpy()
    share = (place - 0.5) / np.bincount(stratum)[stratum]
    later = ~np.isin(np.arange(len(rows)), list(firsts))
    return rows.index[np.sort(np.lexsort((ranks, share, later))[:count])]


def stratum_counts(labels: pd.Series, task: Task) -> np.ndarray:
    """(N, C) what a division balances: classes, labels, or ten bins of equal size of the first regression target."""
    if task.several:
        return task.one_hot(task.encode_all(list(labels)))
    if not task.has_classes:
        first = labels.map(lambda label: label[0] if isinstance(label, list) else label).astype(float)
        stratum = (first.rank(method="first").to_numpy() - 1) * min(REGRESSION_BINS, max(1, len(labels) // 5))
        stratum = (stratum // len(labels)).astype(int)
    else:
        stratum = task.encode_all(list(labels))
    return np.eye(max(int(stratum.max()) + 1, task.head_size if task.exclusive else 1))[stratum]


def _ranks(ids: pd.Series, seed: int) -> np.ndarray:
    """Return a number per id that depends on nothing else than the id and the seed."""
    return np.array(
        [int.from_bytes(hashlib.blake2b(f"{seed}\0{id_}".encode(), digest_size=7).digest()) for id_ in ids], np.int64
    )


def _divide_strata(group: pd.Series, stratum: np.ndarray, ranks: np.ndarray, shares: dict[str, float]) -> np.ndarray:
    """Cut each class by rank, whole groups at a time; a group stands in the rarest of its classes.

    A group that is larger than a part is for training, and so is the last group of a class.
    """
    codes, names = pd.factorize(group)
    sizes = np.bincount(codes)
    order = np.lexsort((ranks, np.bincount(stratum)[stratum], codes))
    first = order[np.cumsum(sizes) - sizes]
    split = np.full(len(names), "train", dtype=object)
    for value in np.unique(stratum[first]):
        groups = np.flatnonzero(stratum[first] == value)
        quotas, start = _quotas(int(sizes[groups].sum()), shares), 0
        large = sizes[groups] > min(quotas.values())
        groups = groups[np.lexsort((ranks[first[groups]], large))]
        middle = np.cumsum(sizes[groups]) - sizes[groups] / 2
        for name, quota in quotas.items():
            split[groups[:-1][(start <= middle[:-1]) & (middle[:-1] < start + quota)]] = name
            start += quota
    return split[codes]


def _quotas(size: int, shares: dict[str, float]) -> dict[str, int]:
    """How many of `size` rows each part gets: rounded, but one at least as long as one is left for training."""
    quotas, left = {}, size - 1
    for name, share in shares.items():
        quotas[name] = min(left, max(1, round(size * share)))
        left -= quotas[name]
    return quotas


def _divide_groups(group: pd.Series, strata: np.ndarray, ranks: np.ndarray, shares: dict[str, float]) -> np.ndarray:
    """Whole groups to parts so that each part gets its share of each class and of the rows.

    Greedy: groups with the rarest classes choose first, then larger ones; each goes to the part that lacks the largest
    share of what it holds, to training where that is equal. After Sechidis et al. 2011, "On the stratification of
    multi-label data", section 4, with shares in place of counts, which serves small parts better.
    """
    codes, names = pd.factorize(group)
    held = np.zeros((len(names), strata.shape[1] + 1))  # (groups, classes and rows)
    np.add.at(held, codes, np.hstack([strata, np.ones((len(strata), 1))]))
    totals = np.maximum(held.sum(0), 1)
    weight = held / totals
    parts = ["train", *shares]
    wanted = np.outer([1 - sum(shares.values()), *shares.values()], totals)  # (parts, classes and rows)
    lacking, choice = np.ones_like(wanted), np.empty(len(names), dtype=int)
    only_one = (held > 0).sum(0) == 1
    rarest = np.where(held > 0, totals, np.inf).min(1)
    for index in np.lexsort((pd.Series(ranks).groupby(codes).min().to_numpy(), -held[:, -1], rarest)):
        # The only group of a class is for training: there is nothing to learn the class from elsewhere.
        alone = (only_one & (held[index] > 0)).any()
        part = 0 if alone else int(np.argmax((lacking - held[index] / wanted / 2) @ weight[index]))
        choice[index] = part
        lacking[part] -= held[index] / wanted[part]
    return np.array(parts, dtype=object)[choice][codes]


def _warn_absent(rows: pd.DataFrame, split: pd.Series, task: Task, shares: dict[str, float]) -> None:
    """Name the classes that a part could get no example of (few rows, or all of them in one group)."""
    strata = stratum_counts(rows["label"], task)
    for part in shares if task.has_classes else ():
        absent = np.flatnonzero(~strata[(split == part).to_numpy()].any(0) & strata.any(0))
        if len(absent):
            names = ", ".join(task.names[index] for index in absent)
            log.warning("The %s part holds no example of: %s. Nothing can be said about these there.", part, names)


def _log_given(given: set[str], shares: dict[str, float]) -> None:
    named = ", ".join(split for split in SPLITS if split in given)
    cut = " and ".join(f"{split} ({share:g})" for split, share in shares.items())
    log.info("Splits given by the data: %s%s.", named, f"; cut from its training rows: {cut}" if cut else "")


def _from_file(frame: pd.DataFrame, config: SplitConfig) -> pd.Series:
    stored = read_split_file(config.file)
    split = frame["id"].map(stored["split"])
    unknown, absent = int(split.isna().sum()), len(stored.index.difference(frame["id"]))
    if unknown == len(frame):
        raise UserError(f"data.split.file {config.file} knows none of the {len(frame)} rows: it belongs to other data.")
    if unknown and config.new_rows == "stop":
        raise UserError(
            f"data.split.file {config.file} does not know {unknown} of {len(frame)} rows, such as "
            f"{frame['id'][split.isna()].iloc[0]!r}. Let them join the training part with data.split.new_rows=train, or "
            "divide anew without data.split.file (the results then no longer compare with the earlier run)."
        )
    log.info(
        "Splits from %s: %d rows found, %d new ones join train, %d rows of the file are not in the data.",
        config.file, len(frame) - unknown, unknown, absent,
    )  # fmt: skip
    return split.fillna("train").astype(object)


def read_split_file(reference: str) -> pd.DataFrame:
    """Return the table id -> split (and group, where it has one) of a `splits.parquet`, or of the run folder that holds one."""
    path = Path(reference).expanduser()
    path = path / "splits.parquet" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"data.split.file: {missing(path)}")
    try:
        stored = pd.read_parquet(path)
        stored = stored[["id", "split", *({"group"} & set(stored.columns))]]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"data.split.file: {path} is no table with the columns id and split: {error}") from error
    wrong = sorted(set(stored["split"]) - set(SPLITS))
    if wrong or stored["id"].duplicated().any():
        raise UserError(f"data.split.file: {path} must hold every id once and only {', '.join(SPLITS)}; found {wrong}.")
    return stored.set_index("id")
