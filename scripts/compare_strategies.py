"""Which strategies can be told apart on each set? The second table of docs/results.md.

    python scripts/results.py --data-root DATA --keep runs/results
    python scripts/compare_strategies.py runs/results

The runs SET-STRATEGY of a set are compared as `hftransfer compare` does, pair by pair on the same test rows (McNemar or the
paired bootstrap, Shaffer over the pairs): the best, those that cannot be told from it, and how far the others are behind.
"""

import argparse
from pathlib import Path

from results import SETS, STRATEGIES

from hftransfer.evaluation.comparison import Comparison, compare


def row(title: str, found: Comparison) -> str:
    """Return the line of a set: the differences to the best are points of its metric, in brackets their 95 % interval."""
    level = [_strategy(name) for name in found.level_with_best[1:]]
    behind = [pair for pair in found.pairs_of_best if pair.separated]
    behind = [f"{_strategy(pair.first)} {100 * pair.difference:+.1f} ({100 * pair.low:+.1f} to {100 * pair.high:+.1f})"
              for pair in sorted(behind, key=lambda pair: abs(pair.difference))]  # fmt: skip
    cells = [title, found.metric.replace("_", " "), str(found.rows), _strategy(found.runs[0].name)]
    return f"| {' | '.join([*cells, ', '.join(level) or 'none', '; '.join(behind) or 'none'])} |"


def _strategy(run: str) -> str:
    return run.rpartition("-")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a folder of run folders SET-STRATEGY")
    root = parser.parse_args().runs
    print("| set | metric | test rows | best | not told from it | behind it, points |\n|---|---|---|---|---|---|")
    for name in SETS:
        folders = [root / f"{name}-{s}" for s in STRATEGIES if (root / f"{name}-{s}").is_dir()]
        if len(folders) > 1:
            print(row(SETS[name].title.split(",")[0], compare(folders, SETS[name].metric)))


if __name__ == "__main__":
    main()
