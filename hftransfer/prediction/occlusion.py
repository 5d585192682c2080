"""Which moments of a recording spoke for an answer: what becomes of its evidence when a moment is silent.

Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.1) over time. It needs one forward pass for each segment, and
nothing of the architecture.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

SEGMENTS = 10  # at most: each costs a forward pass
FOR, AGAINST, LINE = (13, 148, 136), (217, 119, 6), (140, 140, 140)  # colours of bars above and below the line
BARS = 0.5  # height of the bars as a share of that of the spectrogram


@torch.no_grad()
def segment_weights(predictor: Any, item: Any, output: int | None) -> tuple[int, float, np.ndarray, np.ndarray]:
    """Return output (None: the largest), evidence, edges (S + 1,) in seconds, and the evidence (S,) lost with each segment."""
    edges, batch = predictor.modality.occluded(item, SEGMENTS)
    with predictor.compute_config.context():
        logits = predictor.model(**predictor.compute_config.place(batch)).logits.float()
    output = int(logits[0].argmax()) if output is None else output
    evidence = predictor.task.evidence(logits, output).cpu().double().numpy()
    return output, float(evidence[0]), edges, evidence[0] - evidence[1:]


def with_bars(picture: Image.Image, weights: np.ndarray) -> Image.Image:
    """Return a spectrogram with one bar for each segment below it: up for the answer, down against it, weights from -1 to 1."""
    width, height = picture.width, round(BARS * picture.height)
    found = Image.new("RGB", (width, picture.height + height), "white")
    found.paste(picture, (0, 0))
    draw, middle = ImageDraw.Draw(found), picture.height + height // 2
    edges = np.linspace(0, width, len(weights) + 1).round().astype(int)
    for left, right, weight in zip(edges[:-1], edges[1:], weights, strict=True):
        end = middle - round(float(weight) * (height // 2 - 2))
        draw.rectangle(
            (int(left) + 1, min(middle, end), int(right) - 2, max(middle, end)), FOR if weight > 0 else AGAINST
        )
    draw.line((0, middle, width, middle), LINE)
    return found
