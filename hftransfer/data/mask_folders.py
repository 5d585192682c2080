"""Folders of images with a mask for each: `images/` beside `masks/`, masks among the images, or a template of paths.

Folders named after splits may stand above or below; the lists of VOC (`ImageSets/Segmentation/train.txt`) count too.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.data.folders import Tree
from hftransfer.data.sources import MASK, SPLIT_WORDS, Source, describe_counts, in_order

log = logging.getLogger(__name__)

INPUT, LABEL = "path", "mask"  # the columns of such a source
IMAGES = (
    "images",
    "image",
    "imgs",
    "img",
    "jpegimages",
    "pictures",
    "photos",
    "inputs",
    "input",
    "frames",
    "rgb",
    "leftimg8bit",
)
MASKS = (
    "1st_manual", "masks", "mask", "segmentationclass", "labels", "label", "annotations", "annotation", "gt", "ground_truth",
    "groundtruth", "segmentation", "segmentations", "segmentation_masks", "seg", "annots", "targets", "target", "gtfine",
    "gtcoarse",
)  # fmt: skip
# train_masks beside train, Training_GroundTruth beside Training_Input.
_FOLDER_OF_MASKS = re.compile(
    r"[-_ ](masks?|labels?|ground_?truth|gt|annot(ation)?s?|segmentations?|seg)$", re.IGNORECASE
)
_FOLDER_OF_IMAGES = re.compile(r"[-_ ](images?|imgs?|inputs?|photos?|rgb)$", re.IGNORECASE)
_OF_MASK = re.compile(
    r"[-_ ](gtfine_labelids|gtcoarse_labelids|masks?|manual1?|labels?|l|segmentation|seg|gt|groundtruth|annotation|labelids)$",
    re.IGNORECASE,
)
_IDS = re.compile(r"label(train)?ids$", re.IGNORECASE)
DRAWN = 0.9  # of the neighbouring pixels of a mask are equal; of a photo far fewer
_OF_IMAGE = re.compile(r"[-_ ](image|img|sat|rgb|leftimg8bit|training|test)$", re.IGNORECASE)


def read_mask_folder(tree: Tree, template: str | None = None) -> Source | None:
    """Return the images of a folder with the paths of their masks (None without one); None where there are no masks.

    `template` is the path of a mask, with {parent}, {stem}, {name} and {root} of its image. Raises `UserError` where several
    masks fit one image, or none fits any.
    """
    if tree.kind.content != "picture":
        return None
    root, images = tree.root, sorted(tree.inputs)
    pairs = _by_template(root, images, template) if template else _found(root, images)
    if not pairs:
        return None
    parts = _parts(root, pairs)
    lacking = [path for path, mask in pairs.items() if mask is None]
    frames = {split: _frame(paths, pairs) for split, paths in parts.items()}
    log.info(
        "%s: images with a mask: %d of %d; %s.", root, len(pairs) - len(lacking), len(pairs), describe_counts(frames)
    )
    if lacking:
        log.warning("%s: %d images have no mask and are unlabelled, such as %s.", root, len(lacking), lacking[0])
    return Source(str(root), "mask folder", frames, root, declared={INPUT: tree.kind.feature, LABEL: MASK})


def _frame(paths: list[str], pairs: dict[str, str | None]) -> pd.DataFrame:
    return pd.DataFrame({INPUT: paths, LABEL: [pairs[path] for path in paths]}, dtype=object)


def without_masks(root: Path, files: list[str]) -> list[str]:
    """Return the images below a folder that are no masks of others."""
    images = [Path(path).relative_to(root).as_posix() for path in files]
    try:
        pairs = _found(root, images)
    except UserError:  # names that fit none: all are taken for images
        return files
    masks = {mask for mask in pairs.values() if mask is not None}
    if masks:
        log.info("%s: %d masks of images are passed over.", root, len(masks))
    return [path for path, image in zip(files, images, strict=True) if image not in masks]


# --- pairs ------------------------------------------------------------------------------------------------------------


def _by_template(root: Path, images: list[str], template: str) -> dict[str, str | None]:
    masks = {path: masked(template, path, root) for path in images}
    found = {mask for mask in masks.values() if (root / mask).is_file()}
    if not found:
        path, mask = next(iter(masks.items()), ("", ""))
        raise UserError(
            f"data.mask={template!r} names no file: the mask of {path} would be {mask}. The fields are {{parent}}, {{stem}}, "
            "{name} and {root} of the image."
        )
    return {path: mask if mask in found else None for path, mask in masks.items() if path not in found}


def masked(template: str, path: str, root: Path) -> str:
    """Return the path of the mask of an image, relative to `root` as the image's own is."""
    whole = root / path
    try:
        mask = template.format(parent=whole.parent, stem=whole.stem, name=whole.name, root=root)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"data.mask={template!r}: {error} is no field. There are {{parent}}, {{stem}}, {{name}} and {{root}}, for example "
            "data.mask='{parent}/../masks/{stem}_mask.png'."
        ) from error
    return Path(os.path.relpath(os.path.normpath(mask), root)).as_posix()


