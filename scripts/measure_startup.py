"""Seconds from the start of `hftransfer train` to its first batch, and to the end of a probe.

    python scripts/measure_startup.py [--runs 5] [--collect]

With `--collect` each run stands beside one whose garbage is collected as Python does by itself.

The first batch goes in right after the log line that counts the threads; everything before it is imports, data and the
checkpoint. The first run fills the disk's cache and the store; medians are those of the others.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETS = {
    "text": ["starter/bbc", "--model", "starter/minilm", "model.max_length=128", "data.split.test=0.3"],
    "image": ["starter/digits", "--model", "starter/efficientnet-lite0", "model.image_size=96"],
}


PROGRAM = "from hftransfer.cli.commands import main; main()"
COLLECTING = f"from hftransfer.runtime import devices; devices.collect_seldom = lambda: None; {PROGRAM}"


def measure(kind: str, output: Path, program: str) -> tuple[float | None, float]:
    """Seconds to the first batch and to the end of the process."""
    command = [sys.executable, "-c", program, "train", *SETS[kind], "data.train_examples=200"]
    begin = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*command, "--output", str(output)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    first = None
    for line in process.stderr:
        if first is None and line.startswith("Threads:"):  # the report counts them once more
            first = time.perf_counter() - begin
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    return first, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--collect", action="store_true", help="also with Python's own collection of garbage")
    asked = parser.parse_args()
    programs = {"": PROGRAM} | ({", garbage collected as Python does": COLLECTING} if asked.collect else {})
    for kind in SETS:
        with tempfile.TemporaryDirectory() as folder:
            measure(kind, Path(folder) / "first", PROGRAM)
            rounds = [
                {name: measure(kind, Path(folder) / f"{number}{name}", program) for name, program in programs.items()}
                for number in range(asked.runs)
            ]
        for name in programs:
            print(f"{kind}{name}: {describe([of_round[name] for of_round in rounds])}, {asked.runs} runs")


def describe(measured: list[tuple[float | None, float]]) -> str:
    """Medians of the pairs of seconds, with the spread of the first."""
    first, whole = (statistics.median(column) for column in zip(*measured, strict=True))
    spread = f"{min(m[0] for m in measured):.1f} to {max(m[0] for m in measured):.1f}"
    return f"first batch after {first:.1f} s ({spread}), probe with report after {whole:.1f} s"


if __name__ == "__main__":
    main()
