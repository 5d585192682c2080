"""Measure runs on several inputs: what each input adds, for docs/fusion.md.

    python scripts/results_fusion.py synthetic
    npm pack emoji-datasource-twitter@15.1.2 && tar xzf emoji-datasource-twitter-15.1.2.tgz
    python scripts/results_fusion.py emoji --package package

`synthetic`: 600 examples of 8 classes. The colour of the picture, the topic of the text and the price tell one bit each; the
brand tells nothing. So one input alone is right in a quarter of the cases, two in a half, three always.
`emoji`: the pictures (Twitter, CC-BY 4.0) and names of the Unicode emoji (data: MIT), and the version of Unicode that added
them; the label is one of 9 categories. 300 training rows.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw

from hftransfer.config import checked
from hftransfer.core.wording import ends, listed
from hftransfer.evaluation.contributions import sentences
from hftransfer.runs.reader import RecordedRun
from hftransfer.train import run

COLOURS = ((200, 60, 50), (50, 80, 200))
CAPTIONS = (("lamp", "chair", "table", "sofa"), ("shirt", "coat", "shoes", "hat"))


def synthetic(folder: Path, rows: int = 600) -> tuple[Path, dict[str, str]]:
    """Write the table and its pictures; return the table and the kinds of its inputs."""
    rng, made = random.Random(0), []
    for row in range(rows):
        colour, topic, dear = (rng.randrange(2) for _ in range(3))
        shade = tuple(min(255, max(0, level + rng.randrange(-40, 40))) for level in COLOURS[colour])
        picture = Image.new("RGB", (64, 64), tuple(rng.randrange(120, 200) for _ in range(3)))
        x, y, side = rng.randrange(4, 24), rng.randrange(4, 24), rng.randrange(24, 36)
        ImageDraw.Draw(picture).rectangle((x, y, x + side, y + side), fill=shade)
        picture.save(folder / f"{row}.png")
        made.append({
            "photo": f"{row}.png", "caption": f"a {rng.choice(('good', 'new', 'used'))} {rng.choice(CAPTIONS[topic])}",
            "price": round(rng.gauss(10 + 20 * dear, 2), 2), "brand": rng.choice(("acme", "bolt", "core")),
            "label": f"{colour}{topic}{dear}",
        })  # fmt: skip
    pd.DataFrame(made).to_csv(folder / "synthetic.csv", index=False)
    return folder / "synthetic.csv", {"photo": "image", "caption": "text", "price": "number", "brand": "category"}


def emoji(folder: Path, package: Path) -> tuple[Path, dict[str, str]]:
    """Write the table of the pictures that lie in the unpacked npm package; return it and the kinds of its inputs."""
    entries = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
    pictures = package.absolute() / "img" / "twitter" / "64"
    rows = [
        {"picture": str(pictures / entry["image"]), "name": entry["name"].lower(), "version": float(entry["added_in"]),
         "label": entry["category"]}
        for entry in entries
        if entry["category"] != "Component" and (pictures / entry["image"]).is_file()
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "emoji.csv", index=False)
    return folder / "emoji.csv", {"picture": "image", "name": "text", "version": "number"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("synthetic", "emoji"))
    parser.add_argument("--package", type=Path, default=Path("package"))
    parser.add_argument("--train-examples", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table, kinds = synthetic(folder) if arguments.data == "synthetic" else emoji(folder, arguments.package)
        picture = next(iter(kinds))
        config = checked({
            "data": {"train": str(table), "input": kinds, "label": "label", "split": {"test": 0.3},
                     "train_examples": arguments.train_examples, "allow_outside": True},
            "model": {picture: {"name": "auto", "image_size": 64}},
            "evaluation": {"folds": 0, "explanations": False},
            "output": str(folder / "run"),
        })  # fmt: skip
        done = RecordedRun.open(run(config).folder)
        show(done)


def show(done: RecordedRun) -> None:
    """Print the table of combinations, what each input adds, and the seconds of the run."""
    found = done.metrics.contributions
    print(f"\n| a head on | {found.metric} | 95 % interval |\n|---|---|---|")
    for each in sorted(found.combinations, key=lambda each: -each.value):
        print(f"| {listed(each.inputs)} | {each.value:.3f} | {ends(each.model_dump(), 3)} |")
    print("\n" + "\n".join(sentences(found)))
    print(f"\n{found.examples} {found.how}; {done.record.data.counts}; {done.seconds:.0f} s")


if __name__ == "__main__":
    main()