def is_for_masks(folder: str) -> bool:
    """Whether the name of a folder says that masks stand in it, and not what they show."""
    return folder.lower() in MASKS or _FOLDER_OF_MASKS.search(folder) is not None


def _found(root: Path, images: list[str]) -> dict[str, str | None]:
    return _beside(root, images) or _named_alike(root, images) or _among(root, images)


def _beside(root: Path, images: list[str]) -> dict[str, str | None]:
    """Return the pairs of every folder of images with folders of masks beside it."""
    folders = defaultdict(lambda: defaultdict(list))  # place above -> folder -> files, as paths below the folder
    for path in images:
        parts = path.split("/")
        for level, name in enumerate(parts[:-1]):
            if name.lower() in IMAGES or name.lower() in MASKS:
                folders["/".join(parts[:level])][name].append("/".join(parts[level + 1 :]))
                break
    pairs: dict[str, str | None] = {}
    for above, found in folders.items():
        inputs = [name for name in found if name.lower() in IMAGES]
        masks = sorted((name for name in found if name.lower() in MASKS), key=lambda name: MASKS.index(name.lower()))
        for name in inputs if masks else ():
            pairs |= _best(root, above, name, {mask: found[mask] for mask in masks}, found[name])
    return pairs


def _named_alike(root: Path, images: list[str]) -> dict[str, str | None]:
    """Return the pairs of folders such as train/ and train_masks/, where every drawn file has an image of its name."""
    folders = defaultdict(lambda: defaultdict(list))
    for path in images:
        above, _, name = path.rpartition("/")
        above, _, folder = above.rpartition("/")
        folders[above][folder].append(name)
    pairs: dict[str, str | None] = {}
    for above, found in folders.items():
        before = f"{above}/" if above else ""
        for masks in (name for name in found if _FOLDER_OF_MASKS.search(name)):
            if (folder := _images_of(masks, found)) and _are_masks(root / before / masks, found[masks]):
                matched = _matched(found[folder], found[masks], f"{root}/{before}{folder}")
                if {mask for mask in matched.values() if mask} == set(found[masks]):
                    pairs |= {
                        f"{before}{folder}/{path}": mask and f"{before}{masks}/{mask}" for path, mask in matched.items()
                    }
    return pairs


def _images_of(masks: str, folders: Iterable[str]) -> str | None:
    """Return the folder of images that a folder of masks is named after; the only other one where no name fits."""
    stem = _FOLDER_OF_MASKS.sub("", masks).lower()
    others = [name for name in folders if not _FOLDER_OF_MASKS.search(name)]
    same = [name for name in others if stem in (name.lower(), _FOLDER_OF_IMAGES.sub("", name).lower())]
    return same[0] if len(same) == 1 else others[0] if len(others) == 1 and not same else None


def _are_masks(folder: Path, files: list[str]) -> bool:
    """Whether the first files of a folder are drawn: most neighbouring pixels are equal."""
    for name in sorted(files)[:3]:
        with Image.open(folder / name) as opened:
            pixels = np.asarray(opened.convert("L"), np.int16)
        if (abs(np.diff(pixels, axis=1)) <= 2).mean() < DRAWN:
            return False
    return True


def _best(root: Path, above: str, images: str, masks: dict[str, list[str]], files: list[str]) -> dict[str, str | None]:
    """Return the pairs with the folder of masks that has most of them. Raises `UserError` where none has any."""
    before = f"{above}/" if above else ""
    tried = {name: _matched(files, found, f"{root}/{before}{name}") for name, found in masks.items()}
    name = max(tried, key=lambda each: sum(mask is not None for mask in tried[each].values()))
    if not any(tried[name].values()):
        raise UserError(
            f"{root}: no name in {before}{name}/ fits one in {before}{images}/, such as {masks[name][0]} and {files[0]}. Say how "
            "masks are named, for example data.mask='{parent}/../masks/{stem}_mask.png'."
        )
    if len(tried) > 1:
        others = ", ".join(f"{before}{other}/" for other in tried if other != name)
        log.info("%s: the masks of %s%s/ are those in %s%s/ (not %s); data.mask says otherwise.",
                 root, before, images, before, name, others)  # fmt: skip
    return {f"{before}{images}/{path}": mask and f"{before}{name}/{mask}" for path, mask in tried[name].items()}


