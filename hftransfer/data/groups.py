"""Rows that must not stand on both sides of a split: duplicates, series of file names, bursts of photos."""

import logging
import re
from collections import Counter, defaultdict
from datetime import datetime
from pathlib import PurePath

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.sources import SPLIT_WORDS
from hftransfer.data.values import is_missing
from hftransfer.modalities import kind_of
from hftransfer.modalities.duplicates import NO_PAIRS, SMALL_PICTURE, components, equal_pairs
from hftransfer.modalities.inspection import Inspection

log = logging.getLogger(__name__)

BURST_SECONDS = 3
# A series that holds a larger share of the rows may be a mere counter (IMG_0001 …): there, only neighbours that also look
# alike belong together.
SMALL_SERIES = 0.05
NEIGHBOUR_CORRELATION = 0.9
COPIES = "copies of "  # begins the name of a group that was found by its content alone


def leak_groups(frame: pd.DataFrame, kinds: dict[str, np.ndarray], modality: str, how: str) -> pd.Series:
    """Return the group of every row of `frame` (columns id, input, label, split; None for rows that stand alone).

    `kinds` are the `links` of `frame`. `how` is "stem": series of image file names (`patient12_3.png`,
    `clip3_frame0012.jpg`), or "auto": these, and exact and near duplicates, and bursts of photos. A group is named by its
    smallest id. Raises `UserError` for "stem" where there are no files, or where most share one series.
    """
    if how == "stem":
        group = _named(frame, _series_pairs(_keys(frame, kind_of(modality).files)))
        _refuse_one_series(group)
        return group
    group = _named(frame, np.concatenate(list(kinds.values())))
    found = ", ".join(f"{len(np.unique(pairs))} {kind}" for kind, pairs in kinds.items() if len(pairs))
    log.info(
        "data.split.group=auto: %d rows in %d groups stay on one side of the split%s.",
        group.notna().sum(), group.nunique(), f" ({found})" if found else "",
    )  # fmt: skip
    return group


def join_copies(frame: pd.DataFrame, kinds: dict[str, np.ndarray]) -> pd.Series:
    """Return the group of every example: the given one, joined with equal and nearly equal inputs.

    `kinds` are the `links` of `frame` (columns id, group). Near copies chain: a component of more than 5 % of the
    examples is a template, not copies, and is divided. Equal inputs always stay together, but for those that would join
    given groups to a component of that size.
    """
    given = [None if is_missing(name) else str(name) for name in frame["group"]]
    pairs, sizes = equal_pairs([name or "" for name in given]), Counter(filter(None, given))
    limit = max(sizes.values(), default=0) + max(2, int(SMALL_SERIES * len(frame)))
    found, divided = {}, 0
    for kind, most in (("equal", limit if sizes else len(frame)), ("nearly equal", limit)):
        component = components(len(frame), np.concatenate([pairs, kinds[kind]]))
        small = (np.bincount(component) <= most)[component]
        found[kind] = kinds[kind][small[kinds[kind][:, 0]]]
        divided = len(np.unique(kinds[kind])) - len(np.unique(found[kind]))
        pairs = np.concatenate([pairs, found[kind]])
    _log_copies(found, divided, limit)
    component = components(len(frame), pairs)
    alone = np.bincount(component)[component] == 1
    known = pd.Series(given, index=frame.index, dtype=object).groupby(component).transform("first")
    copies = COPIES + frame["id"].astype(str).groupby(component).transform("min")
    return known.where(known.notna(), copies.mask(alone, None).astype(object))


def _log_copies(found: dict[str, np.ndarray], divided: int, limit: int) -> None:
    if any(map(len, found.values())):
        counts = " and ".join(f"{len(np.unique(pairs))} {kind}" for kind, pairs in found.items() if len(pairs))
        log.info("Copies stay on one side of our splits: %s inputs (data.split.copies=apart divides them).", counts)
    if divided:
        log.warning("%d inputs are nearly equal to more than %d others: they are taken for one template, and divided.",
                    divided, limit)  # fmt: skip


def links(frame: pd.DataFrame, inspections: list[Inspection], modality: str) -> dict[str, np.ndarray]:
    """Pairs (P, 2) of row numbers that belong together, by the reason why."""
    kind = kind_of(modality)
    has_files = kind.files and _has_files(frame)
    return {
        "equal": equal_pairs([inspection.digest for inspection in inspections]),
        "nearly equal": kind.near_duplicates(frame, inspections),
        "of a series of files": _alike_series(_keys(frame), inspections) if has_files else NO_PAIRS,
        "of a burst of photos": burst_pairs(inspections),
    }


