"""Every input is looked at once before training: images are decoded whole, texts must not be empty."""

import hashlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
from tqdm import tqdm

from hftransfer.data.config import Modality
from hftransfer.images import UnreadableImage, open_image

_MANY = 500
_SURROGATE = re.compile("[\ud800-\udfff]")


def digest(*parts: str | bytes) -> str:
    """A content hash (16 hex digits) of texts or bytes, each set off from the next."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def verify(frame: pd.DataFrame, modality: Modality) -> tuple[pd.Series, pd.Series]:
    """For every row the content hash of its input and what is wrong with it (None where nothing is).

    Images are decoded in a thread pool (Pillow decodes without the interpreter lock), JPEGs at an eighth of their size:
    that reads the whole file and finds truncation just as well.
    """
    if modality == "text":
        pair = frame["input_pair"] if "input_pair" in frame else [None] * len(frame)
        found = [_check_text(first, second) for first, second in zip(frame["input"], pair, strict=True)]
    else:
        found = each(_check_image, list(frame["input"]), "checking images")
    digests, faults = zip(*found, strict=True) if found else ((), ())
    return (pd.Series(values, index=frame.index, dtype=object) for values in (digests, faults))


def each(function: Callable, items: list, what: str) -> list:
    """`function` of every item, in order, by one thread per core; a progress bar is shown when there are many."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(function, items), total=len(items), desc=what, disable=len(items) < _MANY))


def _check_text(text: str, pair: str | None) -> tuple[str, str | None]:
    texts = [text] if pair is None else [text, pair]
    if not all(part.strip() for part in texts):
        return "", "the text is empty"
    if any(_SURROGATE.search(part) for part in texts):
        return "", "the text is no valid Unicode (it holds half of a surrogate pair)"
    return digest(*texts), None


def _check_image(source: str | bytes) -> tuple[str, str | None]:
    try:
        content = source if isinstance(source, bytes) else _read(source)
        hashed = digest(content)
        open_image(content, at_least=1)
    except UnreadableImage as error:
        return "", error.reason
    return hashed, None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        open_image(path)  # says why in the same words as everywhere
        raise
