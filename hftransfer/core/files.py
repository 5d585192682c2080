"""Files: strict JSON written at once, removal, locks, and the folder of what can be made again."""

import errno
import json
import logging
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hftransfer.core.errors import UserError

logger = logging.getLogger(__name__)


def read_json(path: Path) -> Any:
    """Read JSON; the ends of an interval that is not known come back as NaN."""
    return json.loads(path.read_text(encoding="utf-8"), object_hook=_with_unknown_ends)


def _with_unknown_ends(found: dict[str, Any]) -> dict[str, Any]:
    if {"value", "low", "high"} <= found.keys():
        found |= {end: math.nan for end in ("low", "high") if found[end] is None}
    return found


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` for a file or folder; it takes the place of `path` when the block succeeds.

    So no reader ever sees half a file, and an error leaves nothing behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON whole or not at all. What is no number or infinite becomes null."""
    write_text(path, strict_json(value, indent=1) + "\n")


def strict_json(value: Any, indent: int | None = None) -> str:
    """Return JSON that every reader takes: null for what is no number or infinite; scalars of NumPy are numbers."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """Return plain values as strict JSON has them: null for what is no number or infinite."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if hasattr(value, "dtype"):  # a scalar of NumPy, which need not be imported for it
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove(path: Path) -> None:
    """Remove a file or a folder, where it is there."""
    path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def has_no_locks(error: OSError) -> bool:
    """Return whether a lock failed since the file system has none (NFS without its daemon, some Lustre mounts)."""
    return error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def cache_folder() -> Path:
    """Return where the package keeps what it can make again: `$HFTRANSFER_CACHE`, or `~/.cache/hftransfer`.

    Without a home folder that can be written (containers with an unknown user) it is a folder of the temporary ones.
    """
    named = os.environ.get("HFTRANSFER_CACHE")
    if named:
        return Path(os.path.expanduser(named))
    home = os.path.expanduser("~")
    folder = Path(home) / ".cache" / "hftransfer"
    return folder if os.path.isabs(home) and _writable(folder) else _temporary_cache(home)


def _writable(folder: Path) -> bool:
    nearest = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    return os.access(nearest, os.W_OK)


@cache
def _temporary_cache(home: str) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"hftransfer-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user: name a folder of your own in HFTRANSFER_CACHE.")
    logger.warning("The home folder %s cannot be written: features are kept in %s (HFTRANSFER_CACHE names another).",
                   home, folder)  # fmt: skip
    return folder
