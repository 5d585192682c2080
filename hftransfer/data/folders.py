"""The image folder: one sub-folder per class, under `train/`, `validation/` and `test/` or not."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.core.image_files import describe_passed_over, is_image_name
from hftransfer.data.sources import SPLIT_WORDS, Source, counts_in_words

_SURROGATE = re.compile("[\ud800-\udfff]")

log = logging.getLogger(__name__)


def read_image_folder(root: Path, allow_outside: bool) -> Source:
    """Images of `root` with the name of their class folder as label; folders named after splits are honoured.

    Nothing is ever read out of a file name. Raises `UserError` for a folder without images, without class folders, or
    whose class level is unclear.
    """
    others: list[str] = []
    files = sorted(_images(root, root, allow_outside, set(), others))
    passed_over = describe_passed_over(others)
    if not files:
        raise UserError(
            f"The folder {root} holds no image: expected one sub-folder per class.{_tables_hint(root)}"
            f"{' ' + passed_over if passed_over else ''}"
        )
    if passed_over:
        classes = Counter(path.split("/")[-2] for path in others if "/" in path and describe_passed_over([path]))
        log.warning(
            "%s: %s Most in: %s.", root, passed_over, _few([f"{name} {n}" for name, n in classes.most_common()])
        )
    parts = _by_split(root, files)
    frames = {split: _rows(root, under, relative) for split, (under, relative) in parts.items()}
    classes = sorted({label for frame in frames.values() for label in frame["label"]})
    log.info("Image folder %s: %d classes (%s); %s.", root, len(classes), _few(classes), counts_in_words(frames))
    return Source(str(root), "image folder", frames, root, image_columns=frozenset({"path"}))


def _images(folder: Path, root: Path, allow_outside: bool, seen: set[str], others: list[str]) -> Iterator[str]:
    """Posix paths of all images below `folder`, relative to `root`; hidden entries are passed over.

    The paths of files that are no images are appended to `others`.
    """
    real = os.path.realpath(folder)
    if real in seen:  # a link that leads back up
        return
    seen.add(real)
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if not entry.name.isprintable() and _SURROGATE.search(entry.name):
            raise UserError(f"The name {os.fsencode(entry.path)!r} is no valid Unicode: rename it.")
        if entry.is_symlink():
            _refuse_outside(Path(entry.path), root, allow_outside)
        if entry.is_dir():
            yield from _images(Path(entry.path), root, allow_outside, seen, others)
        elif is_image_name(entry.name):
            yield Path(entry.path).relative_to(root).as_posix()
        else:
            others.append(Path(entry.path).relative_to(root).as_posix())


def _refuse_outside(link: Path, root: Path, allow_outside: bool) -> None:
    if not allow_outside and not link.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{link} is a link that leads out of the data folder, to {link.resolve()}. "
            "If that is meant: data.allow_outside=true."
        )


def _by_split(root: Path, files: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Per split the folder it stands in ("" for the root) and its files; "all" where the folder is not divided."""
    tops = {path.split("/")[0] for path in files if "/" in path}
    split_tops = {top for top in tops if top.lower() in SPLIT_WORDS and _depth(files, top) >= 3}
    if not split_tops:
        _refuse_only_splits(root, tops)
        return {"all": ("", files)}
    strangers = sorted({path.split("/")[0] for path in files} - split_tops)
    if strangers:
        raise UserError(
            f"{root} holds the splits {', '.join(sorted(split_tops))} and beside them images in {_few(strangers)}. "
            "Inside a split, images stand in one sub-folder per class; images without a label do not belong here "
            "(`hftransfer predict` takes them)."
        )
    if len({SPLIT_WORDS[top.lower()] for top in split_tops}) < len(split_tops):
        raise UserError(
            f"{root} holds several folders for one split: {', '.join(sorted(split_tops))}. Keep one of them."
        )
    return {
        SPLIT_WORDS[top.lower()]: (top, [path for path in files if path.startswith(f"{top}/")])
        for top in sorted(split_tops, key=lambda top: list(SPLIT_WORDS).index(top.lower()))
    }


def _refuse_only_splits(root: Path, tops: set[str]) -> None:
    """Raise `UserError` where all folders are called like splits: they are no classes."""
    if tops and all(top.lower() in SPLIT_WORDS for top in tops):
        hints = "".join(filter(None, (_tables_hint(root / top) for top in sorted(tops))))
        raise UserError(
            f"The folders of {root} are splits ({', '.join(sorted(tops))}) without class folders inside, so that no image "
            "has a label. Expected one sub-folder per class in each, or a table with the columns path and label; nothing "
            f"is read out of file names.{hints}"
        )


def _depth(files: list[str], top: str) -> int:
    """How many parts the shortest path below `top` has: 2 for `top/x.png`, 3 for `top/class/x.png`."""
    return min(path.count("/") + 1 for path in files if path.startswith(f"{top}/"))


def _rows(root: Path, under: str, files: list[str]) -> pd.DataFrame:
    inside = [path[len(under) + 1 :] if under else path for path in files]
    _check_levels(root / under, inside)
    return pd.DataFrame({"path": files, "label": [path.split("/")[0] for path in inside]}, dtype=object)


def _check_levels(folder: Path, files: list[str]) -> None:
    loose = [path for path in files if "/" not in path]
    if loose:
        raise UserError(
            f"{len(loose)} of {len(files)} images stand in {folder} itself, such as {loose[0]!r}: "
            f"expected one sub-folder per class.{_tables_hint(folder)}"
        )
    if all(path.count("/") > 1 for path in files):
        outer, inner = (sorted({path.split("/")[level] for path in files}) for level in (0, 1))
        hints = "".join(f" or data.train={folder / top}" for top in outer[:3])
        raise UserError(
            f"It is unclear which folders of {folder} are the classes: {_few(outer)}, or one level below "
            f"{_few(inner)}. Point to the folder that holds the class folders:{hints[3:]}.{_tables_hint(folder)}"
        )
    deep = Counter(path.split("/")[0] for path in files if path.count("/") > 1)
    if deep:
        log.info("Images deeper than their class folder count for that class: %s.", dict(deep))


def _tables_hint(folder: Path) -> str:
    from hftransfer.data.tables import READERS

    tables = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in READERS)
    return (
        f" If a table there holds the labels, name it: {_few([str(folder / name) for name in tables])}."
        if tables
        else ""
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
