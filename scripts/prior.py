"""What do strategies gain over the probe on other data sets? The table that `auto` expects with, and its validation.

    python scripts/prior.py                      # prints the table, and what rules lose with every set left out once
    python scripts/prior.py --results FILE       # of other results: JSON lines as in docs/data/strategies.jsonl

The results are means over draws. Measured gains are simulated: the true gain plus the error of the fold's examples and
of two trainings. "Points lost" are those to the best strategy of the kind.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np

from hftransfer.planning.strategies.decision import Difference
from hftransfer.planning.strategies.prior import RETRAINING, Gain, updated

RESULTS = Path(__file__).parents[1] / "docs" / "data" / "strategies.jsonl"
WEIGHTS = RESULTS.with_name("weights.jsonl")  # of `scripts/ablate_weights.py`: trainings that begin at the best layer
NAMES = ("best-layer", "frozen", "lora", "full")
EXAMPLES = {
    "digits": 10,
    "bbc": 5,
    "banking20": 20,
    "sick": 3,
    "stsb": 5,
    "goemotions": 28,
    "clothing10": 10,
    "flowers5": 5,
    "tiles": 6,
}  # of one label a class
Kind = dict[str, Any]


def gains(kind: Kind) -> dict[str, float]:
    return {name: kind["reached"][name] - kind["reached"]["probe"] for name in NAMES}


def table(kinds: list[Kind]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return mean and standard deviation of the gains between kinds, by modality; where all are equal there is no entry."""
    by_modality = defaultdict(list)
    for kind in kinds:
        by_modality[kind["modality"]].append(gains(kind))
    return {
        modality: {
            name: (round(mean(g[name] for g in found), 3), round(pstdev([g[name] for g in found]), 3))
            for name in NAMES
            if any(g[name] for g in found)
        }
        for modality, found in by_modality.items()
    }


def from_best_layer(lines: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of the gains over the best layer's head, of tasks with classes."""
    found = defaultdict(list)
    for line in lines:
        weights = line["weights"]
        if line["arm"].endswith(", best layer") and "calibrated" in weights["start"]:
            found[line["arm"]].append(weights["three quarters mean"]["value"] - weights["start"]["value"])
    return {arm: (round(mean(gains), 3), round(pstdev(gains), 3)) for arm, gains in found.items()}


def lost(kind: Kind, chosen: str) -> float:
    found = {"probe": 0.0} | gains(kind)
    return 100 * (max(found.values()) - found[chosen])


def choice(kind: Kind, known: dict[str, tuple[float, float]], measured: tuple[str, ...], prior: bool, random) -> str:
    """Return what a rule chooses that measured some candidates on a fifth of the examples."""
    expected = {"probe": 0.0}
    for name, true in gains(kind).items():
        before = Gain(*known.get(name, (0.0, 1e-6)))
        if name not in measured:
            expected[name] = before.mean if prior else -1.0
            continue
        examples = EXAMPLES[kind["set"]] * kind["labels"]
        head = name == "best-layer"  # solved on all folds, and without random numbers
        error = np.sqrt(0.2 / (examples if head else examples / 5))
        spread = np.sqrt(error**2 + 2 * (0 if head else RETRAINING) ** 2)
        value = true + random.normal() * spread if true or not head else 0.0
        found = Difference(value, value - 1.96 * error, value + 1.96 * error, examples)
        expected[name] = updated(before if prior else None, found, 0.0, 0 if head else RETRAINING).mean
    return max(expected, key=expected.__getitem__)


def validation(kinds: list[Kind], draws: int = 300) -> list[tuple[str, float]]:
    """Return the mean points lost of each rule; the prior never knows the set that it is tried on."""
    random = np.random.default_rng(0)
    rows = [(f"always {name}", mean(lost(kind, name) for kind in kinds)) for name in ("probe", *NAMES)]
    for title, measured, prior in (
        ("prior results alone", (), True),
        ("measured: best layer", ("best-layer",), True),
        ("measured: best layer, frozen", ("best-layer", "frozen"), True),
        ("measured: all", NAMES, True),
        ("measured: all, without prior results", NAMES, False),
    ):
        found = []
        for kind in kinds:
            known = table([other for other in kinds if other["set"] != kind["set"]])[kind["modality"]]
            found += [lost(kind, choice(kind, known, measured, prior, random)) for _ in range(draws)]
        rows.append((title, mean(found)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    lines = [json.loads(line) for line in parser.parse_args().results.read_text().splitlines()]
    kinds = [kind for kind in lines if not kind["elsewhere"]]
    trained = [json.loads(line) for line in WEIGHTS.read_text().splitlines()]
    print(json.dumps(table(kinds) | {"text, over the best layer's head": from_best_layer(trained)}, indent=1))
    print("\n| rule | points lost |\n|---|---|")
    print("\n".join(f"| {title} | {points:.2f} |" for title, points in validation(kinds)))


if __name__ == "__main__":
    main()
