"""Zips that people send: unpacked whole or not at all, and nothing of them leaves its folder."""

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from hftransfer.apps.uploads import BROKEN_ZIP, hidden, leaves
from hftransfer.core.errors import UserError
from hftransfer.core.files import replacing

MOST_FILES = 100_000
MAX_UNPACKED = 4 * 2**30  # bytes


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip of class folders or tables as `target`, whole or not at all.

    A single folder around everything is left out. Raises `UserError` for names that leave the folder, links,
    more than `MAX_UNPACKED` bytes or `MOST_FILES` files, and a broken archive.
    """
    try:
        with zipfile.ZipFile(archive) as opened, replacing(target) as unfinished:
            entries = _checked(opened, archive.name)
            around = _around(entries)
            for entry in entries:
                place = unfinished.joinpath(*PurePosixPath(entry.filename).parts[around:])
                place.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, place.open("xb") as file:
                    shutil.copyfileobj(source, file)  # zipfile stops at the size that the entry declares
    except BROKEN_ZIP as error:
        raise UserError(f"Cannot unpack {archive.name}: {error}. Zip the files again, without a password.") from None


def _checked(opened: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    entries = [entry for entry in opened.infolist() if not entry.is_dir()]
    for entry in entries:
        if leaves(entry):
            raise UserError(
                f"{name} holds {entry.filename!r}, which points outside of the archive. Zip the plain folder."
            )
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED:
        raise UserError(f"{name} is larger than {MAX_UNPACKED / 2**30:.0f} GB when unpacked. Unpack it by hand.")
    kept = [entry for entry in entries if not hidden(entry.filename)]
    if not 0 < len(kept) <= MOST_FILES:
        raise UserError(f"{name} holds {len(kept):,} files; expected 1 to {MOST_FILES:,}.")
    return kept


def _around(entries: Sequence[zipfile.ZipInfo]) -> int:
    """Return how many folders stand around everything: 1 where all paths begin alike, and go on with a folder, else 0."""
    parts = [PurePosixPath(entry.filename).parts for entry in entries]
    deep = all(len(each) > 2 for each in parts)
    return int(deep and len({each[0] for each in parts}) == 1)
