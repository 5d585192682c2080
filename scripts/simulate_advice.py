"""Where should the folds that a budget still allows go? Made-up searches, in which the truth is known.

    python scripts/simulate_advice.py [--searches 200]
    python scripts/simulate_advice.py --rules        # how sure a choice must be: false departures, and regret

Every row has a difficulty that all candidates share, and each candidate is right on its own share of the rows. After one fold of
every candidate that trains, further folds go evenly to those that may change the choice, or first to the one of the
highest estimate, as `advise` does. The choice is then the simplest that the rows cannot tell from the best (Agresti & Min 2005).
Printed is the mean regret in points: how much more of the rows the best candidate is right on than the chosen one.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from hftransfer.evaluation.comparison import paired_shares
from hftransfer.evaluation.resampling import corrected_t_interval
from hftransfer.planning.strategies.candidates import next_to_measure

FOLDS, SHARED = 5, 0.5  # folds of the rows; the correlation of two candidates' luck with a row
SECONDS = {"frozen": 10, "lora": 24, "full": 30}  # a fold of each, as on 50 to 200 digits and one core
TRUTHS = {
    "far from the source, 5 a class": {"probe": 0.66, "frozen": 0.72, "lora": 0.70, "full": 0.83},
    "far from the source, 20 a class": {"probe": 0.79, "frozen": 0.88, "lora": 0.89, "full": 0.91},
    "all alike": {"probe": 0.92, "frozen": 0.93, "lora": 0.91, "full": 0.93},
    "LoRA alone is better": {"probe": 0.80, "frozen": 0.80, "lora": 0.87, "full": 0.82},
    "frozen alone is better": {"probe": 0.70, "frozen": 0.80, "lora": 0.72, "full": 0.72},
    "training is worse": {"probe": 0.80, "frozen": 0.70, "lora": 0.75, "full": 0.60},
    "the more expensive, the better": {"probe": 0.80, "frozen": 0.82, "lora": 0.84, "full": 0.85},
}


@dataclass(frozen=True)
class Rule:
    """How sure a choice must be: corrected for the number of rivals, for the training sets, for the looks.

    `by_folds` asks the corrected t interval of the folds besides, where there are three.
    """

    rivals: bool = False
    training_sets: bool = False
    inspections: bool = False
    by_folds: bool = False

    def width(self, candidates: int, folds: int) -> float:
        """Half the width of the interval in standard errors."""
        z = NormalDist().inv_cdf(1 - 0.025 / (max(1, candidates - 1) if self.rivals else 1))
        z *= np.sqrt(1 + 1 / (FOLDS - 1)) if self.training_sets else 1  # Nadeau & Bengio 2003: 1 + n_test / n_train
        return z * np.sqrt(FOLDS / folds) if self.inspections else z  # O'Brien & Fleming 1979


RULES = {
    "95 %, no correction": Rule(), "rivals": Rule(True), "rivals, training sets": Rule(True, True),
    "rivals, looks": Rule(True, inspections=True), "rivals, t of folds": Rule(True, by_folds=True),
}  # fmt: skip


@dataclass
class Search:
    """`right` says by candidate which rows it answers rightly, `folds` how many folds of it have been looked at."""

    right: dict[str, np.ndarray]
    fold_of_row: np.ndarray
    folds: dict[str, int]
    rule: Rule = Rule()

    def surely_better(self, new: str, old: str) -> bool:
        """Whether `new` is told from `old` under the rule."""
        folds = min(self.folds[new], self.folds[old])
        value, low, high = self.difference(new, old)
        low = (low + high) / 2 - (high - low) / 2 * self.rule.width(len(self.folds), folds) / 1.96
        if low > 0 and self.rule.by_folds and folds >= 3:
            gains = [
                (self.right[new].astype(int) - self.right[old])[self.fold_of_row == fold].mean()
                for fold in range(folds)
            ]
            low = corrected_t_interval(gains, FOLDS - 1, 1).low
        return low > 0

    def difference(self, new: str, old: str) -> tuple[float, float, float]:
        """Return the gain of `new` over `old` on the rows of their common folds, with its 95 % interval."""
        seen = self.fold_of_row < min(self.folds[new], self.folds[old])
        gained, lost = (self.right[a] & ~self.right[b] & seen for a, b in ((new, old), (old, new)))
        gained, lost, rows = gained.sum(), lost.sum(), seen.sum()
        middle, error = paired_shares(gained, lost, rows)
        return (gained - lost) / rows, middle - 1.96 * error, middle + 1.96 * error

    @property
    def chosen(self) -> str:
        best = max(self.folds, key=lambda candidate: self.difference(candidate, "probe")[0])
        return next(
            candidate for candidate in self.folds if candidate == best or not self.surely_better(best, candidate)
        )

    def open_ones(self) -> list[str]:
        """Rungs with folds left that are the choice or not clearly worse than it."""
        chosen = self.chosen
        worse = [candidate for candidate in self.folds if self.difference(candidate, chosen)[2] < 0]
        return [candidate for candidate, folds in self.folds.items() if folds < FOLDS and candidate not in worse]


def evenly(search: Search, open_ones: list[str]) -> str:
    return min(open_ones, key=search.folds.__getitem__)


def nearest_first(search: Search, open_ones: list[str]) -> str:
    chosen = search.chosen
    gains = {candidate: search.difference(candidate, chosen)[0] for candidate in open_ones if candidate != chosen}
    return next_to_measure(chosen, gains, search.folds, FOLDS)


def choice(truth, rows: int, seconds: float, spend: Callable, seed: int, rule: Rule = Rule()) -> str:
    """Return the chosen candidate with rows drawn by `seed` and `seconds` left after one fold of each candidate."""
    return climbed(truth, rows, seconds, spend, seed, rule)[-1]


def climbed(truth, rows: int, seconds: float, spend: Callable, seed: int, rule: Rule) -> list[str]:
    """Return the choice after every fold."""
    random = np.random.default_rng(seed)
    difficulty = np.sqrt(SHARED) * random.standard_normal(rows)
    luck = {candidate: difficulty + np.sqrt(1 - SHARED) * random.standard_normal(rows) for candidate in truth}
    right = {candidate: luck[candidate] < NormalDist().inv_cdf(share) for candidate, share in truth.items()}
    search = Search(
        right,
        random.permutation(np.arange(rows) % FOLDS),
        {"probe": FOLDS} | {r: 1 for r in truth if r != "probe"},
        rule,
    )
    inspections = [search.chosen]
    while open_ones := search.open_ones():
        candidate = spend(search, open_ones)
        seconds -= SECONDS.get(candidate, 20)
        if seconds < 0:
            break
        search.folds[candidate] += 1
        inspections.append(search.chosen)
    return inspections


def regret(
    truth: dict[str, float], rows: int, seconds: float, spend: Callable, searches: int, rule: Rule = Rule()
) -> float:
    """Return the mean over `searches`, in points."""
    chosen = [choice(truth, rows, seconds, spend, seed, rule) for seed in range(searches)]
    return 100 * (max(truth.values()) - np.mean([truth[candidate] for candidate in chosen]))


def false_departures(candidates: int, rows: int, searches: int, rule: Rule) -> tuple[float, float]:
    """How often one of equally good candidates takes the place of the probe: at the end, and at any look."""
    truth = {"probe": 0.85} | {f"r{number}": 0.85 for number in range(candidates)}
    inspections = [climbed(truth, rows, np.inf, evenly, seed, rule) for seed in range(searches)]
    return np.mean([f[-1] != "probe" for f in inspections]), np.mean([set(f) != {"probe"} for f in inspections])


def compare_rules(searches: int) -> None:
    print("| rule | false, 4 equal: end, any look | false, 6 equal: end, any look | regret: 50, 200, 1,000 rows |")
    print("|---|---|---|---|")
    for name, rule in RULES.items():
        false = [false_departures(count, 200, searches, rule) for count in (4, 6)]
        lost = [
            np.mean([regret(truth, rows, 90, nearest_first, searches, rule) for truth in TRUTHS.values()])
            for rows in (50, 200, 1000)
        ]
        shares = " | ".join(f"{100 * end:.1f}, {100 * any_look:.1f} %" for end, any_look in false)
        print(f"| {name} | {shares} | {', '.join(f'{points:.2f}' for points in lost)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--rules", action="store_true")
    asked = parser.parse_args()
    if asked.rules:
        return compare_rules(asked.searches)
    print("| rows | seconds left | evenly | the nearest first |\n|---|---|---|---|")
    for rows in (50, 100, 200, 500, 1000):
        for seconds in (45, 90, 200):
            means = [
                np.mean([regret(truth, rows, seconds, spend, asked.searches) for truth in TRUTHS.values()])
                for spend in (evenly, nearest_first)
            ]
            print(f"| {rows:,} | {seconds} | {means[0]:.1f} | {means[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
