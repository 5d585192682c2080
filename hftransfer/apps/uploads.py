"""What strangers send to the demo: checked before it is decoded, and never trusted with a path."""

import csv
import itertools
import shutil
import stat
import warnings
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import pandas as pd
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.core.image_files import UnreadableImage, opened
from hftransfer.data import load_inputs
from hftransfer.data.inputs import Own
from hftransfer.data.named_inputs import NamedInputs
from hftransfer.modalities import ModalityKind

MAX_PIXELS = 64_000_000  # phones take 12 to 50 million
MAX_BATCH_PIXELS = 2_000_000_000  # photos in a zip of 100 MB have half as many; flat PNGs a hundred times more
MAX_CHARACTERS = 100_000
MAX_ROWS = 2_000
MAX_TABLE = 10 * 2**20  # bytes
MAX_UNZIPPED = 500 * 2**20  # bytes
TABLES = (".csv", ".tsv", ".jsonl")

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)


def check_image(path: str | Path | None) -> str:
    """Return a remark on the picture ("" where there is none to make), from its header alone.

    Raises `UserError` when there is no picture, when it is none, and when it has more than `MAX_PIXELS` pixels.
    """
    if path is None:
        raise UserError("Choose an image first.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower than Pillow's
        try:
            with opened(path) as image:
                (width, height), frames = image.size, getattr(image, "n_frames", 1)
        except UnreadableImage as error:
            if isinstance(error.__cause__, Image.DecompressionBombError):
                raise UserError(_too_large("more than 170")) from None
            raise
    if width * height > MAX_PIXELS:
        raise UserError(_too_large(f"{width} x {height} = {width * height / 1e6:.0f}"))
    return f"Of {frames} frames only the first was looked at." if frames > 1 else ""


def check_file(path: str | None, kind: ModalityKind) -> str:
    """Return a remark on a file that was sent (""). Raises `UserError` where there is none, or it cannot be read."""
    if path is None:
        raise UserError(f"Choose {kind.describe_input()} first.")
    if fault := kind.inspection(path).fault:
        raise UserError(f"Cannot read the {kind.noun} {Path(path).name}: {fault}.")
    return ""


def pixels(path: str | Path) -> int:
    """Return width times height from the header of a picture; 0 where it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with opened(path) as image:
                return image.width * image.height
        except UnreadableImage:
            return 0


def _too_large(found: str) -> str:
    return f"The image has {found} million pixels; the limit is {MAX_PIXELS // 10**6} million. Send a smaller copy."


def check_text(text: str | None) -> str:
    """Return the text itself. Raises `UserError` when it is empty or longer than `MAX_CHARACTERS`."""
    if text is None or not text.strip():
        raise UserError("There is no text: write one first.")
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"The text has {len(text):,} characters; the limit is {MAX_CHARACTERS:,}. Send the part that matters."
        )
    return text


def describe(error: UserError) -> str:
    """Return the message without the place where an upload lies on the server."""
    if isinstance(error, UnreadableImage):
        return f"Cannot read the image {Path(error.name.strip(chr(39))).name}: {error.reason}."
    return str(error)


def read_batch(path: str | None, kind: ModalityKind, columns: Own, place: Path) -> pd.DataFrame:
    """Rows with `id`, `input` and, for pairs, `input_pair` of an uploaded file; archives are unpacked into `place`.

    Files come as a zip; values as a table (`columns` are looked for first) or a zip of .txt files; pairs as a table. A
    table never names files: a stranger could point at the server's own. Raises `UserError`.
    """
    pairs = not isinstance(columns, NamedInputs) and len(columns) == 2
    if path is None:
        raise UserError(f"Choose a file first: {expected(kind, pairs)}.")
    suffix = Path(path).suffix.lower()
    if suffix == ".zip":
        frame = _unpacked(Path(path), kind, place)
    elif suffix in suffixes(kind):
        frame = _table(Path(path), kind.name, columns)
    else:
        raise UserError(f"Expected {expected(kind, pairs)}, found {Path(path).name}.")
    if len(frame) > MAX_ROWS:
        raise UserError(f"{Path(path).name} holds {len(frame):,} rows; the limit is {MAX_ROWS:,}. Send it in parts.")
    if pairs and "input_pair" not in frame:
        raise UserError("The model compares two texts: send a table with two text columns.")
    if not kind.files:
        _refuse_long(frame)
    elif (
        kind.shows == "picture"
        and sum(size for size in map(pixels, frame["input"]) if size <= MAX_PIXELS) > MAX_BATCH_PIXELS
    ):
        raise UserError(
            f"The images of {Path(path).name} have more than {MAX_BATCH_PIXELS // 10**6:,} million pixels together. "
            "Send them in parts, or smaller."
        )
    return frame


def suffixes(kind: ModalityKind) -> list[str]:
    """Of the files that a batch may come in."""
    return [".zip"] if kind.files else [".zip", *TABLES]


def expected(kind: ModalityKind, pairs: bool) -> str:
    """Return the files that a batch may come in, in words."""
    if kind.files:
        return f"a zip of {kind.plural}"
    zipped = f", or a zip of {kind.file_noun}s" if kind.suffixes else ""
    return f"a table ({', '.join(TABLES)})" + (" with two text columns" if pairs else zipped)


def _table(path: Path, modality: str, columns: Own) -> pd.DataFrame:
    """Return the model's own columns where the table has them; else the ones that look like inputs are found."""
    _refuse_large(path)
    try:
        if isinstance(columns, NamedInputs):
            return load_inputs([str(path)], modality, own=columns)
        try:
            return load_inputs([str(path)], modality, list(columns) or None)
        except UserError:
            return load_inputs([str(path)], modality)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from None


def _refuse_large(path: Path) -> None:
    """Refuse a table by its bytes and its records, before anything is parsed into columns."""
    if path.stat().st_size > MAX_TABLE:
        raise UserError(f"{path.name} is larger than {MAX_TABLE // 2**20} MB. Send it in parts.")
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        records = (line for line in file if line.strip()) if path.suffix.lower() == ".jsonl" else csv.reader(file)
        try:
            found = sum(1 for _ in itertools.islice(records, MAX_ROWS + 2))
        except csv.Error:  # a cell of more than 128 kB: the reader names the row
            return
    if found > MAX_ROWS + 1:  # a header may be one of them
        raise UserError(f"{path.name} holds more than {MAX_ROWS:,} rows, which is the limit. Send it in parts.")


def _refuse_long(frame: pd.DataFrame) -> None:
    for name in frame.columns.drop("id"):
        too_long = frame.loc[frame[name].str.len() > MAX_CHARACTERS, "id"]
        if len(too_long):
            raise UserError(f"{too_long.iloc[0]} has more than {MAX_CHARACTERS:,} characters. Shorten it.")


def _unpacked(path: Path, kind: ModalityKind, place: Path) -> pd.DataFrame:
    """Return the wanted files of an archive under names of our own, so that no name in it decides where anything is written."""
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = _wanted(archive, path.name, kind)
            files = [place / f"{number}{PurePosixPath(e.filename).suffix.lower()}" for number, e in enumerate(wanted)]
            for entry, file in zip(wanted, files, strict=True):
                with archive.open(entry) as source, file.open("wb") as target:
                    shutil.copyfileobj(source, target)  # zipfile stops at the size that the entry declares
    except BROKEN_ZIP as error:
        raise UserError(f"Cannot unpack {path.name}: {error}. Zip the files again, without a password.") from None
    try:
        frame = load_inputs([str(file) for file in files], kind.name)
    except UserError as error:
        raise UserError(f"{path.name}: {str(error).replace(str(place), '')}") from None
    return frame.assign(id=[entry.filename for entry in wanted])


def _wanted(archive: zipfile.ZipFile, name: str, kind: ModalityKind) -> list[zipfile.ZipInfo]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    outside = [entry.filename for entry in entries if leaves(entry)]
    if outside:
        raise UserError(f"{name} holds {outside[0]!r}, which points outside of the archive. Zip the plain folder.")
    if sum(entry.file_size for entry in entries) > MAX_UNZIPPED:
        raise UserError(f"{name} is larger than {MAX_UNZIPPED // 2**20} MB when unpacked. Send it in parts.")
    wanted = [entry for entry in entries if kind.is_file_name(entry.filename) and not hidden(entry.filename)]
    if not wanted:
        raise UserError(f"{name} holds no {kind.file_noun}.")
    if len(wanted) > MAX_ROWS:
        raise UserError(f"{name} holds {len(wanted):,} files; the limit is {MAX_ROWS:,}. Send it in parts.")
    return wanted


def leaves(entry: zipfile.ZipInfo) -> bool:
    """Return whether an entry of an archive points outside of it, or is a link."""
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(entry.external_attr >> 16)
    return path.is_absolute() or ".." in path.parts or ":" in str(path).split("/")[0] or is_link


def hidden(name: str) -> bool:
    """Return whether a file is hidden, or one of those that macOS adds."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
