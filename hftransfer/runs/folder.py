"""The run folder: made beside its final place and moved there whole; read by everything that comes after training."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.core.files import has_no_locks, read_json, remove, write_json

log = logging.getLogger(__name__)

ORIGIN = "origin.json"  # what a run is made from, written before it trains
COMPLETE = "run.json"  # written last: a folder without it is not whole
MODELS = "models"  # of a run on several inputs: a run of its own for each input with a network
UNFINISHED = ("checkpoints", ORIGIN)  # needed until the folder is whole


def holds_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, finished or not."""
    return (folder / COMPLETE).is_file() or (folder / ORIGIN).is_file()


def incomplete(output: Path) -> Path:
    """Where a run lies while it is being made."""
    return output.with_name(f"{output.name}.incomplete")


def scratch(output: Path) -> Path:
    """Return where a run keeps features that no store keeps, until it is complete.

    It lies beside the run: Windows does not move a folder that holds mapped files.
    """
    return output.with_name(f".{output.name}.features")


@contextmanager
def making(output: Path, resume: bool, is_main: bool = True) -> Iterator[Path]:
    """Yield a folder to fill. It takes its final name when the block ends without an error; only the main process moves it.

    Raises `UserError` when the output exists, when an interrupted run is in the way and `resume` was not asked for, when
    another process is writing there, or when the place is not writable.
    """
    folder = incomplete(output)
    if not is_main:
        yield folder
        return
    with _alone(output):
        _refuse(output, folder, resume)
        try:
            folder.mkdir(exist_ok=True)
            yield folder
        except BaseException:
            if _is_resumable(folder):
                log.warning("%s holds what was done: --resume continues it", folder)
            else:
                remove(folder)
                remove(scratch(output))
            raise
        _move(folder, output)
        for path in (scratch(output), *(output / name for name in UNFINISHED)):
            remove(path)  # not before: killed in between, the run would have lost its checkpoints


def _move(folder: Path, output: Path) -> None:
    """Give a finished run its name. Raises `UserError` that names where it lies instead: it must not be lost."""
    try:
        os.replace(folder, output)
    except OSError as error:
        raise UserError(
            f"The run is finished and lies in {folder}: it could not be moved to {output} ({error.strerror}). Move it by hand."
        ) from error


def _is_resumable(folder: Path) -> bool:
    """Whether any checkpoint was written to its end."""
    return any(folder.glob("checkpoints/checkpoint-*/trainer_state.json"))


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Only one process at a time makes a run; the system frees the lock of a process that died."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output.with_name(f".{output.name}.lock"), timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"Another process is writing {output}: wait for it, or choose another --output.") from None
    except PermissionError as error:
        raise UserError(f"No permission to write {error.filename or output}: choose another --output.") from None
    except OSError as error:
        if not has_no_locks(error):
            raise
        log.warning("The file system of %s has no locks: take care that no other process writes there.", output.parent)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: later it could be another process's
        lock.release()


def _refuse(output: Path, folder: Path, resume: bool) -> None:
    if output.exists():
        raise UserError(f"{output} exists already: choose another --output, or remove it.")
    if _is_resumable(folder) and not resume:
        raise UserError(f"{folder} holds an interrupted run: continue it with --resume, or remove it.")
    if resume and not folder.exists():
        raise UserError(f"Nothing to resume: there is no {folder}.")
    if folder.exists() and not _is_resumable(folder):
        remove(folder)  # left by a process that was killed before it trained
        remove(scratch(output))


def check_origin(folder: Path, origin: dict[str, Any], resume: bool) -> None:
    """Record what a run is made from at its start; raise `UserError` where a resumed run was made from something else.

    `origin` is JSON: the configuration and the identities of data, division and weights.
    """
    path = folder / ORIGIN
    if resume and folder.is_dir() and _is_resumable(folder):
        if not path.is_file():
            raise UserError(
                f"{folder} does not say what it was made from (an older version?): remove it, and train again."
            )
        refuse_differences(folder, read_json(path), origin)
    write_json(path, origin)


def refuse_differences(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `UserError` with every field in which two nested mappings differ, and its values."""
    before, now = _flat(before), _flat(now)
    fields = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if fields:
        listed = "".join(f"\n  {name}: {before.get(name)!r} before, {now.get(name)!r} now" for name in fields)
        raise UserError(
            f"{folder} was made from something else:{listed}\n"
            "Resume it as it was begun, or choose another --output to train again."
        )


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def open_run(path: str | Path) -> Path:
    """Return the folder of a finished run. Raises `UserError` for one that is missing, interrupted, or no run at all."""
    folder = Path(path)
    if (folder / COMPLETE).is_file() and any((folder / name).is_dir() for name in ("model", MODELS)):
        return folder
    if incomplete(folder).is_dir() or folder.name.endswith(".incomplete"):
        raise UserError(f"The run {folder} was interrupted: continue it with `hftransfer train … --resume`.")
    if not folder.exists():
        siblings = (
            [str(p) for p in folder.parent.glob("*") if (p / COMPLETE).is_file()] if folder.parent.is_dir() else []
        )
        raise UserError(f"There is no run at {folder}.{did_you_mean(str(folder), siblings)}")
    raise UserError(f"{folder} is no run folder: expected {COMPLETE} and model/ in it.")


def beside(folder: Path, what: str) -> Path:
    """`NAME.WHAT.jsonl` beside a run: what people say of it, while the run itself stays as it was made."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.{what}.jsonl")