def _matched(images: list[str], masks: list[str], where: str) -> dict[str, str | None]:
    """Return the mask of each image: of the same path, else the only one with its name."""
    by_path, by_name = _by_key(masks, _OF_MASK), defaultdict(list)
    for key, paths in by_path.items():
        by_name[PurePosixPath(key).name] += paths
    result = {}
    for path in images:
        keys = [_key(path), _key(path, _OF_IMAGE)]
        found = next(filter(None, [*(by_path.get(key) for key in keys),
                                   *(by_name.get(PurePosixPath(key).name) for key in keys)]), [])  # fmt: skip
        found = [name for name in found if _IDS.search(_key(name))] or found  # Cityscapes draws each scene three times
        if len(found) > 1:
            raise UserError(
                f"{where}: {len(found)} masks fit the image {path}: {', '.join(sorted(found)[:4])}. Expected one mask with all "
                "classes for each image; data.mask says which, for example data.mask='{parent}/../masks/{stem}.png'."
            )
        result[path] = found[0] if found else None
    return result


def _by_key(masks: list[str], ending: re.Pattern) -> dict[str, list[str]]:
    """Return the masks by their path without suffix, and by that without the ending of masks."""
    found = defaultdict(list)
    for path in masks:
        for key in {_key(path), _key(path, ending)}:
            found[key].append(path)
    return found


def _key(path: str, ending: re.Pattern | None = None) -> str:
    stem = path.rpartition(".")[0] or path
    return (ending.sub("", stem) if ending else stem).lower()


def _among(root: Path, images: list[str]) -> dict[str, str | None]:
    """Return the pairs of masks that stand among their images (x.jpg, x_mask.png), where most images have one."""
    masks = {path for path in images if _OF_MASK.search(_key(path))}
    others = [path for path in images if path not in masks]
    pairs = _matched_in_folder(others, masks)
    found = sum(mask is not None for mask in pairs.values())
    return pairs if found and found == len(masks) and 2 * found >= len(others) else {}


def _matched_in_folder(images: list[str], masks: set[str]) -> dict[str, str | None]:
    keys = {_key(path, _OF_MASK): path for path in masks}
    return {path: keys.get(_key(path)) or keys.get(_key(path, _OF_IMAGE)) for path in images}


# --- parts ------------------------------------------------------------------------------------------------------------


def _parts(root: Path, pairs: dict[str, str | None]) -> dict[str, list[str]]:
    """Return the paths of each split, "all" where nothing divides them."""
    listed = _of_voc(root, pairs)
    if listed:
        return listed
    parts = defaultdict(list)
    for path in pairs:
        parts[split_of(path) or "all"].append(path)
    if "all" in parts and len(parts) > 1:
        named = ", ".join(sorted(set(parts) - {"all"}))
        raise UserError(
            f"{root} is divided into {named}, and {len(parts['all'])} images stand in none of these, such as "
            f"{parts['all'][0]}. Move them, or name the parts with data.train and data.test."
        )
    return parts if "all" in parts else in_order(parts)


def split_of(path: str) -> str | None:
    """Return the split that one of the folders of a path is named after, such as train2017."""
    words = (re.sub(r"[-_]?\d+$", "", name.lower()) for name in path.split("/")[:-1])
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def _of_voc(root: Path, pairs: dict[str, str | None]) -> dict[str, list[str]]:
    """Return the parts that the lists of Pascal VOC name; images in none of them take no part."""
    folder = next(iter(sorted(root.glob("**/ImageSets/Segmentation"))), None)
    if folder is None:
        return {}
    by_stem = {PurePosixPath(path).stem: path for path in pairs}
    parts: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.txt")):
        split = SPLIT_WORDS.get(file.stem.lower())
        names = file.read_text(encoding="utf-8").split()
        found = [by_stem[name] for name in names if name in by_stem]
        if split and found and split not in parts:
            parts[split] = found
    parts = in_order(parts) if "train" in parts else {}
    left = len(pairs) - len({path for paths in parts.values() for path in paths})
    if parts and left:
        log.info("%s: %d images stand in no list of %s and are left out.", root, left, folder)
    return parts
