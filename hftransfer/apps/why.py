"""Why did it answer so, as HTML for the demo: the places or words that spoke for the answer, and training rows like it."""

import base64
import html
import io
from typing import Any

import pandas as pd
from PIL import Image

from hftransfer.apps.serving import Served
from hftransfer.prediction.explain import Explanation, NoExplanation
from hftransfer.report.gallery import player, thumbnail
from hftransfer.report.picked import words
from hftransfer.runs.reader import PAIR_MARK

NEAREST = 3
CHARACTERS = 300  # of a training text
COLOURS = {True: "13, 148, 136", False: "217, 119, 6"}  # for and against the answer


def why_html(model: Served, frame: pd.DataFrame) -> str:
    """Return the explanation of one row of inputs, then the training rows nearest to it, where there are any to show."""
    try:
        explained = _explained(model.explain(frame))
    except NoExplanation as error:
        explained = f'<p class="quiet">{html.escape(str(error))}</p>'
    rows = "".join(_example(model, row) for row in model.nearest(frame, NEAREST))
    near = f'<h3>Most similar training examples</h3><div class="near">{rows}</div>' if rows else ""
    return explained + near


def _explained(found: Explanation) -> str:
    answer = html.escape(found.answer)
    if found.picture is not None:
        buffer = io.BytesIO()
        _larger(found.overlay()).save(buffer, "PNG")
        picture = base64.b64encode(buffer.getvalue()).decode()
        what, seen = ("Moments", "spectrogram") if found.segments else ("Places", "picture")
        side = " (bars upward) or against it (downward)" if found.segments else ""
        return (f'<h3>{what} that spoke for {answer}{side}</h3><figure class="seen">'
                f'<img alt="the {seen} as the model saw it, with the {what.lower()} that mattered" '
                f'src="data:image/png;base64,{picture}"></figure>')  # fmt: skip
    marked = "".join(_marked(text, weight) for text, weight in found.tokens)
    return (f'<h3>Words that spoke for <mark style="background: rgba({COLOURS[True]}, 0.5)">{answer}</mark> or '
            f'<mark style="background: rgba({COLOURS[False]}, 0.5)">against</mark> it</h3>'
            f'<div class="words">{marked}</div>')  # fmt: skip


def _larger(picture: Image.Image, side: int = 320) -> Image.Image:
    """Small model inputs at a size to look at."""
    scale = max(1, side // max(picture.size))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)


def _marked(text: str, weight: float) -> str:
    if abs(weight) < 0.02:
        return html.escape(text)
    return f'<mark style="background: rgba({COLOURS[weight > 0]}, {0.75 * min(abs(weight), 1):.2f})">{html.escape(text)}</mark>'


def _example(model: Served, row: dict[str, Any]) -> str:
    """One training row; nothing for a picture that is not there any more."""
    if model.kind.shows != "words":
        picture, sound = thumbnail(row["input"], kind=model.kind), player(row["input"], model.kind)
        if picture is None:
            return ""
        shown = f'<img alt="" src="{picture}">'
        shown += f'<audio controls preload="none" src="{sound}"></audio>' if sound else ""
    else:
        text = PAIR_MARK.join(row[name] for name in ("input", "input_pair") if row.get(name))
        shown = f"<p>{html.escape(text if len(text) <= CHARACTERS else text[:CHARACTERS] + '…')}</p>"
    return f"<figure>{shown}<figcaption>labelled <b>{html.escape(words(row['label']))}</b></figcaption></figure>"