def burst_pairs(inspections: list[Inspection]) -> np.ndarray:
    """Pairs of photos that one camera took within three seconds of each other."""
    taken = [(*inspection.taken, index) for index, inspection in enumerate(inspections) if inspection.taken]
    shots = sorted((camera, moment, index) for camera, time, index in taken if (moment := _moment(time)))
    near = [
        (first[2], second[2])
        for first, second in zip(shots, shots[1:], strict=False)
        if first[0] == second[0] and (second[1] - first[1]).total_seconds() <= BURST_SECONDS
    ]
    return np.array(near, dtype=int).reshape(-1, 2)


def series_key(path: str, leave_out: set[str]) -> tuple[str, int]:
    """Return what the files of a series share, and the place in it: the path without its last number, and that number (or -1).

    Folders named in `leave_out` (class and split) do not count: a patient may stand in two classes.
    """
    pure = PurePath(path)
    folders = [part for part in pure.parent.parts if part not in leave_out]
    stem, number = re.fullmatch(r"(.*?)[\s_.-]*\(?(\d*)\)?", pure.stem, re.DOTALL).groups()
    return "/".join([*folders, stem]), int(number or -1)


def _keys(frame: pd.DataFrame, files: bool = True) -> list[tuple[str, int]]:
    if not files or not _has_files(frame):
        raise UserError("data.split.group=stem looks at names of image files; there are none. Name a column instead.")
    splits = set(SPLIT_WORDS)
    labels = [{label} if isinstance(label, str) else set() for label in frame["label"]]
    return [series_key(path, splits | label) for path, label in zip(frame["input"], labels, strict=True)]


def _has_files(frame: pd.DataFrame) -> bool:
    return all(isinstance(value, str) for value in frame["input"])


def _series_pairs(keys: list[tuple[str, int]]) -> np.ndarray:
    """Links between all files of each series, from one to the next. Equal names in two folders are no series."""
    numbers = defaultdict(set)
    for key, number in keys:
        numbers[key].add(number)
    ordered = sorted(range(len(keys)), key=lambda index: keys[index])
    following = zip(ordered, ordered[1:], strict=False)
    pairs = [(i, j) for i, j in following if keys[i][0] == keys[j][0] and len(numbers[keys[i][0]]) > 1]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def _alike_series(keys: list[tuple[str, int]], inspections: list[Inspection]) -> np.ndarray:
    """Links inside of series: between all files of a small one, between neighbours that look alike in a large one."""
    size = Counter(key for key, _ in keys)
    small = {key for key, count in size.items() if count <= SMALL_SERIES * len(keys)}
    pairs = _series_pairs(keys)
    kept = [keys[i][0] in small or _look_alike(inspections[i], inspections[j]) for i, j in pairs]
    return pairs[np.array(kept, dtype=bool)]


def _look_alike(first: Inspection, second: Inspection) -> bool:
    """Whether two neighbours may be frames of one film. Small pictures, such as single digits, look alike anyway."""
    if first.thumbnail is None or second.thumbnail is None or min(*first.size, *second.size) < SMALL_PICTURE:
        return False
    if first.thumbnail.std() < 1 or second.thumbnail.std() < 1:
        return False
    return bool(np.corrcoef(first.thumbnail.ravel(), second.thumbnail.ravel())[0, 1] >= NEIGHBOUR_CORRELATION)


def _named(frame: pd.DataFrame, pairs: np.ndarray) -> pd.Series:
    """Return groups by the smallest id in them: a name that does not change with the order of the rows."""
    component = components(len(frame), pairs)
    name = frame["id"].groupby(component).transform("min")
    alone = np.bincount(component)[component] == 1
    return name.astype(object).mask(alone, None)


def _refuse_one_series(group: pd.Series) -> None:
    largest = group.value_counts()
    if len(largest) and largest.iloc[0] > len(group) / 2:
        raise UserError(
            f"data.split.group=stem: {largest.iloc[0]} of {len(group)} files share one series with {largest.index[0]!r}, "
            "which leaves nothing to divide. Their last number seems to be a mere counter: take data.split.group=auto, "
            "which looks at the images too, or a column."
        )


def _moment(time: str) -> datetime | None:
    try:
        return datetime.strptime(time.strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
