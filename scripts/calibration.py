"""Does 80 % mean 80 %, and do the prediction sets hold what they promise? The table of docs/calibration.md.

    python scripts/results.py --data-root DATA --keep runs/results --strategies probe full
    python scripts/calibration.py runs/results/*

A line a run folder. All figures are of test rows, which fitted neither the temperature nor the sets. Regression has neither.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from results import SETS

from hftransfer.runs.reader import RecordedRun

COLUMNS = ("set", "strategy", "test rows", "temperature", "ECE before", "ECE after", "Brier before", "Brier after", "sets at",
           "hold the truth", "classes in a set")  # fmt: skip


def rows(run: RecordedRun) -> Iterator[str]:
    """Yield the line of a run; none for one without probabilities. A set's title stands for its key in SET-STRATEGY."""
    if "calibration" not in run.metrics:
        return
    name, strategy = run.name.partition("-")[0], run.record.strategy
    found, sets = run.metrics["calibration"]["test"], run.metrics.get("conformal", {}).get("test")
    measured = [found[when][metric] for metric in ("ece", "brier") for when in ("before", "after")]
    title = SETS[name].title.split(",")[0] if name in SETS else run.name
    cells = [title, strategy, str(measured[0]["n"]), f"{found['temperature']:.2f}", *map(shown, measured)]
    cells += [f"{sets['level']:.0%}", shown(sets["coverage"]), f"{sets['mean_size']:.2f}"] if sets else ["–"] * 3
    yield f"| {' | '.join(cells)} |"


def shown(found: dict) -> str:
    known = found["low"] is not None
    return (
        f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
        if known
        else f"{found['value']:.3f} (not known)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    lines = [line for folder in parser.parse_args().runs for line in rows(RecordedRun.open(folder))]
    print("\n".join([f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *lines]))


if __name__ == "__main__":
    main()
