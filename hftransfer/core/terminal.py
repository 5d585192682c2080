"""What may reach a terminal: tables, JSON lines, and no control characters."""

import logging
from collections.abc import Callable
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


class PlainFormatter(logging.Formatter):
    """The message alone, printable."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
