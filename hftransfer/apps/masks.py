"""The tab of a demo that finds masks: the mask over the image, how strongly it covers, what the colours mean, and the file."""

import html
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from hftransfer.apps.serving import Served
from hftransfer.core.image_files import open_image
from hftransfer.core.mask_files import as_palette_png, coloured, decode_prediction, palette
from hftransfer.tasks import Task

OPACITY = 55  # per cent, at first
Asked = tuple[str, bytes]  # the file of an image and its predicted mask


def overlay(task: Task, source: str, prediction: bytes, opacity: float) -> Image.Image:
    """Return an image with its mask over it; the first class, the background, covers nothing. `opacity` in per cent."""
    image = np.asarray(open_image(source))
    classes = decode_prediction(prediction)[0]
    share = np.where(classes == 0, 0.0, opacity / 100)[..., None]
    mixed = (1 - share) * image + share * coloured(classes, palette(len(task.names)))
    return Image.fromarray(mixed.astype(np.uint8))


def legend(task: Task, prediction: bytes) -> str:
    """Return the classes found with their colours and shares of the area, as HTML."""
    areas = task.areas(decode_prediction(prediction)[0])
    colours = dict(zip(task.names, palette(len(task.names)), strict=True))
    rows = (
        f'<li><span class="swatch" style="background: rgb({", ".join(map(str, colours[name]))})"></span> '
        f"{html.escape(name)} {share:.1%}</li>"
        for name, share in areas.items()
    )
    return f'<ul class="legend">{"".join(rows)}</ul>'


def mask_tab(model: Served, inputs: Callable[[], list[Any]], said: Callable, asking: Callable) -> None:
    """Build the tab. `inputs` makes what takes an image, `said` wraps errors, `asking` connects what asks the model."""
    made = tempfile.TemporaryDirectory(prefix="hftransfer-demo-")

    def ask(picture: str | None, opacity: float) -> tuple[Any, ...]:
        """Return the image under its mask, the shares of the classes, remarks, the mask as a file, and what was asked."""
        frame, remark = model.frame(picture)
        prediction = model.masks(frame)[0]
        file = Path(made.name) / f"{uuid.uuid4().hex}.png"
        for earlier in Path(made.name).iterdir():  # Gradio has its own copy, which it removes after an hour
            earlier.unlink()
        file.write_bytes(as_palette_png(decode_prediction(prediction)[0], palette(len(model.task.names))))
        shown = overlay(model.task, picture, prediction, opacity)
        remark = f"<p>{html.escape(remark)}</p>" if remark else ""
        return shown, legend(model.task, prediction), remark, str(file), (picture, prediction)

    def again(asked: Asked | None, opacity: float) -> Any:
        """Return the last image with the mask in another strength."""
        return overlay(model.task, *asked, opacity) if asked else None

    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            given = inputs()
            button = gr.Button("Predict", variant="primary")
        with gr.Column(min_width=300):
            shown = gr.Image(
                type="pil", format="png", label="Mask", interactive=False, height=320, buttons=["fullscreen"]
            )
            opacity = gr.Slider(0, 100, OPACITY, step=5, label="Opacity of the mask (%)")
            areas, remarks = gr.HTML(), gr.HTML(elem_classes="remark")
            file = gr.DownloadButton("Mask as a PNG file", size="sm")
    asked = gr.State(None)
    asking(model, [*given, opacity], button, ask, [shown, areas, remarks, file, asked], "predict", ("opacity",))
    opacity.release(said(again), [asked, opacity], shown, api_visibility="private")
