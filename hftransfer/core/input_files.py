"""Files that hold one input each: what is no readable file is refused in the same words for every kind."""

import os
import stat
from pathlib import Path

from hftransfer.core.errors import is_lfs_pointer


def require_file(path: str | Path) -> None:
    """Raise `OSError` for what is no file, such as a pipe, which would never come to its end, or a Git LFS pointer."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no file but a pipe or a device")
    if found.st_size < 1000 and is_lfs_pointer(path):
        raise OSError("it is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")


def shown_name(source: str | Path | bytes) -> str:
    return f"given as {len(source)} bytes" if isinstance(source, bytes) else repr(str(source))


def fault_of(error: Exception) -> str:
    """Return why a file cannot be read, from the exception that reading it raised."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    return str(error).strip().rstrip(".") or type(error).__name__
