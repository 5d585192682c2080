"""Time and memory of `doctor`, `train --strategy probe`, `predict` and `embed` by the number of examples.

    python scripts/scale.py --run doctor texts 10000 [--cells docs/data/scale.jsonl] [--folder FOLDER]
    python scripts/scale.py --recall
    python scripts/scale.py --render docs/data/scale.jsonl --plot docs/scale.svg

The checkpoints are tiny ones with random weights, so that the seconds are those of this package and not of a network. Texts have
12 words of 20,000; pictures have 64 pixels; every fiftieth example is a changed copy of another one. A cell is one command in a
process of its own: seconds of the processor and peak of the resident memory, as the system counts them. The exponent c of
a + b N^c follows from three sizes that grow by tens: c = log10((t3 - t2) / (t2 - t1)), without the start-up a.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from hftransfer.core.files import replacing  # noqa: E402

SIZES = (1_000, 10_000, 100_000)
STEPS = ("doctor", "train", "predict", "embed")
COPIES = 50  # every so many-th example is a copy


def texts(table: Path, count: int) -> None:
    """Write a table of texts whose label is told by one of their words."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(20_000)]
    rows: list[tuple[str, str]] = []
    for number in range(count):
        label = f"topic{number % 4}"
        found = " ".join([*rng.choices(words, k=11), label])
        rows.append((rows[-3][0] + "!", rows[-3][1]) if number % COPIES == COPIES - 1 else (found, label))
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(table, index=False)


def images(target: Path, count: int) -> None:
    """Write class folders of JPEG files of 64 pixels."""
    from tests.support import tiny

    labels = list(tiny.COLOURS)
    last = None
    for number in range(count):
        copied = last is not None and number % COPIES == COPIES - 1
        label, picture = last if copied else (labels[number % 4], tiny.image(labels[number % 4], 64, number))
        last = label, picture
        place = target / label / f"{number * 7919 % count:06d}x{number % 97}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.save(place, quality=80 if copied else 92)


def prepared(kind: str, count: int, folder: Path) -> tuple[Path, Path]:
    """Return data and checkpoint, written where they are not there yet."""
    from tests.support import tiny

    folder.mkdir(parents=True, exist_ok=True)
    data = folder / (f"texts-{count}.csv" if kind == "texts" else f"images-{count}")
    if not data.exists():
        with replacing(data) as begun:
            {"texts": texts, "images": images}[kind](begun, count)
    model = folder / f"model-{kind}"
    if not model.exists():
        with replacing(model) as begun:
            (tiny.TEXT_FAMILIES["bert"] if kind == "texts" else tiny.VISION_FAMILIES["timm-resnet"])(begun)
    return data, model


def command(step: str, kind: str, count: int, folder: Path) -> list[str]:
    data, model = prepared(kind, count, folder)
    run, output = folder / f"run-{kind}-{count}", folder / f"{step}-{kind}-{count}"
    return {
        "doctor": ["doctor", str(data), "--json"],
        "train": [
            "train",
            str(data),
            "--model",
            str(model),
            "--strategy",
            "probe",
            "--output",
            str(run),
            "store=false",
        ],
        "predict": ["predict", str(run), str(data), "--output", f"{output}.parquet"],
        "embed": ["embed", str(data), "--model", str(model), "--output", str(output)],
    }[step]


def measured(step: str, kind: str, count: int, folder: Path) -> dict[str, object]:
    """Run one command and return its cell. Raises `RuntimeError` where it failed."""
    arguments = command(step, kind, count, folder)
    environment = os.environ | {"HFTRANSFER_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    begin = time.monotonic()
    with open(folder / f"{step}-{kind}-{count}.log", "w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "hftransfer", *arguments], env=environment, stdout=log, stderr=log
        )
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 1):  # 1: the doctor has found something
        raise RuntimeError(Path(log.name).read_text()[-2000:])
    return {
        "step": step, "kind": kind, "examples": count, "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "seconds": round(time.monotonic() - begin, 1), "peak_mib": used.ru_maxrss // 1024,
    }  # fmt: skip


