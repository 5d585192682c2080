"""Seconds that the self-check adds to a run, with the starter checkpoints: by the clock, and of the processor.

    python scripts/measure_self_check.py [--runs 3]

Each run is a probe on 60 labelled examples. The processor's seconds hold on a busy machine too; the check itself looks at the
clock, so that it asks fewer examples there. docs/decisions.md has the result.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

CASES = {
    "digits, 96 pixels": ("starter/digits", "starter/efficientnet-lite0", ["model.image_size=96"]),
    "news, 128 tokens": ("starter/bbc", "starter/minilm", ["model.max_length=128"]),
    "news, 512 tokens": ("starter/bbc", "starter/minilm", ["model.max_length=512"]),
}


def measure(data: str, model: str, options: list[str]) -> tuple[int, float, float]:
    """Return the number of examples asked, the seconds, and those of the processor, from one run."""
    from hftransfer import run
    from hftransfer.config import parse_overrides, with_overrides
    from hftransfer.pipeline import outputs

    check, found = outputs.check_saved_model, []

    def timed(*given):
        begin, busy = time.perf_counter(), time.process_time()
        checked = check(*given)
        found.append((checked["examples"], time.perf_counter() - begin, time.process_time() - busy))
        return checked

    with tempfile.TemporaryDirectory() as place, mock.patch.object(outputs, "check_saved_model", timed):
        base = {"data": {"train": data}, "model": model, "output": str(Path(place) / "run"), "use_cpu": True}
        further = ["data.train_examples=60", "data.split.test=0.03", "evaluation.explanations=false", *options]
        run(with_overrides(base, parse_overrides(further)))
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    print("| run | examples asked | seconds | of the processor |\n|---|---:|---:|---:|")
    for name, case in CASES.items():
        examples, seconds, busy = zip(*(measure(*case) for _ in range(asked.runs)), strict=True)
        print(f"| {name} | {min(examples)} to {max(examples)} | {statistics.median(seconds):.2f} | "
              f"{statistics.median(busy):.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
