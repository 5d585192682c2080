"""One example as the pages show it: its picture, sound or text, with a caption."""

import html
from collections.abc import Mapping
from typing import Any

from hftransfer.modalities import ModalityKind
from hftransfer.report.gallery import player, thumbnail

SIDE, CHARACTERS = 480, 4000


def example_html(kind: ModalityKind, row: Mapping[str, Any], caption: str) -> str:
    """Return `input`, and `input_pair` where there is one, of a row; `caption` is HTML."""
    if kind.shows == "words":
        texts = (row[name] for name in ("input", "input_pair") if name in row)
        shown = "".join(f"<blockquote>{html.escape(text[:CHARACTERS])}</blockquote>" for text in texts)
    else:
        picture, sound = thumbnail(row["input"], SIDE, kind), player(row["input"], kind)
        shown = f'<img alt="the example" src="{picture}">' if picture else "(cannot be shown)"
        shown += f'<audio controls preload="none" src="{sound}"></audio>' if sound else ""
    figure = f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"
    return f'<article class="question"><div class="rows">{figure}</div></article>'
