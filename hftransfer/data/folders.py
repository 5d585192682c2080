"""The class folder: one sub-folder of files per class, under `train/`, `validation/` and `test/` or not."""

import logging
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.sources import CLASS_FOLDER, SPLIT_WORDS, Source, describe_counts, in_order
from hftransfer.modalities import ModalityKind, by_preference
from hftransfer.runs.folder import holds_run

_NO_CLASS = re.compile(r"_.+_")  # _background_noise_ of Speech Commands
_LIST = re.compile(r"[-_]?(list|files|images)$")
LISTED = 0.9  # of the lines of a list name a file
_SURROGATE = re.compile("[\ud800-\udfff]")

log = logging.getLogger(__name__)


def walked(root: Path, allow_outside: bool) -> "Tree":
    """Return what stands below a folder. Raises `UserError` for links that lead outside."""
    tree = Tree(root, allow_outside)
    tree.walk(root)
    tree.choose_kind()
    return tree


def read_class_folder(tree: "Tree") -> Source:
    """Files of a folder with the name of their class folder as label; folders named after splits are honoured.

    They are of the kind (image, recording) that most files of the folder have. Nothing is ever read out of a file name.
    Raises `UserError` for a folder without such files, without class folders, or whose class level is unclear.
    """
    root, kind, passed_over = tree.root, tree.kind, tree.describe_others()
    if not tree.inputs:
        nouns = " and no ".join(each.noun for each in reversed(_kinds()))
        raise UserError(
            f"The folder {root} holds no {nouns}: expected one sub-folder per class.{tables_hint(root)}"
            f"{' ' + passed_over if passed_over else ''}"
        )
    parts = _by_split(tree)
    empty = tree.without_inputs({under for under, _ in parts.values()})
    _log_left_out(root, tree.others, empty, kind)
    frames = {split: _rows(root, under, relative, kind) for split, (under, relative) in parts.items()}
    classes = sorted({label for frame in frames.values() for label in frame["label"]})
    counted = describe_counts(frames)
    log.info("%s folder %s: %d classes (%s); %s.", kind.noun.capitalize(), root, len(classes), _few(classes), counted)
    return Source(
        str(root), CLASS_FOLDER, frames, root, declared={"path": kind.feature},
        passed_over=tuple(sorted(tree.others)) if passed_over else (), empty=tuple(empty),
    )  # fmt: skip


@dataclass
class Tree:
    """What stands below `root`, as posix paths relative to it. Hidden entries and run folders are left out."""

    root: Path
    allow_outside: bool
    files: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    kind: ModalityKind = field(default_factory=lambda: _kinds()[-1])

    def walk(self, folder: Path) -> None:
        """Add what stands below `folder`. Raises `UserError` for links that lead outside and undecodable names."""
        real = os.path.realpath(folder)
        if real in self.seen:  # a link that leads back up
            return
        self.seen.add(real)
        if folder != self.root and holds_run(folder):
            log.info("%s is a run: its files are passed over.", folder)
            self.runs.append(self._relative(folder))
            return
        for entry in os.scandir(folder):
            if not entry.name.startswith(".") and entry.name != "__MACOSX":
                self._add(entry)

    def _add(self, entry: os.DirEntry) -> None:
        if not entry.name.isprintable() and _SURROGATE.search(entry.name):
            raise UserError(f"The name {os.fsencode(entry.path)!r} is no valid Unicode: rename it.")
        if entry.is_symlink():
            _refuse_outside(Path(entry.path), self.root, self.allow_outside)
        path = self._relative(Path(entry.path))
        if entry.is_dir() and _NO_CLASS.fullmatch(entry.name):
            log.warning("%s: the folder %s is no class by its name and is passed over.", self.root, path)
        elif entry.is_dir():
            self.folders.append(path)
            self.walk(Path(entry.path))
        else:
            self.files.append(path)

    def choose_kind(self) -> None:
        """Divide the files into those of the kind that most of them have, and others."""
        found = {kind.name: [path for path in self.files if kind.is_file_name(path)] for kind in _kinds()}
        self.kind = max(reversed(_kinds()), key=lambda kind: len(found[kind.name]))
        self.inputs = found[self.kind.name]
        self.others = sorted(set(self.files) - set(self.inputs))
        for kind in _kinds():
            if kind is not self.kind and found[kind.name]:
                log.warning("%s: %d %s are passed over; most files are %s.", self.root, len(found[kind.name]), kind.plural,
                            self.kind.plural)  # fmt: skip

    def describe_others(self) -> str | None:
        """Return a warning about files that look like inputs and are none that can be read; None without any."""
        kinds = [self.kind] if self.inputs else _kinds()
        return next(filter(None, (kind.describe_passed_over(self.others) for kind in kinds)), None)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def without_inputs(self, splits: set[str]) -> list[str]:
        """Folders of the first level, or of a class of `splits`, that hold no input, and no run or notes either."""
        level = [path for path in self.folders if "/" not in path or path.rpartition("/")[0] in splits]
        filled = {str(folder) for path in [*self.inputs, *self.runs] for folder in PurePosixPath(path).parents}
        return sorted(path for path in level if path not in filled and not self._holds_notes(path))

    def _holds_notes(self, folder: str) -> bool:
        files = [path for path in self.others if path.startswith(f"{folder}/")]
        return bool(files) and not self.kind.describe_passed_over(files)


def _kinds() -> list[ModalityKind]:
    """Return the kinds whose inputs are files, in the order in which they are asked."""
    return [kind for kind in by_preference() if kind.files]


