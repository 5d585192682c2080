"""What a notebook shows of our objects: a small table, all of it escaped."""

from collections.abc import Mapping
from html import escape


def as_card(title: str, rows: Mapping[str, str], code: str = "") -> str:
    """Return a table of `rows` under a title, as HTML; `code` is the call that comes next."""
    lines = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    following = f"<code>{escape(code)}</code>" if code else ""
    return f"<div><strong>{escape(title)}</strong><table>{lines}</table>{following}</div>"
