"""Does 80 % mean 80 %, and do the prediction sets hold what they promise? The table of docs/calibration.md.

    python scripts/calibration.py --data-root DATA --runs runs/calibration [--sets bbc flowers5] [--extra model.image_size=128]

A probe is trained on every set of scripts/results.py whose run is not there yet; the table is read from the run folders. All
figures are of test rows, which fitted neither the temperature nor the sets. Regression has neither.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

from results import IMAGE, SETS

from hftransfer.config import parse_overrides, with_overrides
from hftransfer.run_folder import read_json
from hftransfer.train import run

COLUMNS = ("set", "test rows", "temperature", "ECE before", "ECE after", "Brier before", "Brier after", "sets at",
           "hold the truth", "classes in a set")  # fmt: skip


def train(name: str, root: str, extra: list[str], output: Path) -> None:
    """A probe on one set, as scripts/results.py describes it; `extra` is for images alone."""
    data, *overrides = (argument.replace("{root}", root) for argument in SETS[name].arguments.split())
    values = {"data": {"train": data}, "model": SETS[name].model, "strategy": "probe", "output": str(output)}
    values |= {"evaluation": {"explanations": False}}
    extra = extra if SETS[name].model == IMAGE else []
    run(with_overrides(values, parse_overrides([*overrides, *extra])))


def rows(name: str, folder: Path) -> Iterator[str]:
    """The line of a run; none for one without probabilities."""
    metrics = read_json(folder / "metrics.json")
    if "calibration" not in metrics:
        return
    found, sets = metrics["calibration"]["test"], metrics["conformal"]["test"]
    measured = [found[when][metric] for metric in ("ece", "brier") for when in ("before", "after")]
    cells = [
        SETS[name].title.split(",")[0],
        str(measured[0]["n"]),
        f"{found['temperature']:.2f}",
        *map(shown, measured),
    ]
    cells += [f"{sets['level']:.0%}", shown(sets["coverage"]), f"{sets['mean_size']:.2f}"]
    yield f"| {' | '.join(cells)} |"


def shown(found: dict) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--runs", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--extra", nargs="*", default=[], help="further key=value arguments for images")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    folders = {name: options.runs / name for name in options.sets}
    for name, folder in folders.items():
        if not folder.exists():
            train(name, options.data_root, options.extra, folder)
    lines = [line for name, folder in folders.items() for line in rows(name, folder)]
    print("\n".join([f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *lines]))


if __name__ == "__main__":
    main()
