"""Which class a value or a colour of a mask means: from the configuration, or from a file beside the masks.

Read are a list of names (`classes.txt`, `labels.txt`), labelmap.txt of CVAT, tables (`_classes.csv` of Roboflow,
`class_dict.csv` with r, g, b) and JSON (a list of names, `{"0": "background"}`, `id2label`, or objects with name and id).
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hftransfer.core.errors import UserError
from hftransfer.data.encoding import decode_utf8
from hftransfer.data.sources import missing

FILES = (
    "classes.txt", "labels.txt", "labelmap.txt", "label_map.txt", "class_names.txt", "_classes.csv", "classes.csv",
    "class_dict.csv", "classes.json", "id2label.json", "labels.json",
)  # fmt: skip
BACKGROUND = {"background", "_background_", "__background__", "bg", "unlabeled", "unlabelled", "void"}
IGNORE = {"__ignore__", "_ignore_", "ignore"}


@dataclass(frozen=True)
class Classes:
    """The names of classes, and the class (its place in `names`) that a value or a colour (24 bits) of a mask means.

    `listed`: the names stand in a list without numbers, which may leave the background out.
    """

    names: tuple[str, ...]
    values: dict[int, int] = field(default_factory=dict)
    colours: dict[int, int] = field(default_factory=dict)
    listed: bool = False
    origin: str = "data.classes"

    def with_background(self) -> "Classes":
        """Return these classes with a background in front that their list leaves out."""
        return listed_classes(["background", *self.names], self.origin)


def given_classes(option: str | list[str] | dict[str | int, Any]) -> Classes:
    """Return the classes that `data.classes` gives: a file, names, a value or colour for each name, or the reverse."""
    if isinstance(option, str):
        path = Path(option).expanduser()
        if not path.is_file():
            raise UserError(f"data.classes: {missing(path)}")
        return read_classes(path)
    if isinstance(option, list):
        return listed_classes(option, "data.classes")
    return _of_json(option, "data.classes")


def find_classes(folders: Iterable[Path]) -> Classes | None:
    """Return the classes of the first file with a usual name in `folders`; None where there is none."""
    paths = (folder / name for folder in folders for name in FILES)
    path = next((path for path in paths if path.is_file()), None)
    return None if path is None else read_classes(path)


def read_classes(path: Path) -> Classes:
    """Return the classes that a file names. Raises `UserError` for one that cannot be read."""
    text = decode_utf8(path)
    try:
        if path.suffix.lower() == ".json":
            return _of_json(json.loads(text), str(path))
        if path.suffix.lower() == ".csv":
            return _of_table(list(csv.reader(text.splitlines(), skipinitialspace=True)), str(path))
        return _of_lines([line.strip() for line in text.splitlines()], str(path))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{path} names no classes that can be read ({type(error).__name__}: {error}). Expected one name on each line, or "
            'JSON such as {"0": "background", "1": "crack"}. Another file is named with data.classes=FILE.'
        ) from error


def _of_lines(lines: Sequence[str], origin: str) -> Classes:
    lines = [line for line in lines if line and not line.startswith("#")]
    labelmap = [re.fullmatch(r"([^:]+):(\d+),(\d+),(\d+):.*", line) for line in lines]
    if lines and all(labelmap):  # of CVAT: name:r,g,b:parts:actions
        colours = [packed([int(each) for each in found.groups()[1:]]) for found in labelmap]
        return _made([(found[1], row, colours[row]) for row, found in enumerate(labelmap)], origin)
    numbered = [re.fullmatch(r"(\d+)\s*[\s:,;=]\s*(\D.*)", line) for line in lines]
    if lines and all(numbered):
        return _of_pairs([(found[2], int(found[1])) for found in numbered], origin)
    return listed_classes([line for line in lines if line.lower() not in IGNORE], origin)


def _of_table(rows: Sequence[Sequence[str]], origin: str) -> Classes:
    header = [name.strip().lower() for name in rows[0]]
    names = next(
        place for place, name in enumerate(header) if name in ("class", "name", "label", "class_name", "classes")
    )
    rows = [row for row in rows[1:] if row]
    if {"r", "g", "b"} <= set(header):
        places = [header.index(channel) for channel in "rgb"]
        return _of_pairs([(row[names], [int(row[place]) for place in places]) for row in rows], origin)
    value = next((place for place, name in enumerate(header) if name in ("pixel value", "value", "id", "index")), None)
    if value is None:
        return listed_classes([row[names] for row in rows], origin)
    return _of_pairs([(row[names], int(row[value])) for row in rows], origin)


def _of_json(content: Any, origin: str) -> Classes:
    content = content.get("id2label", content) if isinstance(content, dict) else content
    if isinstance(content, dict) and all(re.fullmatch(r"\d+|#[0-9a-fA-F]{6}", str(key)) for key in content):
        pairs = [(name, int(key) if str(key).isdigit() else str(key)) for key, name in content.items()]
        return _of_pairs(pairs, origin)
    if isinstance(content, dict):
        return _of_pairs(content.items(), origin)
    if all(isinstance(entry, str) for entry in content):
        return listed_classes(content, origin)
    pairs = [(entry["name"], entry.get("color", entry.get("colour", entry.get("id")))) for entry in content]
    return _of_pairs(pairs, origin)


def listed_classes(names: Sequence[str], origin: str) -> Classes:
    """Return classes whose values are their places in a list."""
    names = [name.strip() for name in names]
    _refuse_twice(names, origin)
    return _made([(name, place, None) for place, name in enumerate(names)], origin, listed=True)


def _of_pairs(pairs: Iterable[tuple[Any, Any]], origin: str) -> Classes:
    """Return classes from pairs of a name and its value or colour, in the order of values; background first."""
    read = [(str(name).strip(), *_value_or_colour(value, origin)) for name, value in pairs]
    return _made(sorted(read, key=lambda each: each[1]) if all(each[2] is None for each in read) else read, origin)


def _made(entries: Sequence[tuple[str, int | None, int | None]], origin: str, listed: bool = False) -> Classes:
    """Return classes from names with value and colour, in this order but for the background, which comes first."""
    ordered = sorted(entries, key=lambda each: each[0].lower() not in BACKGROUND)
    names = tuple(dict.fromkeys(name for name, *_ in ordered))  # several values may mean one class
    values = {value: names.index(name) for name, value, _ in ordered if value is not None}
    colours = {colour: names.index(name) for name, _, colour in ordered if colour is not None}
    return Classes(names, values, colours, listed, origin)


def _value_or_colour(given: Any, origin: str) -> tuple[int | None, int | None]:
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given, None
    if isinstance(given, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", given):
        return None, int(given.lstrip("#"), 16)
    if isinstance(given, list | tuple) and len(given) == 3 and all(isinstance(e, int) and 0 <= e <= 255 for e in given):
        return None, packed(given)
    raise UserError(
        f"{origin}: {given!r} is neither the value of a pixel (0, 1, …) nor a colour ([255,0,0] or '#ff0000')."
    )


def _refuse_twice(names: Sequence[str], origin: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{origin} names {', '.join(map(repr, twice))} more than once.")


def packed(colour: Sequence[int]) -> int:
    """Return a colour (red, green, blue) as one number of 24 bits."""
    red, green, blue = colour
    return (red << 16) | (green << 8) | blue


def written(colour: int) -> str:
    """Return a colour of 24 bits as people write it, such as #ff0000."""
    return f"#{colour:06x}"


def named(values: Mapping[int, int], names: Sequence[str]) -> str:
    """Return the values of masks with the names of their classes, for messages."""
    return ", ".join(f"{value} = {names[place]}" for value, place in sorted(values.items())[:12])
