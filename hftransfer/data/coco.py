"""COCO JSON with outlines of objects, drawn as masks: polygons, and run lengths as lists or packed as text."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.core.mask_files import MOST_CLASSES, encode_mask
from hftransfer.data.encoding import decode_utf8
from hftransfer.data.mask_classes import BACKGROUND
from hftransfer.data.mask_folders import INPUT, LABEL, split_of
from hftransfer.data.sources import MASK, MaskFacts, Source, describe_counts, in_order
from hftransfer.data.values import Fault
from hftransfer.modalities import ModalityKind, by_preference
from hftransfer.modalities.inspection import each_in_threads

log = logging.getLogger(__name__)

KEYS = {"images", "annotations", "categories"}
_HEAD = 2**16  # bytes in which one of the keys stands


def coco_content(path: Path) -> dict[str, Any] | None:
    """Return the content of a COCO file: an object with images, annotations and categories; None for another file."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD).lstrip(b"\xef\xbb\xbf \r\n\t")
    if not head.startswith(b"{") or not any(f'"{key}"'.encode() in head for key in KEYS):
        return None
    try:
        content = json.loads(decode_utf8(path))
    except (ValueError, RecursionError):
        return None
    return content if KEYS <= content.keys() and all(isinstance(content[key], list) for key in KEYS) else None


def read_coco_folder(root: Path) -> Source | None:
    """Return the images of the COCO files with outlines in a folder, in `annotations/` or its folders of splits, if any."""
    candidates = dict.fromkeys([*sorted(root.glob("*.json")), *sorted(root.glob("*/*.json"))])
    contents = {path: content for path in candidates if (content := coco_content(path)) and _outlined(content)}
    return _read(contents, root) if contents else None


def read_coco_file(path: Path) -> Source | None:
    """Return the images of a COCO file, which stand below its folder, or below that of `annotations/`; None for another."""
    content = coco_content(path)
    root = path.parent.parent if path.parent.name.lower() in ("annotations", "labels") else path.parent
    return None if content is None else _read({path: content}, root)


def _outlined(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in content["annotations"] if entry.get("segmentation")]


def _read(contents: dict[Path, dict[str, Any]], root: Path) -> Source:
    paths = list(contents)
    classes = _classes(contents, root)
    kind = next(kind for kind in by_preference() if kind.content == "picture")
    finder = _Finder(root, kind)
    parts, overlap = defaultdict(list), 0
    for path, content in contents.items():
        frame, covered = _drawn(path, content, classes, finder)
        split = split_of(f"{path.relative_to(root).as_posix()}") or split_of(f"{_words(path.stem)}/x")
        parts[split or "all"].append(frame)
        overlap += covered
    if "all" in parts and len(parts) > 1 or any(len(frames) > 1 for frames in parts.values()):
        raise UserError(
            f"{root} holds several COCO files for one part: {', '.join(str(path.relative_to(root)) for path in paths)}. "
            "Name one with data.train, and others with data.validation and data.test."
        )
    frames = {split: frames[0] for split, frames in parts.items()}
    frames = frames if "all" in frames else in_order(frames)
    log.info("%s: COCO outlines of %d classes, drawn as masks; %s.", root, len(classes.names), describe_counts(frames))
    if overlap:
        log.warning("%s: %d pixels belong to annotations of several classes; the later one wins.", root, overlap)
    return Source(
        str(paths[0] if len(paths) == 1 else root), "mask folder", frames, root, {LABEL: list(classes.names)},
        {INPUT: kind.feature, LABEL: MASK}, masks=MaskFacts(overlap=overlap),
    )  # fmt: skip


def _words(stem: str) -> str:
    """Return the split in a name such as instances_train2017."""
    return next((word for word in stem.replace("-", "_").split("_") if split_of(f"{word}/x")), stem)


# --- classes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Categories:
    names: tuple[str, ...]
    number: dict[int, int]  # id of a category -> class


def _classes(contents: dict[Path, dict], root: Path) -> _Categories:
    """Return the classes of all files, background first; categories that nothing is drawn of are left out."""
    outlined = [entry for content in contents.values() for entry in _outlined(content)]
    if not outlined:
        raise UserError(f"{root}: the annotations have no outlines (segmentation), only boxes: no mask can be drawn.")
    named = {entry["id"]: str(entry["name"]) for content in contents.values() for entry in content["categories"]}
    used = Counter(entry["category_id"] for entry in outlined)
    unknown = sorted(set(used) - set(named))
    if unknown:
        raise UserError(
            f"{root}: annotations of the category {unknown[0]}, which the list of categories does not name."
        )
    unused = [name for number, name in named.items() if number not in used]
    if unused:
        log.info("%s: nothing is drawn of %s: no class.", root, ", ".join(unused[:8]))
    names = tuple(dict.fromkeys(named[number] for number in sorted(used) if named[number].lower() not in BACKGROUND))
    if len(names) >= MOST_CLASSES:
        raise UserError(f"{root}: {len(names)} categories are too many: a mask holds at most {MOST_CLASSES - 1}.")
    names = ("background", *names)
    return _Categories(names, {n: names.index(named[n]) if named[n] in names else 0 for n in used})


