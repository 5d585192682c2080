"""The folder of a studio: the data and runs in it, and the files that people send. Nothing outside of it is named."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json, write_json
from hftransfer.data.sources import SPLIT_WORDS
from hftransfer.runs.folder import COMPLETE, holds_run
from hftransfer.studio.archives import unpack

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".conll")
MOST_SHOWN = 200


@dataclass(frozen=True)
class Place:
    """One folder; every path is given relative to it, with forward slashes."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def path(self, name: str) -> Path:
        """Return the path called `name`. Raises `UserError` where there is none, or where it lies elsewhere."""
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise UserError(f"{name} lies outside of {self.root}: start the studio in a folder that holds both.")
        if not path.exists():
            raise UserError(f"There is no {name} in {self.root}.")
        return path

    def data(self) -> list[str]:
        """Return what may be a data set: tables, and folders that hold folders, two levels deep."""
        found = [path.relative_to(self.root).as_posix() for path in _data_in(self.root, 2)]
        return (["."] if _has_class_folders(self.root) else []) + sorted(found)[:MOST_SHOWN]

    def checkpoints(self) -> list[str]:
        """Return the folders with a model of transformers, but for those of runs."""
        found = [path.parent for depth in ("*", "*/*") for path in self.root.glob(f"{depth}/config.json")]
        return sorted(path.relative_to(self.root).as_posix() for path in found if not holds_run(path.parent))

    def run_names(self) -> list[str]:
        """Return the finished runs, the latest first."""
        found = [path.parent for path in self.runs.glob(f"*/{COMPLETE}")]
        return [path.name for path in sorted(found, key=lambda path: -(path / COMPLETE).stat().st_mtime)]

    def run(self, name: str) -> Path:
        """Return the folder of a run. Raises `UserError` where there is none of that name."""
        if name not in self.run_names():
            raise UserError(f"There is no run {name!r}: choose one of the list.")
        return self.runs / name

    def free_run_name(self, wanted: str) -> str:
        """Return `wanted`, or with a number where there is such a run."""
        taken = {path.name.removesuffix(".incomplete") for path in self.runs.glob("*")}
        numbered = (wanted if number == 1 else f"{wanted}-{number}" for number in range(1, 10**6))
        return next(name for name in numbered if name not in taken)

    def choices(self) -> dict[str, str]:
        """Return what was chosen on the pages, which a reload shows again."""
        path = self.runs / ".studio" / "choices.json"
        return read_json(path) if path.is_file() else {}

    def remember(self, **choices: str | None) -> None:
        kept = self.choices() | {name: value for name, value in choices.items() if value}
        write_json(self.runs / ".studio" / "choices.json", kept)

    def receive(self, sent: Path) -> str:
        """Keep a table, or unpack a zip into a folder of its name, and return what it is called here. Raises `UserError`."""
        suffix = sent.suffix.lower()
        if suffix not in (".zip", *TABLES):
            raise UserError(f"Expected a zip or a table ({', '.join(TABLES)}), found {sent.name}.")
        target = self._free(sent.stem, "" if suffix == ".zip" else suffix)
        if suffix == ".zip":
            unpack(sent, target)
        else:
            shutil.copyfile(sent, target)
        return target.relative_to(self.root).as_posix()

    def _free(self, stem: str, suffix: str) -> Path:
        stem = plain_name(stem) or "data"
        named = (self.root / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}" for number in range(1, 10**6))
        return next(path for path in named if not path.exists())


def plain_name(text: str) -> str:
    """Return a name for a file or folder: letters, digits and a few signs, not hidden, without separators."""
    kept = "".join(sign if sign.isalnum() or sign in " ._-+" else "-" for sign in text.strip())
    return kept.lstrip(". ")[:80].strip()


def _data_in(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__")) or path.is_symlink() or (path.name == "runs" and path.is_dir()):
            continue
        if path.is_file() and path.suffix.lower() in TABLES and not path.name.endswith((".patch.jsonl", "config.json")):
            yield path
        elif path.is_dir() and not holds_run(path) and not (path / "config.json").is_file():
            if _has_class_folders(path):
                yield path
            elif depth > 1:
                yield from _data_in(path, depth - 1)


def _has_class_folders(folder: Path) -> bool:
    """Whether at least two folders with files lie in it, or one of them is a split with such folders."""
    inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    inner = [
        path for path in inner if path.name != "runs" and not holds_run(path) and not (path / "config.json").is_file()
    ]
    if any(path.name.lower() in SPLIT_WORDS and _has_class_folders(path) for path in inner):
        return True
    return sum(any(file.is_file() for file in path.iterdir()) for path in inner) >= 2
