"""Seconds of the linear probe beside scikit-learn's LogisticRegressionCV, over classes, examples and features.

    python scripts/measure_solver.py [--threads 2] [--rounds 3] [--features FILE.npz ...] [--grid]

Both standardise the features and choose the strength by the loss in five folds: 11 penalties here, 9 strengths (`Cs=9`, its
default range and 100 iterations) there. The two take turns; a cell is the median of the rounds. Made features have a decaying
spectrum and overlapping classes, like sentence embeddings. FILE.npz holds `x` (N, D) and `y` (N,) of real ones. `--grid`
prints the table of docs/results.md: the probe alone.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from hftransfer.probe.solver import make_folds, solve_head
from hftransfer.tasks import make_task

PROBLEMS = [(5, 300, 384), (5, 1500, 384), (150, 1500, 384)]  # classes, examples, features
LARGE = (77, 10_000, 384)
GRID = [(classes, rows, width) for width in (384, 1280) for rows in (500, 1500, 5000) for classes in (5, 20, 77, 150)]


def made(classes: int, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) around class centres, with the variance of axis k as 1 / k, and targets (N,)."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, width + 1) ** -0.5
    targets = np.arange(rows) % classes
    centres = rng.normal(size=(classes, width)) * spectrum
    axes = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return ((centres[targets] + rng.normal(size=(rows, width)) * spectrum * 3) @ axes).astype(np.float32), targets


def ours(features: np.ndarray, targets: np.ndarray) -> None:
    task = make_task("single_label", tuple(map(str, range(targets.max() + 1))))
    solve_head(features, targets, task, make_folds(task, targets, None, 5, 0))


def scikit_learn(features: np.ndarray, targets: np.ndarray) -> None:
    search = LogisticRegressionCV(Cs=9, cv=5, scoring="neg_log_loss", l1_ratios=(0,), use_legacy_attributes=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are too few for its weakest strengths
        make_pipeline(StandardScaler(), search).fit(features, targets)


def seconds(solve: Callable[[np.ndarray, np.ndarray], None], features: np.ndarray, targets: np.ndarray) -> float:
    begin = time.perf_counter()
    solve(features, targets)
    return time.perf_counter() - begin


def row(name: str, features: np.ndarray, targets: np.ndarray, rounds: int, solvers: list[Callable]) -> str:
    """Return one row of the table: median seconds of each solver, which take turns."""
    times = [[seconds(solve, features, targets) for solve in solvers] for _ in range(rounds)]
    cells = [f"{statistics.median(column):.2f}" for column in zip(*times, strict=True)]
    sizes = (targets.max() + 1, *features.shape)
    return f"| {name} | " + " | ".join([*map(str, sizes), *cells]) + " |"


def processor() -> str:
    """Return the processor's name, on Linux from /proc."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--features", nargs="*", default=[], metavar="FILE.npz")
    parser.add_argument("--grid", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}, threads: {options.threads}, rounds: {options.rounds}\n")
    print("| features | classes | examples | features | probe, s | scikit-learn, s |\n|---|---|---|---|---|---|")
    with threadpool_limits(options.threads):
        ours(*made(3, 60, 10))  # imports and thread pools
        if options.grid:
            for sizes in GRID:
                print(row("made", *made(*sizes), options.rounds, [ours]), flush=True)
            return
        for sizes in PROBLEMS:
            print(row("made", *made(*sizes), options.rounds, [ours, scikit_learn]), flush=True)
        for file in map(Path, options.features):
            with np.load(file) as arrays:
                features, targets = arrays["x"], np.unique(arrays["y"], return_inverse=True)[1]
            both = [ours, scikit_learn] if features.size * targets.max() < 2e8 else [ours]
            print(row(file.stem, features, targets, options.rounds, both), flush=True)
        print(row("made", *made(*LARGE), options.rounds, [ours]), flush=True)


if __name__ == "__main__":
    main()
