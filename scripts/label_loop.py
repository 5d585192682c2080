"""What the label loop finds and what it is worth: training labels are spoilt on purpose, reviewed, and cured by a patch.

    python scripts/label_loop.py DATA/clothing10

DATA holds `labels.csv` (path, label, split). A tenth of the training labels is replaced by another class. A probe is
trained on that; what `hftransfer review` shows is set against what was spoilt; the patch that a reviewer without fault
would write from it is trained with, and so are the labels as they were.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from hftransfer.apps.review.page import Review
from hftransfer.config import checked
from hftransfer.data.patch import append
from hftransfer.evaluation.comparison import compare
from hftransfer.train import run

SHOWN = (10, 20, 40, 70, 100)


def spoilt(table: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Return the rows with a column `given`: for `share` of the training rows any class but their own."""
    rng, classes = np.random.default_rng(seed), sorted(table["label"].unique())
    train = table.index[table["split"] == "train"]
    rows = rng.choice(train, round(share * len(train)), replace=False)
    given = table["label"].copy()
    given[rows] = [rng.choice([name for name in classes if name != table.at[row, "label"]]) for row in rows]
    return table.assign(given=given)


def train(folder: Path, name: str, options: argparse.Namespace, label: str, **data: object) -> Path:
    source = {"train": str(folder / "table.csv"), "input": "path", "label": label, "allow_outside": True}
    values = {"data": source | data, "model": {"name": options.model, "image_size": options.image_size}}
    return run(checked(values | {"strategy": "probe", "output": str(folder / name)})).folder


def review(folder: Path, table: pd.DataFrame) -> dict[str, object]:
    """How much of what is shown was spoilt, place by place; the patch is written on the way."""
    looked_at, truth = Review(folder), table.set_index("path")
    wrong, hits, seen = set(truth.index[truth["label"] != truth["given"]]), [], set()
    for item in looked_at.items:
        for row in item.rows:
            place = _place(row.input, truth.index)
            hits.append(place in wrong)
            if place in wrong:
                seen.add(place)
                append(looked_at.patch, [row.decision("relabel", "", label=truth.at[place, "label"])])
    found = {f"first {n}": (sum(hits[:n]), min(n, len(hits))) for n in SHOWN if n <= len(hits)}
    return {"spoilt": len(wrong), "shown": len(hits), "found": len(seen), "hits": found, "patch": str(looked_at.patch)}


def _place(path: str, places: pd.Index) -> str:
    return next(place for place in places if path.endswith(place))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="starter/efficientnet-lite0")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--share", type=float, default=0.1, help="of the training labels that are spoilt")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("hftransfer").setLevel(logging.WARNING)
    table = pd.read_csv(options.data / "labels.csv")
    table["path"] = [str((options.data / path).resolve()) for path in table["path"]]
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            rows = spoilt(table, options.share, seed)
            rows.to_csv(folder / "table.csv", index=False)
            before = train(folder, "spoilt", options, "given")
            found = review(before, rows)
            cured = train(folder, "cured", options, "given", patch=found.pop("patch"))
            clean = train(folder, "clean", options, "label")
            scores = {one.name: compare([before, one]).to_dict() for one in (cured, clean)}
            accuracy = {
                entry["name"]: entry["metrics"]["accuracy"]["value"] for c in scores.values() for entry in c["runs"]
            }
            gain = {name: _gain(found_) for name, found_ in scores.items()}
            print(json.dumps({"seed": seed} | found | {"test accuracy": accuracy, "gain over spoilt": gain}))


def _gain(comparison: dict) -> list[float]:
    """Difference of accuracy to the spoilt run with its 95 % interval, and the p-value."""
    (pair,) = comparison["pairs"]
    return [round(pair[key], 4) for key in ("difference", "low", "high", "p_value")]


if __name__ == "__main__":
    main()
