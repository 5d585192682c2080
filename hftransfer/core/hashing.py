"""Hashes of content."""

import hashlib


def content_key(*parts: bytes | str) -> str:
    """A 128-bit BLAKE2 hash (32 hex digits) of one input's content; the boundaries between the parts count."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
