"""Measure the claims of an article on transfer learning, one training a cell; draw docs/transfer-learning.md's figures.

    python scripts/article.py --figure 2 [--figure 6] [--data FOLDER] [--draws 2] [--cells docs/data/article.jsonl]
    python scripts/article.py --draw docs

Without --data only sets that come as packages are measured; with it, those of `scripts/advice.py` too. The seed of a cell draws
its labelled rows; the test rows (300 at most) are the same for all seeds. A cell that the file holds is not measured again.
All is small on purpose: EfficientNet-lite0 with 64 pixels, batches of 16, 40 steps. Figures 1 and 4 and
the rule of thumb read docs/data/strategies.jsonl and docs/data/masks.jsonl. Figure 5 shows the cells of figure 1.
"""

import argparse
import json
import logging
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from advice import IMAGE, draw

ROOT = Path(__file__).parents[1]
CELLS = ROOT / "docs" / "data" / "article.jsonl"
TEST_ROWS, CURVE_ROWS = 300, 100
PACKAGED = ("digits",)
STEPS = 40
KEY = ("figure", "data", "strategy", "labels", "seed", "steps")
DIGITS = [f"d{digit}" for digit in range(10)]  # they and their sounds have no mirror image
# Sources and targets of claim 3: a target shares no class with a source.
CLASSES = {
    "digits:0-1": ("d0", "d1"), "digits:0-1-2-3-5": ("d0", "d1", "d2", "d3", "d5"),
    "digits:4-9": ("d4", "d9"), "digits:4-6-7-8-9": ("d4", "d6", "d7", "d8", "d9"),
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Where data lie, and where networks made on the spot are written."""

    data: Path | None
    folder: Path

    def has(self, name: str) -> bool:
        return name.partition(":")[0] in PACKAGED or self.data is not None


@dataclass(frozen=True)
class Cell:
    """A training: `model` makes its checkpoint, `after` measures more on the finished run."""

    figure: int
    data: str
    strategy: str
    labels: int
    seed: int
    settings: dict[str, Any] = field(compare=False)
    steps: int = STEPS
    model: Callable[[Bench], str] = field(default=lambda bench: IMAGE, compare=False)
    after: Callable[[Bench, "Cell", Any, pd.DataFrame], dict] = field(default=lambda *_: {}, compare=False)
    curve: bool = field(default=False, compare=False)
    block: int | None = field(default=None, compare=False)  # a linear probe of this block, and no run

    @property
    def key(self) -> tuple:
        return self.figure, self.data, self.strategy, self.labels, self.seed, self.steps


# --- what is measured -------------------------------------------------------------------------------------------------

KINDS = {
    "scratch": {"strategy.type": "scratch"},
    "probe": {"strategy.type": "probe"},
    "frozen": {"strategy.type": "frozen"},
    "full": {"strategy.type": "full"},
}


def figure_1(seed: int) -> Iterator[Cell]:
    """Curves over steps, on rows that train and on rows that do not, with random and with pretrained weights."""
    for name in ("digits", "flowers5"):
        for arm in ("scratch", "full"):
            yield Cell(1, name, arm, 50, seed, KINDS[arm] | {"training.weights": "mean"}, 60, after=learned, curve=True)


def figure_2(seed: int) -> Iterator[Cell]:
    """Keep the first blocks and draw the rest at random, frozen or trained; a probe of each block beside it."""
    for name in ("flowers5", "digits"):
        for kept in (0, 3, 5, 7):
            model = lambda bench, kept=kept: reinitialised(bench, kept)  # noqa: E731
            new = {"strategy.batchnorm": "adapt", "strategy.head_init": "random", "training.learning_rate": 1e-3}
            frozen = new | {"strategy.type": "frozen", "strategy.top": 7 - kept}
            yield Cell(2, name, f"{kept} kept, frozen", 20, seed, frozen, model=model)
            trained = new | {"strategy.type": "full", "strategy.layer_decay": 1.0}
            yield Cell(2, name, f"{kept} kept, trained", 20, seed, trained, model=model)
        for block in range(1, 8):
            yield Cell(2, name, f"probe of block {block}", 20, seed, {}, 0, block=block)


def figure_3(seed: int) -> Iterator[Cell]:
    """Networks trained from random weights on two or on five digits, each transferred to two or to five other digits."""
    narrow, broad, two, five = CLASSES
    sources: dict[str, Callable[[Bench], str]] = {
        "two classes": lambda bench: source(bench, narrow, 250, seed, "scratch"),
        "five classes": lambda bench: source(bench, broad, 100, seed, "scratch"),
        "ImageNet": lambda bench: IMAGE,
    }
    for target in (two, five):
        for name, model in sources.items():
            for arm in ("probe", "full"):
                yield Cell(3, target, f"{arm} from {name}", 10, seed, KINDS[arm], model=model)
        yield Cell(3, target, "scratch", 10, seed, KINDS["scratch"])


def figure_6(seed: int) -> Iterator[Cell]:
    """L2-SP on four sets."""
    for name in ("digits", "flowers5", "clothing10", "tiles"):
        for strength in (0, 300):
            yield Cell(6, name, f"l2_sp {strength}", 10, seed, KINDS["full"] | {"strategy.l2_sp": strength})


def figure_7(seed: int) -> Iterator[Cell]:
    """Pictures of sounds by a network for photographs, and the sounds themselves by one for speech."""
    for arm in ("probe", "full", "scratch"):
        yield Cell(7, "spectrograms", arm, 20, seed, KINDS[arm], after=messages)
    yield Cell(7, "spoken", "probe", 20, seed, KINDS["probe"], 0, lambda _: "starter/whisper-base", messages)
    yield Cell(7, "wbc", "probe", 20, seed, KINDS["probe"], after=messages)


def figure_8(seed: int) -> Iterator[Cell]:
    """Regularisation and augmentation of full training, each alone."""
    none = {"augmentation.level": "none", "training.weight_decay": 0.0}
    arms = {
        "none": {},
        "augmentation": {"augmentation.level": "light"},
        "weight decay 0.1": {"training.weight_decay": 0.1},
        "label smoothing 0.1": {"training.label_smoothing_factor": 0.1},
    }
    for name in ("flowers5", "digits"):
        for labels in (5, 20, 100):
            for arm, settings in arms.items():
                yield Cell(8, name, arm, labels, seed, KINDS["full"] | none | settings)


FIGURES = {
    1: figure_1, 2: figure_2, 3: figure_3, 6: figure_6, 7: figure_7, 8: figure_8,
}  # fmt: skip


# --- one cell ---------------------------------------------------------------------------------------------------------


def measure(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Train once and return the line of the cell: the test accuracy with its 95 % interval, and what `after` found."""
    table = rows(bench, cell.data, cell.labels, cell.seed, CURVE_ROWS if cell.curve else 0)
    if cell.block:
        return probed(cell, table)
    model = cell.model(bench)
    with tempfile.TemporaryDirectory() as place:
        begin = time.perf_counter()
        made = train(table, model, cell.settings, cell.steps, cell.seed, Path(place) / "run", cell.curve)
        seconds = time.perf_counter() - begin
        found = made.metrics["test"]["accuracy"]
        spent = json.loads((made.folder / "run.json").read_text())["seconds"]
        line = {"n": int((table["split"] == "train").sum()), "test_rows": found["n"]}
        line |= {"score": round(found["value"], 4), "low": round(found["low"], 4), "high": round(found["high"], 4)}
        line |= {"seconds": round(seconds, 1), "training_seconds": round(spent.get("training", 0.0), 2)}
        return named(cell) | line | cell.after(bench, cell, made, table) | {"commit": commit()}


def named(cell: Cell) -> dict[str, Any]:
    return dict(zip(KEY, cell.key, strict=True))


def probed(cell: Cell, table: pd.DataFrame) -> dict[str, Any]:
    """Return the line of a linear probe on the mean of one block's output.

    A network of timm with blocks taken off is no plain model, so that a run does not offer it.
    """
    from hftransfer.evaluation.intervals import wilson
    from hftransfer.probe.solver import make_folds, solve_head
    from hftransfer.tasks import SingleLabel

    begin = time.perf_counter()
    task = SingleLabel(tuple(sorted(table["label"].unique())))
    targets = task.encode_all(table["label"].tolist())
    features, train = block_means(table["path"], cell.block), (table["split"] == "train").to_numpy()
    head = solve_head(features[train], targets[train], task, make_folds(task, targets[train], None, 5, cell.seed))
    right = int((head.logits(features[~train]).argmax(1) == targets[~train]).sum())
    rows_of_test, (low, high) = int((~train).sum()), wilson(right, int((~train).sum()))
    line = {"n": int(train.sum()), "test_rows": rows_of_test, "score": round(right / rows_of_test, 4)}
    line |= {"low": round(low, 4), "high": round(high, 4), "seconds": round(time.perf_counter() - begin, 1)}
    return named(cell) | line | {"commit": commit()}


def block_means(paths: Iterable[str], block: int, name: str = IMAGE, size: int = 64) -> np.ndarray:
    """Return the mean over places of a block's output (N, channels), of pictures scaled to -1 .. 1."""
    import torch
    from PIL import Image

    from hftransfer.modalities import kind_of
    from hftransfer.models.layers import LayerGroups
    from hftransfer.models.loading import ModelConfig, load_checkpoint
    from hftransfer.tasks import SingleLabel

    model = load_checkpoint(ModelConfig(name=name), kind_of("image"), SingleLabel(("a", "b"))).model.eval()
    found: list[np.ndarray] = []
    layer = model.get_submodule(LayerGroups.of(model).blocks[block - 1])
    layer.register_forward_hook(lambda module, given, output: found.append(output.mean((2, 3)).numpy()))
    with torch.inference_mode():
        for path in paths:
            picture = np.asarray(Image.open(path).convert("RGB").resize((size, size)), dtype=np.float32)
            model(torch.from_numpy(picture / 127.5 - 1).permute(2, 0, 1)[None])
    return np.concatenate(found)


def rows(bench: Bench, name: str, labels: int, seed: int, curve_rows: int = 0) -> pd.DataFrame:
    """Return the labelled rows, the test rows, and so many rows of the rest for a curve; `split` tells them apart."""
    base = name.partition(":")[0]
    found = (
        spoken(bench, base, labels, seed)
        if base in ("spoken", "spectrograms")
        else draw(base, bench.data, labels, seed)
    )
    found = found[found["label"].isin(CLASSES.get(name, found["label"]))]
    train, test = (found[found["split"] == part] for part in ("train", "test"))
    parts = [train, test.sample(n=min(TEST_ROWS, len(test)), random_state=0)]
    if curve_rows:
        everything = draw(base, bench.data, 10_000, seed).query("split == 'train'")
        rest = everything[~everything.index.isin(train.index)]
        parts.append(rest.sample(n=min(curve_rows, len(rest)), random_state=seed).assign(split="validation"))
    return pd.concat(parts)


def train(
    table: pd.DataFrame, model: str, settings: dict[str, Any], steps: int, seed: int, output: Path, curve: bool = False
) -> Any:
    """Train by the public API on the rows of a table."""
    from hftransfer.config import with_overrides
    from hftransfer.pipeline import outputs
    from hftransfer.train import run

    output.parent.mkdir(parents=True, exist_ok=True)
    source_table = output.with_suffix(".csv")
    table.to_csv(source_table, index=False)
    pictures = not str(table["path"].iloc[0]).endswith(".wav")
    values = {"data": {"train": str(source_table)}, "model": model, "output": str(output)}
    further = {
        "data.input": "path", "data.label": "label", "data.allow_outside": True,
        "evaluation.resamples": 100, "evaluation.explanations": False, "evaluation.folds": 0,
        "training.bf16": False, "training.evaluations": 6 if curve else 1, "seed": seed, "use_cpu": True,
    } | ({"model.image_size": 64} if pictures else {})  # fmt: skip
    if steps:
        further |= {"training.max_steps": steps, "training.per_device_train_batch_size": 16}
    if pictures and str(table["label"].iloc[0]) in DIGITS:
        further |= {"augmentation.flip": False}
    if "author" in table:
        further |= {"data.split.group": "author"}
    config = with_overrides(with_overrides(values, further).model_dump(mode="json"), settings)
    with patch.object(outputs, "write_pages"), patch.object(outputs, "check_saved_model", return_value={"examples": 0}):
        return run(config)  # report, card and the check of the saved model would take half of so small a run


def learned(bench: Bench, cell: Cell, made: Any, table: pd.DataFrame) -> dict[str, Any]:
    """Return the accuracy on (100 of) the rows that trained, and the curve: step, accuracy on rows that did not train."""
    history = made.folder / "history.json"
    entries = json.loads(history.read_text()) if history.exists() else []
    curve = [[entry["step"], round(entry["eval_accuracy"], 4)] for entry in entries if "eval_accuracy" in entry]
    trained = table[table["split"] == "train"]
    trained = trained.sample(n=min(100, len(trained)), random_state=0)
    return {"train_score": round(accuracy(made.folder, trained), 4), "curve": curve}


def messages(bench: Bench, cell: Cell, made: Any, table: pd.DataFrame) -> dict[str, Any]:
    """Return what the report says about the training."""
    from hftransfer.report.diagnosis import diagnose, gather
    from hftransfer.runs.reader import RecordedRun

    return {"messages": [finding.sentence for finding in diagnose(gather(RecordedRun(made.folder)))]}


def accuracy(folder: Path, table: pd.DataFrame) -> float:
    """Return the share of rows that a run folder answers as they are labelled."""
    from hftransfer import load

    predictor = load(folder)
    found = predictor.predict(table["path"].tolist())["prediction"]
    return float(np.mean(found.to_numpy() == table["label"].to_numpy()))


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip()


# --- networks and pictures made on the spot ---------------------------------------------------------------------------


def reinitialised(bench: Bench, kept: int, name: str = IMAGE) -> str:
    """Write a checkpoint with the first `kept` blocks (and the stem) of a pretrained one; all else is random."""
    import torch

    from hftransfer.modalities import kind_of
    from hftransfer.models.layers import LayerGroups
    from hftransfer.models.loading import ModelConfig, load_checkpoint, save_model
    from hftransfer.tasks import SingleLabel

    folder = bench.folder / f"kept-{kept}"
    if not folder.exists():
        torch.manual_seed(0)
        task = SingleLabel(("a", "b"))
        pretrained, new = (load_checkpoint(ModelConfig(name=name), kind_of("image"), task, r) for r in (False, True))
        groups = LayerGroups.of(pretrained.model)
        state = new.model.state_dict()
        with torch.no_grad():
            for key, tensor in pretrained.model.state_dict().items():
                if groups.depth_of(key) > kept or kept == 0:
                    tensor.copy_(state[key])
        save_model(pretrained.model, pretrained.processor, folder)
    return str(folder)


def source(bench: Bench, name: str, labels: int, seed: int, strategy: str) -> str:
    """Train a network to transfer from, and return its folder."""
    output = bench.folder / f"source-{name.replace(':', '-')}-{strategy}-{seed}"
    if not output.exists():
        train(rows(bench, name, labels, seed), IMAGE, KINDS[strategy], 60, seed, output)
    return str(output / "model")


def spoken(bench: Bench, name: str, labels: int, seed: int) -> pd.DataFrame:
    """Spoken digits (FSDD) by their official split: recordings, or pictures of them."""
    folder = bench.data / "fsdd_spoken_digits"
    table = pd.read_csv(folder / "labels.csv").assign(label=lambda found: "d" + found["label"].astype(str))
    table["path"] = [str((folder / path).resolve()) for path in table["path"]]
    train = table[table["split"] == "train"].sample(frac=1, random_state=seed).groupby("label").head(labels)
    found = pd.concat([train, table[table["split"] == "test"].sample(TEST_ROWS, random_state=0)])
    if name == "spectrograms":
        found["path"] = [picture(bench, Path(path)) for path in found["path"]]
    return found[["path", "label", "split"]]


def picture(bench: Bench, recording: Path) -> str:
    """Write the log spectrogram of a recording as a grey picture: time to the right, low tones below."""
    from PIL import Image
    from scipy.io import wavfile
    from scipy.signal import stft

    file = bench.folder / "spectrograms" / f"{recording.stem}.png"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        rate, sound = wavfile.read(recording)
        _, _, values = stft(sound.astype(float), rate, nperseg=256, noverlap=192)
        loud = np.log(np.abs(values[::-1]) + 1e-3)
        grey = (255 * (loud - loud.min()) / max(np.ptp(loud), 1e-9)).astype(np.uint8)
        Image.fromarray(grey).resize((64, 64)).save(file)
    return str(file)


# --- the command ------------------------------------------------------------------------------------------------------


def cells(figures: list[int], draws: int, bench: Bench) -> list[Cell]:
    """Return the cells in order: the first draw of every figure before the second of any."""
    found = [cell for seed in range(draws) for number in figures for cell in FIGURES[number](seed)]
    return [cell for cell in found if bench.has(cell.data)]


def known(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=int, action="append", choices=list(FIGURES), help="default: all")
    parser.add_argument("--data", type=Path, help="folder of the public sets that no package brings")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--cells", type=Path, default=CELLS)
    parser.add_argument("--folder", type=Path, help="keep networks made on the spot here")
    parser.add_argument("--draw", type=Path, metavar="DOCS", help="draw the figures from the cells; measure nothing")
    asked = parser.parse_args()
    if asked.draw:
        from article_figures import draw_all

        return draw_all(known(asked.cells), asked.draw)
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(asked.data, asked.folder or Path(place))
        measure_all(cells(asked.figure or list(FIGURES), asked.draws, bench), bench, asked.cells)


def measure_all(wanted: list[Cell], bench: Bench, path: Path) -> None:
    """Append a line for each cell that the file does not hold; a cell that fails is named and left out."""
    done = {tuple(line[name] for name in KEY) for line in known(path)}
    for cell in wanted:
        if cell.key in done:
            continue
        try:
            line = measure(bench, cell)
        except Exception as error:
            print(*cell.key, "failed:", repr(error)[-300:], flush=True)
            continue
        with path.open("a") as file:
            print(json.dumps(line), file=file)
        print(*cell.key, line["score"], f"{line['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