def exponents(cells: list[dict]) -> Iterator[tuple[str, str, list[dict], float]]:
    """Yield step, kind, its cells by size, and the exponent of the processor's seconds (NaN without three sizes)."""
    latest = {(cell["step"], cell["kind"], cell["examples"]): cell for cell in cells if "step" in cell}
    for kind in ("texts", "images"):
        for step in STEPS:
            found = [latest[step, kind, size] for size in SIZES if (step, kind, size) in latest]
            if not found:
                continue
            first, second, third = ([cell["cpu_seconds"] for cell in found] + [math.nan] * 3)[:3]
            yield step, kind, found, math.log10(max(third - second, 1e-9) / max(second - first, 1e-9))


def render(cells: list[dict]) -> str:
    """Return the table of docs/scale.md."""
    lines = ["| command | examples | 1,000 | 10,000 | 100,000 | exponent | memory at the largest |", "|" + "---|" * 7]
    for step, kind, found, exponent in exponents(cells):
        seconds = [f"{cell['cpu_seconds']:.0f} s" for cell in found] + ["not run"] * (3 - len(found))
        told = "" if math.isnan(exponent) else f"{exponent:.2f}"
        lines.append(f"| {step} | {kind} | {' | '.join(seconds)} | {told} | {found[-1]['peak_mib']:,} MiB |")
    return "\n".join(lines)


def plot(cells: list[dict], path: Path) -> None:
    """Draw seconds and memory over the number of examples."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for step, kind, found, _ in exponents(cells):
        sizes, style = [cell["examples"] for cell in found], "-" if kind == "texts" else "--"
        colour = f"C{STEPS.index(step)}"
        axes[0].loglog(
            sizes, [cell["cpu_seconds"] for cell in found], style, marker="o", color=colour, label=f"{step}, {kind}"
        )
        axes[1].loglog(sizes, [cell["peak_mib"] for cell in found], style, marker="o", color=colour)
    axes[0].loglog(SIZES[1:], [size * math.log(size) / 4e4 for size in SIZES[1:]], ":", color="grey", label="N log N")
    axes[0].set(xlabel="examples", ylabel="seconds of the processor")
    axes[1].set(xlabel="examples", ylabel="peak memory, MiB")
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def recall() -> Iterator[dict]:
    """Yield how many of the pairs of the exact search the sorted one puts into one component, and its seconds."""
    from PIL import Image

    from hftransfer.modalities import duplicates

    rng = np.random.default_rng(0)
    for count in (8_000, 16_000, 32_000):
        noise = rng.integers(0, 256, (count // 2, 6, 6), dtype=np.uint8)
        scenes = np.stack(
            [np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC)) for each in noise]
        )
        copies = scenes + rng.normal(0, 1, scenes.shape) * rng.uniform(0, 40, (len(scenes), 1, 1))
        copies[::2] = copies[::2, :, ::-1]
        greys = np.concatenate([scenes, np.clip(copies, 0, 255).astype(np.uint8)])
        found, seconds = [], []
        for search in (duplicates._all_pairs, duplicates._neighbouring_pairs):
            begin = time.process_time()
            found.append(search(greys, np.zeros(count, bool), True))
            seconds.append(time.process_time() - begin)
        component = duplicates.components(count, found[1])
        linked = component[found[0][:, 0]] == component[found[0][:, 1]]
        yield {
            "copies": count, "pairs": len(found[0]), "recall": round(float(linked.mean()), 6),
            "exact_seconds": round(seconds[0], 2), "sorted_seconds": round(seconds[1], 2),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=3, metavar=("STEP", "KIND", "EXAMPLES"))
    parser.add_argument("--recall", action="store_true")
    parser.add_argument("--render", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--cells", type=Path, default=ROOT / "docs" / "data" / "scale.jsonl")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "scale")
    options = parser.parse_args()
    cells: list[dict] = []
    if options.run:
        step, kind, count = options.run
        cells = [measured(step, kind, int(count), options.folder)]
    elif options.recall:
        cells = list(recall())
    with open(options.cells, "a") as file:
        file.writelines(f"{json.dumps(cell)}\n" for cell in cells)
    for cell in cells:
        print(cell)
    if options.render:
        known = [json.loads(line) for line in options.render.read_text().splitlines()]
        print(render(known))
        if options.plot:
            plot(known, options.plot)


if __name__ == "__main__":
    main()
