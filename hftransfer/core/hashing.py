"""Hashes of content and of code."""

import hashlib
import inspect
from pathlib import Path


def content_key(*parts: bytes | str) -> str:
    """Return a 128-bit BLAKE2 hash (32 hex digits) of one input's content; the boundaries between the parts count."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def remote_code_key(kind: type) -> str | None:
    """Return a hash of all Python files beside a class that comes with a checkpoint; None for an installed class.

    The class's own file imports others of that folder: helpers, layers, a config.
    """
    file = inspect.getsourcefile(kind) if kind.__module__.startswith("transformers_modules") else None
    if file is None:
        return None
    folder = Path(file).parent
    files = sorted(folder.rglob("*.py"))
    return content_key(*(part for path in files for part in (str(path.relative_to(folder)), path.read_bytes())))
