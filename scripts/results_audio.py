"""Spoken digits (FSDD): every strategy on starter/whisper-base, and MFCC statistics in scikit-learn, known and new speakers.

    python scripts/results_audio.py --data FSDD --out audio.jsonl [--splits official speakers] [--strategies mfcc probe]
    python scripts/results_audio.py --data FSDD --out audio.jsonl --strategies full --extra training.max_steps=100
    python scripts/results_audio.py --render audio.jsonl

FSDD is a folder with `labels.csv` (path, label, speaker, split). `official` has the same six speakers on both sides;
`speakers` leaves out one after the other, and cross-validates and stops by speaker too.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

MODEL = "starter/whisper-base"
STRATEGIES = ("mfcc", "probe", "frozen", "full", "gradual", "lora", "scratch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/fsdd_spoken_digits"))
    parser.add_argument("--out", type=Path, default=Path("audio.jsonl"))
    parser.add_argument("--splits", nargs="*", default=["official", "speakers"])
    parser.add_argument("--strategies", nargs="*", default=["mfcc", "probe"], choices=STRATEGIES)
    parser.add_argument("--extra", nargs="*", default=[], help="further key=value arguments of every run")
    parser.add_argument("--render", type=Path)
    asked = parser.parse_args()
    if asked.render:
        return print(render([json.loads(line) for line in asked.render.read_text().splitlines()]))
    rows = pd.read_csv(asked.data / "labels.csv")
    rows["path"] = [str((asked.data / path).absolute()) for path in rows["path"]]
    with asked.out.open("a") as file, tempfile.TemporaryDirectory() as folder:
        for strategy in asked.strategies:
            for name, table in tables(rows, asked.splits):
                line = {"split": name, "strategy": strategy, "extra": asked.extra}
                line |= mfcc(table) if strategy == "mfcc" else trained(table, strategy, asked.extra, Path(folder))
                print(json.dumps(line), file=file, flush=True)
                print(name, strategy, *asked.extra, line["accuracy"], f"{line['seconds']:.0f} s", file=sys.stderr)


def tables(rows: pd.DataFrame, splits: list[str]) -> list[tuple[str, pd.DataFrame]]:
    """Return a table for the official split, and one for each speaker that is left out."""
    found = [("official", rows.drop(columns="speaker"))] if "official" in splits else []
    for speaker in sorted(rows["speaker"].unique()) if "speakers" in splits else ():
        split = np.where(rows["speaker"] == speaker, "test", "train")
        found.append((speaker, rows.assign(split=split)))
    return found


def mfcc(table: pd.DataFrame) -> dict:
    """Fit a support vector machine on mean, deviation and change of 20 MFCCs; its C by cross-validation over speakers."""
    from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    from hftransfer.modalities import kind_of

    begin = time.perf_counter()
    features = kind_of("audio").raw_features(list(table["path"]))
    train, test = (np.flatnonzero(table["split"] == name) for name in ("train", "test"))
    groups = table["speaker"].to_numpy()[train] if "speaker" in table else None
    folds = StratifiedKFold(5, shuffle=True, random_state=0) if groups is None else GroupKFold(5)
    search = GridSearchCV(make_pipeline(StandardScaler(), SVC()), {"svc__C": [1, 10, 100]}, cv=folds)
    labels = table["label"].to_numpy()
    search.fit(features[train], labels[train], groups=groups)
    right = int((search.predict(features[test]) == labels[test]).sum())
    return {"accuracy": measured(right, len(test)), "seconds": time.perf_counter() - begin}


def measured(right: int, rows: int) -> dict[str, float]:
    from hftransfer.evaluation.intervals import wilson

    low, high = wilson(right, rows)
    return {"value": right / rows, "low": low, "high": high, "n": rows}


def trained(table: pd.DataFrame, strategy: str, extra: list[str], folder: Path) -> dict:
    """Train once; seconds are those of the run, without Python's imports."""
    from hftransfer.config import parse_overrides, with_overrides
    from hftransfer.train import run

    path = folder / "table.csv"
    table.to_csv(path, index=False)
    data = {"train": str(path), "input": "path", "label": "label", "task": "single_label", "allow_outside": True}
    data |= {"split": {"group": "speaker"}} if "speaker" in table else {}
    number = len(list(folder.iterdir()))
    values = {"data": data, "model": MODEL, "strategy": strategy, "output": str(folder / f"run{number}")}
    done = run(with_overrides(values, parse_overrides(extra)))
    about = json.loads((done.folder / "run.json").read_text())
    share = json.loads((done.folder / "receipt.json").read_text())["trainable_share"]
    found = {name: done.metrics["test"]["accuracy"][name] for name in ("value", "low", "high", "n")}
    seconds = sum(about["seconds"].values())
    return {"accuracy": found, "seconds": seconds, "trainable": share, "device": about["hardware"]["device"]}


def render(lines: list[dict]) -> str:
    """Return one row per strategy: the official split, the mean over speakers left out, and each of them."""
    speakers = sorted({line["split"] for line in lines} - {"official"})
    rows = ["| strategy | official split | new speaker, mean | " + " | ".join(speakers) + " | seconds a run |"]
    rows.append("|" + "---|" * (4 + len(speakers)))
    for name in dict.fromkeys(" ".join([line["strategy"], *line["extra"]]) for line in lines):
        own = {line["split"]: line for line in lines if " ".join([line["strategy"], *line["extra"]]) == name}
        new = [own[speaker]["accuracy"]["value"] for speaker in speakers if speaker in own]
        mean = f"{np.mean(new):.3f}" if len(new) == len(speakers) and new else "–"
        each = [f"{own[speaker]['accuracy']['value']:.3f}" if speaker in own else "–" for speaker in speakers]
        seconds = f"{np.median([line['seconds'] for line in own.values()]):.0f}"
        rows.append(f"| {' | '.join([name, _official(own.get('official')), mean, *each, seconds])} |")
    return "\n".join(rows)


def _official(line: dict | None) -> str:
    return "–" if line is None else "{value:.3f} ({low:.3f} to {high:.3f})".format(**line["accuracy"])


if __name__ == "__main__":
    main()
