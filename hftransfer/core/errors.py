"""The one exception a user's mistake may end in, and the "did you mean" that goes with it."""

from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class UserError(Exception):
    """A mistake in what the user gave: the message says what was expected, what was found and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class UnreadableInput(UserError):
    """An input that cannot be decoded; the message names the file and the `reason`. Subclasses set the `noun`."""

    noun = "input"

    def __init__(self, name: str, reason: str | None = None):
        """`name` alone is a whole message: so a loader's worker hands the error on (torch makes it again from its text)."""
        self.name, self.reason = name, reason
        super().__init__(
            name
            if reason is None
            else f"Cannot read the {self.noun} {name}: {reason}. Replace or remove it, or leave such files out with "
            "data.on_error=skip."
        )


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return a hint to append to an error: the nearest of `options`, or all of them when none is near."""
    options = list(options)
    close = get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    shown = ", ".join(options[:20]) + (", …" if len(options) > 20 else "")
    return f" Choose from: {shown}." if options else ""


def is_lfs_pointer(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def refuse_lfs_pointer(path: str | Path) -> None:
    """Raise `UserError` where a clone of a repository holds the pointer of Git LFS in place of the file."""
    with suppress(OSError):
        if is_lfs_pointer(path):
            raise UserError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository.")
