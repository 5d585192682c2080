"""Semantic segmentation: every strategy, and a U-Net of segmentation_models_pytorch, over the number of training images.

    python scripts/results_masks.py --data WBC --size 128 --images 20 50 0 --strategies probe frozen full scratch smp
    python scripts/results_masks.py --render masks.jsonl

The folder has `labels.csv` (path, mask; `domain` or `near_dup_group`). Of two domains the first trains and the second
tests; else a third of the groups tests. 0 images stand for all. The U-Net has the same encoder weights, batches, steps and
image size, and trains all of its weights (Adam, 2e-4, cosine, Dice loss: the package's own example); it needs
`pip install segmentation-models-pytorch`.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

MODEL = "starter/efficientnet-lite0"
STRATEGIES = ("probe", "frozen", "full", "gradual", "lora", "scratch", "smp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/wbc"))
    parser.add_argument("--out", type=Path, default=Path("masks.jsonl"))
    parser.add_argument("--images", nargs="*", type=int, default=[20, 50, 0])
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extra", nargs="*", default=[], help="further key=value arguments of every run")
    parser.add_argument("--render", type=Path)
    asked = parser.parse_args()
    if asked.render:
        return print(render([json.loads(line) for line in asked.render.read_text().splitlines()]))
    rows = labelled(asked.data)
    with asked.out.open("a") as file, tempfile.TemporaryDirectory() as folder:
        for images in asked.images:
            table = drawn(rows, images, asked.seed)
            for strategy in asked.strategies:
                make = unet if strategy == "smp" else trained
                line = {"data": asked.data.name, "strategy": strategy, "size": asked.size, "steps": asked.steps}
                line |= {"extra": asked.extra, "seed": asked.seed, "images": int((table["split"] == "train").sum())}
                line |= make(table, strategy, asked, Path(folder))
                print(json.dumps(line), file=file, flush=True)
                print(line, file=sys.stderr)


def labelled(folder: Path) -> pd.DataFrame:
    """Return image, mask, split and group of all images."""
    found = pd.read_csv(folder / "labels.csv")
    rows = pd.DataFrame({name: [str((folder / path).absolute()) for path in found[column]]
                         for name, column in (("image", "path"), ("mask", "mask"))})  # fmt: skip
    if "domain" in found:
        domains = sorted(found["domain"].unique())
        return rows.assign(group=rows["image"], split=np.where(found["domain"] == domains[0], "train", "test"))
    groups = found["near_dup_group"].astype(str)
    names = np.random.default_rng(0).permutation(groups.unique())
    test = groups.isin(names[: len(names) // 3])
    return rows.assign(group=groups, split=np.where(test, "test", "train"))


def drawn(rows: pd.DataFrame, images: int, seed: int) -> pd.DataFrame:
    """Return the test images, and so many training images drawn at random (0: all)."""
    train = rows[rows["split"] == "train"]
    train = train.sample(images, random_state=seed) if images else train
    return pd.concat([train, rows[rows["split"] == "test"]], ignore_index=True)


def trained(table: pd.DataFrame, strategy: str, asked: argparse.Namespace, folder: Path) -> dict:
    """Train once; seconds are those of the run, without Python's imports."""
    from hftransfer.config import parse_overrides, with_overrides
    from hftransfer.train import run

    path, number = folder / "table.csv", len(list(folder.iterdir()))
    table.to_csv(path, index=False)
    data = {"train": str(path), "input": "image", "label": "mask", "task": "masks", "allow_outside": True}
    values = {"data": data | {"split": {"group": "group"}}, "model": {"name": MODEL, "image_size": asked.size},
              "strategy": strategy, "output": str(folder / f"run{number}"), "seed": asked.seed,
              "training": {"max_steps": asked.steps}, "evaluation": {"folds": 0}}  # fmt: skip
    done = run(with_overrides(values, parse_overrides(asked.extra)))
    about = json.loads((done.folder / "run.json").read_text())
    found = {name: {key: measured[key] for key in ("value", "low", "high")}
             for name, measured in done.metrics["test"].items()}  # fmt: skip
    return {"test": found, "seconds": about["seconds"], "device": about["hardware"]["device"]}


