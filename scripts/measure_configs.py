"""Runs every configuration of configs/ as it stands and says what it gives and how long it takes, as a whole process.

    python scripts/measure_configs.py [configs/text/full.yaml ...] [--write]

With `--write` the line "# Gives" in the head of each file is written anew from what was measured.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINE = re.compile(r"^# Gives .*\n", re.MULTILINE)


def measure(config: Path) -> str:
    """One line: the test accuracy with its interval, seconds, device. Raises `SystemExit` when the run fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hftransfer", "train", str(config), "--output", f"{folder}/run"]
        begin = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        accuracy = json.loads(Path(f"{folder}/run/metrics.json").read_text())["test"]["accuracy"]
        hardware = json.loads(Path(f"{folder}/run/run.json").read_text())["hardware"]
    where = f"{hardware['cores']} CPU cores" if hardware["device_type"] == "cpu" else hardware["device"]
    interval = f"{accuracy['low']:.3f} to {accuracy['high']:.3f}, n = {accuracy['n']:,}"
    return f"# Gives accuracy {accuracy['value']:.3f} ({interval}) in {seconds:.0f} s on {where}.\n"


def write(config: Path, line: str) -> None:
    """Put the line in the place of the old one, or after the first line of the head."""
    text = LINE.sub("", config.read_text(encoding="utf-8"))
    first, rest = text.split("\n", 1)
    config.write_text(f"{first}\n{line}{rest}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, default=sorted(ROOT.glob("configs/*/*.yaml")))
    parser.add_argument("--write", action="store_true", help="put the line into the file")
    asked = parser.parse_args()
    for config in asked.configs:
        line = measure(config.resolve())
        print(config.resolve().relative_to(ROOT), line.removeprefix("# "), end="", flush=True)
        if asked.write:
            write(config, line)


if __name__ == "__main__":
    main()