def _log_left_out(root: Path, others: list[str], empty: list[str], kind: ModalityKind) -> None:
    """Say which files are no inputs, and which folders hold none."""
    if passed_over := kind.describe_passed_over(others):
        classes = Counter(path.split("/")[-2] for path in others if "/" in path and kind.describe_passed_over([path]))
        log.warning(
            "%s: %s Most in: %s.", root, passed_over, _few([f"{name} {n}" for name, n in classes.most_common()])
        )
    if empty:
        log.warning("%s: folders without %s are no classes: %s.", root, kind.describe_input(), _few(empty))


def _refuse_outside(link: Path, root: Path, allow_outside: bool) -> None:
    if not allow_outside and not link.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{link} is a link that leads out of the data folder, to {link.resolve()}. "
            "If that is meant: data.allow_outside=true."
        )


def _by_split(tree: Tree) -> dict[str, tuple[str, list[str]]]:
    """Per split the folder it stands in ("" for the root) and its files; "all" where the folder is not divided."""
    root, files, kind = tree.root, sorted(tree.inputs), tree.kind
    tops = {path.split("/")[0] for path in files if "/" in path}
    split_tops = {top for top in tops if top.lower() in SPLIT_WORDS and _depth(files, top) >= 3}
    if not split_tops:
        _refuse_only_splits(root, tops, kind)
        return {split: ("", listed) for split, listed in _listed(tree, files).items()} or {"all": ("", files)}
    strangers = sorted({path.split("/")[0] for path in files} - split_tops)
    if strangers:
        raise UserError(
            f"{root} holds the splits {', '.join(sorted(split_tops))} and beside them {kind.plural} in {_few(strangers)}. "
            f"Inside a split, {kind.plural} stand in one sub-folder per class; {kind.plural} without a label do not belong here "
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


def _listed(tree: Tree, files: list[str]) -> dict[str, list[str]]:
    """Return the parts that lists such as testing_list.txt or meta/train.txt name; without one for training, the rest.

    A list holds one path a line, with or without its suffix.
    """
    known = {name: path for path in files for name in (path, path.rpartition(".")[0])}
    parts: dict[str, list[str]] = {}
    for path in (path for path in tree.others if path.endswith(".txt") and path.count("/") < 2):
        split = SPLIT_WORDS.get(_LIST.sub("", PurePosixPath(path).stem.lower()))
        lines = (tree.root / path).read_text(encoding="utf-8", errors="replace").split("\n") if split else []
        named = [line.strip().removeprefix("./") for line in lines if line.strip()]
        found = [known[name] for name in dict.fromkeys(named) if name in known]
        if split and named and len(found) >= LISTED * len(named) and split not in parts:
            parts[split] = sorted(found)
            log.info("%s: the %s part is the %d files that %s lists.", tree.root, split, len(found), path)
    rest = sorted(set(files) - {path for part in parts.values() for path in part})
    if parts and rest and "train" not in parts:
        parts["train"] = rest
    elif parts and rest:
        log.warning("%s: %d files stand in no list and are left out.", tree.root, len(rest))
    return in_order(parts) if "train" in parts else {}


def _refuse_only_splits(root: Path, tops: set[str], kind: ModalityKind) -> None:
    """Raise `UserError` where all folders are called like splits: they are no classes."""
    if tops and all(top.lower() in SPLIT_WORDS for top in tops):
        hints = "".join(filter(None, (tables_hint(root / top) for top in sorted(tops))))
        raise UserError(
            f"The folders of {root} are splits ({', '.join(sorted(tops))}) without class folders inside, so that no {kind.noun} "
            "has a label. Expected one sub-folder per class in each, or a table with the columns path and label; nothing "
            f"is read out of file names.{hints}"
        )


def _depth(files: list[str], top: str) -> int:
    """How many parts the shortest path below `top` has: 2 for `top/x.png`, 3 for `top/class/x.png`."""
    return min(path.count("/") + 1 for path in files if path.startswith(f"{top}/"))


def _rows(root: Path, under: str, files: list[str], kind: ModalityKind) -> pd.DataFrame:
    inside = [path[len(under) + 1 :] if under else path for path in files]
    _check_levels(root / under, inside, kind)
    return pd.DataFrame({"path": files, "label": [path.split("/")[0] for path in inside]}, dtype=object)


def _check_levels(folder: Path, files: list[str], kind: ModalityKind) -> None:
    loose = [path for path in files if "/" not in path]
    if loose:
        raise UserError(
            f"{len(loose)} of {len(files)} {kind.plural} stand in {folder} itself, such as {loose[0]!r}: "
            f"expected one sub-folder per class.{tables_hint(folder)}"
        )
    if all(path.count("/") > 1 for path in files):
        outer, inner = (sorted({path.split("/")[level] for path in files}) for level in (0, 1))
        hints = "".join(f" or data.train={folder / top}" for top in outer[:3])
        raise UserError(
            f"It is unclear which folders of {folder} are the classes: {_few(outer)}, or one level below "
            f"{_few(inner)}. Point to the folder that holds the class folders:{hints[3:]}.{tables_hint(folder)}"
        )
    deep = Counter(path.split("/")[0] for path in files if path.count("/") > 1)
    if deep:
        log.info("%s deeper than their class folder count for that class: %s.", kind.plural.capitalize(), dict(deep))


def tables_hint(folder: Path) -> str:
    """Return a sentence that names the tables in a folder; "" where there are none."""
    from hftransfer.data.tables import READERS

    tables = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in READERS)
    return (
        f" If a table there holds the labels, name it: {_few([str(folder / name) for name in tables])}."
        if tables
        else ""
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