# --- pictures ---------------------------------------------------------------------------------------------------------


class _Finder:
    """Find the file of an image: of those with its name, the one whose path agrees most with that in the JSON."""

    def __init__(self, root: Path, kind: ModalityKind):
        self.root = root
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for path in sorted(root.rglob("*")):
            if kind.is_file_name(path.name):
                self.by_name[path.name].append(path.relative_to(root).as_posix())

    def path(self, name: str, json_file: Path) -> str:
        """Return the path below the root; that of the JSON where there is no such file."""
        wanted = PurePosixPath(name.replace("\\", "/"))
        found = self.by_name.get(wanted.name, [])
        beside = json_file.parent.relative_to(self.root).as_posix()
        split = split_of(f"{_words(json_file.stem)}/x")

        def agreement(path: str) -> tuple:
            own = PurePosixPath(path).parts[::-1]
            common = next((n for n, pair in enumerate(zip(own, wanted.parts[::-1], strict=False)) if pair[0] != pair[1]),
                          min(len(own), len(wanted.parts)))  # fmt: skip
            return common, path.startswith(f"{beside}/"), split is not None and split_of(path) == split, -len(own)

        return max(found, key=agreement) if found else str(wanted)


# --- drawing ----------------------------------------------------------------------------------------------------------


def _drawn(path: Path, content: dict, classes: _Categories, finder: _Finder) -> tuple[pd.DataFrame, int]:
    """Return image and mask of each image of a file, and how many pixels several classes claim."""
    annotations = defaultdict(list)
    for entry in _outlined(content):
        annotations[entry["image_id"]].append(entry)

    def draw(image: dict) -> tuple[bytes | Fault, int]:
        try:
            mask, covered = drawn(annotations.get(image["id"], []), (image["height"], image["width"]), classes.number)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return Fault(f"its outlines in {path.name} cannot be drawn: {error}"), 0
        return encode_mask(mask), covered

    found = each_in_threads(draw, content["images"], "drawing masks")
    empty = sum(image["id"] not in annotations for image in content["images"])
    labelled = bool(annotations)
    if empty and labelled:
        log.info("%s: %d of %d images have no outline: all background.", path, empty, len(content["images"]))
    rows = [finder.path(image["file_name"], path) for image in content["images"]]
    masks = [mask if labelled else None for mask, _ in found]
    return pd.DataFrame({INPUT: rows, LABEL: masks}, dtype=object), sum(covered for _, covered in found)


def drawn(annotations: Sequence[dict], size: tuple[int, int], number: dict[int, int]) -> tuple[np.ndarray, int]:
    """Return the mask (H, W) of annotations, later ones above, and how many pixels two classes claim."""
    mask, twice = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=bool)
    for entry in annotations:
        inside, place = pixels_of(entry["segmentation"], size), number[entry["category_id"]]
        twice |= inside & (mask > 0) & (mask != place)
        mask[inside] = place
    return mask, int(twice.sum())


def pixels_of(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return which pixels (H, W) an outline covers: polygons as lists x, y, x, y, …, or run lengths."""
    if isinstance(segmentation, dict):
        return from_runs(segmentation["counts"], tuple(segmentation.get("size", size)), size)
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    inside = np.zeros(size, dtype=bool)
    for polygon in polygons:
        inside |= polygon_inside(np.asarray(polygon, dtype=float).reshape(-1, 2), size)
    return inside


def polygon_inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels (H, W) whose centre lies inside of a polygon (P, 2) of x and y, by the even-odd rule."""
    height, width = size
    flips = np.zeros((height, width + 1), dtype=np.int32)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        low, high = sorted((y0, y1))
        rows = np.arange(max(0, int(np.ceil(low - 0.5))), min(height, int(np.ceil(high - 0.5))))
        crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        flips[rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)] += 1
    return np.cumsum(flips, axis=1)[:, :width] % 2 == 1


def from_runs(counts: str | Sequence[int], own: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the pixels (H, W) of run lengths, which go down the columns and begin outside.

    Raises `ValueError` where they do not fill the image.
    """
    runs = unpacked_runs(counts) if isinstance(counts, str | bytes) else list(counts)
    if tuple(own) != tuple(size) or sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(runs)} pixels for an image of {size[1]} x {size[0]}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size, order="F")


def unpacked_runs(text: str | bytes) -> list[int]:
    """Return the run lengths in a text of COCO: five bits a character, from the third on the difference to two before."""
    codes = text if isinstance(text, bytes) else text.encode("ascii")
    runs: list[int] = []
    value = shift = 0
    for code in codes:
        piece = code - 48
        value |= (piece & 31) << shift
        shift += 5
        if piece & 32:
            continue
        if piece & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs
