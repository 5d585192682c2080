"""How well a run tells inputs that are none of its classes: some classes are held back from training, and asked for.

    python scripts/unknowns.py --texts DATA/banking77 --images DATA/clothing10

A folder of texts holds `train.csv` and `test.csv` (columns text, label), one of images `labels.csv` (path, label, split).
For each seed other classes are drawn. The probe strategy is trained on the others; known test rows are then set against
test rows of the classes that were held back, and against rows of another set: BBC articles to the texts, MNIST digits to
the images.
"""

import argparse
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hftransfer.config import checked
from hftransfer.core import starter
from hftransfer.evaluation.intervals import Measured
from hftransfer.evaluation.unknown import energy, separation
from hftransfer.prediction.predictor import load
from hftransfer.prediction.reliability import distance
from hftransfer.train import run

MODELS = {"text": "starter/minilm", "image": "starter/efficientnet-lite0"}
FAR = {"text": "bbc", "image": "digits"}
FAR_ROWS = 300
HEADING = "| set | unknown | score | AUROC | FPR at 95 % | unknown flagged | known flagged |"


@dataclass(frozen=True)
class Labelled:
    """A set with its official test part: columns `input`, `label`."""

    name: str
    modality: str
    train: pd.DataFrame
    test: pd.DataFrame

    @property
    def classes(self) -> list[str]:
        return sorted(self.train["label"].unique())


def read_texts(folder: Path) -> Labelled:
    parts = [pd.read_csv(folder / f"{part}.csv").rename(columns={"text": "input"}) for part in ("train", "test")]
    return Labelled(folder.name, "text", *parts)


def read_images(folder: Path) -> Labelled:
    table = pd.read_csv(folder / "labels.csv")
    table["input"] = [str((folder / path).resolve()) for path in table["path"]]
    return Labelled(folder.name, "image", table[table["split"] == "train"], table[table["split"] == "test"])


def far_rows(modality: str) -> pd.DataFrame:
    """Rows of a set that has nothing to do with the one at hand."""
    place = starter.load(f"starter/{FAR[modality]}")
    files = pd.read_csv(place)["text"] if modality == "text" else sorted(map(str, place.rglob("*.png")))
    return pd.DataFrame({"input": files}).sample(FAR_ROWS, random_state=0)


def measure(data: Labelled, count: int, seed: int, train_examples: int | None) -> Iterator[tuple[str, ...]]:
    """Cells of the table, one row for each kind of unknown rows and each score."""
    held_back = set(np.random.default_rng(seed).choice(data.classes, count, replace=False))
    known, unknown = (data.test[data.test["label"].isin(held_back) == side] for side in (False, True))
    kinds = {f"{count} of {len(data.classes)} classes, seed {seed}": unknown}
    kinds |= {f"{FAR[data.modality]}, seed {seed}": far_rows(data.modality)}
    with tempfile.TemporaryDirectory() as place:
        predictor = load(train(data, held_back, seed, train_examples, Path(place)))
        usual, kinds = predictor.read(known), {kind: predictor.read(rows) for kind, rows in kinds.items()}
    reliability = predictor.reliability
    scores = {
        "distance": (lambda read: reliability.ood_score(read[1]), reliability.distance),
        "distance to the 10th": (lambda read: distance(read[1], reliability.reference, 10), None),
        "energy": (lambda read: energy(read[0]), reliability.energy),
    }
    for kind, odd in kinds.items():
        for name, (score, limit) in scores.items():
            found = separation(score(usual), score(odd))
            shares = [f"{(score(read) > limit).mean():.1%}" if limit is not None else "" for read in (odd, usual)]
            yield data.name, kind, name, *map(shown, found.values()), *shares


def train(data: Labelled, held_back: set[str], seed: int, train_examples: int | None, place: Path) -> Path:
    """Train a probe on the classes that are not held back; return the run folder."""
    for part, rows in (("train", data.train), ("test", data.test)):
        rows[~rows["label"].isin(held_back)][["input", "label"]].to_csv(place / f"{part}.csv", index=False)
    source = {"train": str(place / "train.csv"), "test": str(place / "test.csv"), "input": "input", "label": "label"}
    source |= {"modality": data.modality, "allow_outside": True, "train_examples": train_examples}
    values = {"data": source, "model": MODELS[data.modality], "strategy": "probe", "output": str(place / "run")}
    values |= {"evaluation": {"explanations": False}}
    return run(checked(values | {"seed": seed})).folder


def shown(found: Measured) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--hold-back", type=int, nargs=2, default=[10, 2], help="classes of the texts, of the images")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--train-examples", type=int, help="training rows at most")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    sets = [
        (read(folder), count)
        for read, folder, count in zip(
            (read_texts, read_images), (options.texts, options.images), options.hold_back, strict=True
        )
        if folder
    ]
    rows = [
        row
        for data, count in sets
        for seed in options.seeds
        for row in measure(data, count, seed, options.train_examples)
    ]
    print("\n".join([HEADING, "|---" * 7 + "|", *(f"| {' | '.join(row)} |" for row in rows)]))


if __name__ == "__main__":
    main()
