"""Text files: UTF-8, or an error that names the byte and the line."""

from pathlib import Path

from hftransfer.core.errors import UserError

_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def decode_utf8(path: Path) -> str:
    """Return the text of a file, which has to be UTF-8 (a byte order mark is dropped)."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = _BOMS.get(data[:2], "WINDOWS-1252")
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} (line {line}). "
            f"Convert it, for instance if it is {encoding}: "
            f"iconv -f {encoding} -t UTF-8 '{path}' > '{path.stem}.utf8{path.suffix}'"
        ) from None
