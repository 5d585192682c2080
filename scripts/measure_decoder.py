"""A decoder trained from stored feature maps beside the same training without the store, and the memory of a large image.

    python scripts/measure_decoder.py --steps 60 --images 40
    python scripts/measure_decoder.py --side 4000

Images are drawn: bright squares on noise. The checkpoint is starter/efficientnet-lite0.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from hftransfer.config import with_overrides
from hftransfer.pipeline import activations
from hftransfer.prediction.predictor import load
from hftransfer.train import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--side", type=int, default=0, help="predict one image of this side and report the peak memory")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = drawn(Path(place) / "squares", asked.images)
        if asked.side:
            return print(json.dumps(large(folder, Path(place), asked.side)))
        stored = trained(folder, Path(place) / "stored", asked.steps)
        with patch.object(activations, "_split_point", lambda *_: None):
            plain = trained(folder, Path(place) / "plain", asked.steps)
    gap = max(float((stored["weights"][name] - other).abs().max()) for name, other in plain["weights"].items())
    print(json.dumps({
        "images": asked.images, "steps": asked.steps, "with": stored["seconds"], "without": plain["seconds"],
        "times": plain["seconds"]["training"] / stored["seconds"]["training"], "largest difference of a weight": gap,
        "mean_iou": [stored["mean_iou"], plain["mean_iou"]],
    }))  # fmt: skip


def drawn(folder: Path, images: int, size: int = 256) -> Path:
    draws = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(images):
        mask = np.zeros((size, size), np.uint8)
        for top, left in draws.integers(0, size * 3 // 4, (3, 2)):
            mask[top : top + size // 6, left : left + size // 6] = 1
        pixels = np.clip(draws.normal(100, 40, (size, size, 3)) + 60 * mask[..., None], 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def trained(folder: Path, output: Path, steps: int) -> dict:
    """Train the decoder; seconds of features and of training are apart."""
    values = {"data": str(folder), "output": str(output), "training": {"max_steps": steps, "bf16": False}}
    done = run(with_overrides(values | {"store": False}, {}))
    seconds = json.loads((output / "run.json").read_text())["seconds"]
    return {
        "weights": load_file(output / "model" / "model.safetensors"),
        "seconds": {name: seconds[name] for name in ("features", "training", "prediction")},
        "mean_iou": done.metrics["test"]["mean_iou"]["value"],
    }


def large(folder: Path, place: Path, side: int) -> dict:
    """Return how much memory the prediction of one large image adds to that of a small one."""
    done = run(with_overrides({"data": str(folder), "output": str(place / "run"), "training": {"max_steps": 2}}, {}))
    predictor = load(done.folder)
    predictor.predict([str(folder / "images" / "0.png")])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "large.png")
    del pixels
    areas = predictor.predict([str(place / "large.png")])["prediction"][0]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"side": side, "peak MiB": after // 1024, "of which for this image": (after - before) // 1024,
            "classes": len(predictor.task.names), "found": areas, "torch": torch.__version__}  # fmt: skip


if __name__ == "__main__":
    main()