def unet(table: pd.DataFrame, strategy: str, asked: argparse.Namespace, folder: Path) -> dict:
    """Train a U-Net of segmentation_models_pytorch with the same encoder weights, on the same images."""
    import segmentation_models_pytorch as smp
    import torch

    from hftransfer.core.image_files import open_image
    from hftransfer.core.mask_files import resized_mask

    classes, encoder = _classes(table), _encoder()
    torch.manual_seed(asked.seed)
    model = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=len(classes))
    missing, _ = model.encoder.model.load_state_dict(encoder, strict=False)
    assert not missing, missing
    loss = smp.losses.DiceLoss("multiclass")

    def pixels(path: str) -> torch.Tensor:
        image = open_image(path).resize((asked.size, asked.size))
        return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5

    def mask(path: str) -> np.ndarray:
        return np.searchsorted(classes, _values(path))

    begin = time.perf_counter()
    train, test = (table[table["split"] == name] for name in ("train", "test"))
    inputs = torch.stack([pixels(path) for path in train["image"]])
    targets = torch.stack([torch.from_numpy(resized_mask(mask(path).astype(np.uint8), (asked.size,) * 2)).long()
                           for path in train["mask"]])  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 2e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, asked.steps)
    draws = np.random.default_rng(asked.seed)
    model.train()
    for _ in range(asked.steps):
        chosen = draws.choice(len(inputs), 8, replace=len(inputs) < 8)
        optimizer.zero_grad()
        loss(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - begin
    model.eval()
    counts = np.zeros((len(classes),) * 2)
    with torch.no_grad():
        for image, path in zip(test["image"], test["mask"], strict=True):
            true = mask(path)
            logits = torch.nn.functional.interpolate(model(pixels(image)[None]), true.shape, mode="bilinear")
            pairs = true.ravel() * len(classes) + logits.argmax(1).numpy().ravel()
            counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
    overlap = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    return {"test": {"mean_iou": {"value": float(overlap.mean())}}, "seconds": {"training": seconds}}


def _encoder() -> dict:
    from hftransfer.modalities import kind_of
    from hftransfer.models.loading import ModelConfig, load_checkpoint
    from hftransfer.tasks import SingleLabel

    return load_checkpoint(
        ModelConfig(name=MODEL), kind_of("image"), SingleLabel(("a", "b"))
    ).model.timm_model.state_dict()


def _values(path: str) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def _classes(table: pd.DataFrame) -> np.ndarray:
    return np.unique(np.concatenate([np.unique(_values(path)) for path in table["mask"]]))


def render(lines: list[dict]) -> str:
    """Return one row per data set and strategy: mean IoU of each number of images, and the seconds with the most."""
    counts = sorted({line["images"] for line in lines})
    rows = ["| data | strategy | " + " | ".join(f"{count} images" for count in counts) + " | training seconds |"]
    rows.append("|" + "---|" * (3 + len(counts)))
    for data, strategy in dict.fromkeys((line["data"], _name(line)) for line in lines):
        own = {line["images"]: line for line in lines if (line["data"], _name(line)) == (data, strategy)}
        cells = [_cell(own.get(count)) for count in counts]
        seconds = own[max(own)]["seconds"]["training"]  # None: the run was held up
        rows.append(f"| {' | '.join([data, strategy, *cells, f'{seconds:.0f}' if seconds else '–'])} |")
    return "\n".join(rows)


def _name(line: dict) -> str:
    return " ".join([line["strategy"], *line.get("extra", [])])


def _cell(line: dict | None) -> str:
    if line is None:
        return "–"
    found = line["test"]["mean_iou"]
    return f"{found['value']:.3f}" + (f" ({found['low']:.3f} to {found['high']:.3f})" if "low" in found else "")


if __name__ == "__main__":
    main()
