"""Where should the folds that a budget still allows go? Made-up climbs, in which the truth is known.

    python scripts/simulate_advice.py [--climbs 200]

Every row has a difficulty that all rungs share, and each rung is right on its own share of the rows. After one fold of every
rung that trains, further folds go evenly to those that may change the choice, or first to the one of the highest estimate,
as `advise` does. The choice is then the simplest that the rows cannot tell from the best (Agresti & Min 2005). Printed is
the mean regret in points: how much more of the rows the best rung is right on than the chosen one.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from hftransfer.advice.rungs import next_to_measure
from hftransfer.evaluation.comparison import paired_shares

FOLDS, SHARED = 5, 0.5  # folds of the rows; the correlation of two rungs' luck with a row
SECONDS = {"frozen": 10, "lora": 24, "full": 30}  # a fold of each, as on 50 to 200 digits and one core
TRUTHS = {
    "far from the source, 5 a class": {"probe": 0.66, "frozen": 0.72, "lora": 0.70, "full": 0.83},
    "far from the source, 20 a class": {"probe": 0.79, "frozen": 0.88, "lora": 0.89, "full": 0.91},
    "all alike": {"probe": 0.92, "frozen": 0.93, "lora": 0.91, "full": 0.93},
    "LoRA alone is better": {"probe": 0.80, "frozen": 0.80, "lora": 0.87, "full": 0.82},
    "frozen alone is better": {"probe": 0.70, "frozen": 0.80, "lora": 0.72, "full": 0.72},
    "training is worse": {"probe": 0.80, "frozen": 0.70, "lora": 0.75, "full": 0.60},
    "the dearer, the better": {"probe": 0.80, "frozen": 0.82, "lora": 0.84, "full": 0.85},
}


@dataclass
class Climb:
    """`right` says by rung which rows it answers rightly, `folds` how many folds of it have been looked at."""

    right: dict[str, np.ndarray]
    fold_of_row: np.ndarray
    folds: dict[str, int]

    def difference(self, new: str, old: str) -> tuple[float, float, float]:
        """The gain of `new` over `old` on the rows of their common folds, with its 95 % interval."""
        seen = self.fold_of_row < min(self.folds[new], self.folds[old])
        gained, lost = (self.right[a] & ~self.right[b] & seen for a, b in ((new, old), (old, new)))
        gained, lost, rows = gained.sum(), lost.sum(), seen.sum()
        middle, error = paired_shares(gained, lost, rows)
        return (gained - lost) / rows, middle - 1.96 * error, middle + 1.96 * error

    @property
    def chosen(self) -> str:
        best = max(self.folds, key=lambda rung: self.difference(rung, "probe")[0])
        return next(rung for rung in self.folds if rung == best or self.difference(best, rung)[1] <= 0)

    def open_ones(self) -> list[str]:
        """Rungs with folds left that are the choice or not clearly worse than it."""
        chosen = self.chosen
        worse = [rung for rung in self.folds if self.difference(rung, chosen)[2] < 0]
        return [rung for rung, folds in self.folds.items() if folds < FOLDS and rung not in worse]


def evenly(climb: Climb, open_ones: list[str]) -> str:
    return min(open_ones, key=climb.folds.__getitem__)


def nearest_first(climb: Climb, open_ones: list[str]) -> str:
    chosen = climb.chosen
    gains = {rung: climb.difference(rung, chosen)[0] for rung in open_ones if rung != chosen}
    return next_to_measure(chosen, gains, climb.folds, FOLDS)


def choice(truth: dict[str, float], rows: int, seconds: float, spend: Callable, seed: int) -> str:
    """The rung that is chosen when the rows are drawn by `seed` and `seconds` are left after one fold of each rung."""
    random = np.random.default_rng(seed)
    difficulty = np.sqrt(SHARED) * random.standard_normal(rows)
    luck = {rung: difficulty + np.sqrt(1 - SHARED) * random.standard_normal(rows) for rung in truth}
    right = {rung: luck[rung] < NormalDist().inv_cdf(share) for rung, share in truth.items()}
    climb = Climb(right, random.permutation(np.arange(rows) % FOLDS), {"probe": FOLDS} | dict.fromkeys(SECONDS, 1))
    while open_ones := climb.open_ones():
        rung = spend(climb, open_ones)
        seconds -= SECONDS[rung]
        if seconds < 0:
            break
        climb.folds[rung] += 1
    return climb.chosen


def regret(truth: dict[str, float], rows: int, seconds: float, spend: Callable, climbs: int) -> float:
    """The mean over `climbs`, in points."""
    chosen = [choice(truth, rows, seconds, spend, seed) for seed in range(climbs)]
    return 100 * (max(truth.values()) - np.mean([truth[rung] for rung in chosen]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--climbs", type=int, default=200)
    asked = parser.parse_args()
    print("| rows | seconds left | evenly | the nearest first |\n|---|---|---|---|")
    for rows in (50, 100, 200, 500, 1000):
        for seconds in (45, 90, 200):
            means = [
                np.mean([regret(truth, rows, seconds, spend, asked.climbs) for truth in TRUTHS.values()])
                for spend in (evenly, nearest_first)
            ]
            print(f"| {rows:,} | {seconds} | {means[0]:.1f} | {means[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
