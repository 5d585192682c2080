"""What may reach a terminal: tables, JSON lines, and no control characters."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hftransfer.core.files import strict_json


def show(values: Any, as_table: Callable[[], Any], as_json: bool) -> None:
    """One line of JSON, or the table that is made for it."""
    if as_json:
        return print(strict_json(values))
    display(as_table())


def display(found: Any) -> None:
    """Print a table or other renderable. What stands in it is data: no markup, and nothing that controls a terminal."""
    from rich.console import Console
    from rich.segment import Segment, Segments

    console = Console(markup=False, emoji=False)
    plain = [Segment(printable(text), style, control) for text, style, control in console.render(found)]
    console.print(Segments(plain), end="")


def printable(text: str) -> str:
    """Return the text with signs for its control characters, but for tabs and line ends: an escape sequence is not obeyed."""
    return text.translate(_SIGNS)


_SIGNS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
_SIGNS |= {127: "\u2421"} | dict.fromkeys(range(128, 160), "\ufffd")


# Whose information is shown by default: the summary of a run, and what the other commands are waited for. The rest takes -v.
TOLD = (
    "hftransfer.pipeline.summary", "hftransfer.planning", "hftransfer.publish", "hftransfer.apps",
    "hftransfer.doctor.repair", "hftransfer.prediction.shards",
)  # fmt: skip


def show_log(details: bool = False) -> None:
    """Send the log to standard error: all of it with `details`, else warnings, each once, and what `TOLD` names."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(message)s") if details else BriefFormatter("%(message)s"))
    if not details:
        handler.addFilter(Brief())
    logging.getLogger("hftransfer").handlers = [handler]


@contextmanager
def only_errors(logger: logging.Logger) -> Iterator[None]:
    """Silence the information and warnings of a logger for a while."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Brief(logging.Filter):
    """Let through what everybody reads, and every message once: folds and seeds repeat them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message in self.seen or (record.levelno < logging.WARNING and not record.name.startswith(TOLD)):
            return False
        self.seen.add(message)
        return True


class PlainFormatter(logging.Formatter):
    """The message alone, printable."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class BriefFormatter(PlainFormatter):
    """The first line of a warning, and what shows the others: `-v`, or what the record says it is `shown_by`."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        first, *others = text.split("\n")
        more = f"{first} ({getattr(record, 'shown_by', '-v')} shows more)"
        return more if others and record.levelno >= logging.WARNING else text
