"""The main job, offline, on a text set and an image set that come as packages: about a minute on a laptop.

    make quickstart        (or: python scripts/quickstart.py [--output runs])

200 labelled examples each: BBC News with a BERT, handwritten digits with a convolution network.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

RUNS = {
    "text": ("starter/bbc", "starter/minilm", ["model.max_length=128", "data.split.test=0.3"]),
    "image": ("starter/digits", "starter/efficientnet-lite0", ["model.image_size=96", "data.split.test=0.2"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs"))
    folder = parser.parse_args().output
    table = Table("what", "strategy", "test accuracy (95 % interval)", "seconds", title="200 labelled examples each")
    for kind, (data, model, options) in RUNS.items():
        output = folder / f"quickstart-{kind}"
        shutil.rmtree(output, ignore_errors=True)
        command = ["train", data, "--model", model, "--strategy", "probe", "--output", str(output)]
        command += ["data.train_examples=200", *options]
        print(f"\n$ hftransfer {' '.join(command)}", flush=True)
        begin = time.perf_counter()
        if subprocess.run([sys.executable, "-m", "hftransfer", *command]).returncode:
            sys.exit(f"{data} failed: see the message above")
        accuracy = json.loads((output / "metrics.json").read_text())["test"]["accuracy"]
        shown = f"{accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f}, n = {accuracy['n']})"
        table.add_row(f"{kind}: {data} + {model}", "probe", shown, f"{time.perf_counter() - begin:.0f}")
    Console().print(table)
    command = _command()
    print(f"""Next:
  {command} predict {folder}/quickstart-text "The striker scored twice in the final minutes."
  {command} train starter/bbc --strategy full data.train_examples=200 model.max_length=128
  {command} train path/to/your/images""")


def _command() -> str:
    """Return how this shell calls hftransfer: by its name where that is on the PATH, else by its path."""
    beside = Path(sys.executable).with_name("hftransfer")
    found = shutil.which("hftransfer")
    if found and Path(found).resolve() == beside.resolve():
        return "hftransfer"
    return os.path.relpath(beside) if beside.exists() else f"{sys.executable} -m hftransfer"


if __name__ == "__main__":
    main()
