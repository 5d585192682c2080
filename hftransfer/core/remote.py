"""Files that lie elsewhere: addresses such as s3://, gs://, hf:// and https://, read through fsspec."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from hftransfer.core.errors import UserError

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://\S")
EXTRA = "pip install 'hftransfer[remote]'"


def is_remote(source: Any) -> bool:
    """Return whether a value is the address of a file or folder that lies elsewhere, and not a path or a text."""
    return isinstance(source, str) and "\n" not in source and len(source) < 4096 and bool(_ADDRESS.match(source))


def read(address: str) -> bytes:
    """Return the content of a file. Raises `OSError` where it cannot be read."""
    files, path = _opened(address)
    try:
        return files.cat_file(path)
    except OSError:
        raise
    except Exception as error:  # each store has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error


def listed(address: str) -> list[str]:
    """Return the addresses of the files below a folder, of a glob, or of one file, in order. Raises `UserError`."""
    files, path = _opened(address)
    try:
        if re.search(r"[*?\[]", path):
            found = files.glob(path)
        else:
            found = [path] if files.isfile(path) else files.find(path)
    except Exception as error:
        raise UserError(f"Cannot list {address}: {error}.") from error
    return sorted(files.unstrip_protocol(name) for name in found)


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """Yield a copy of a file on this machine, under its own name; it is removed afterwards. Raises `UserError`."""
    with tempfile.TemporaryDirectory(prefix="hftransfer-") as folder:
        copy = Path(folder) / PurePosixPath(address.split("?")[0]).name
        try:
            copy.write_bytes(read(address))
        except OSError as error:
            raise UserError(f"Cannot read {address}: {str(error) or type(error).__name__}.") from error
        yield copy


def _opened(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it. Raises `UserError` where its package is missing."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise UserError(f"Cannot read {address}: {error}. {EXTRA} has the usual ones.") from error
    except ValueError as error:
        raise UserError(f"Cannot read {address}: {error}.") from error
