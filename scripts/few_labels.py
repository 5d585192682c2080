"""The linear probe on few labels beside the usual recipe and class means, on the same features: a table of docs/results.md.

    python scripts/few_labels.py --data-root DATA --out few_labels.jsonl [--sets digits bbc] [--labels 2 5 20] [--draws 10]
    python scripts/few_labels.py --render few_labels.jsonl

Every draw takes so many rows of each class; all heads see the same rows, and penalties are chosen in the same folds by
log-loss. Everything is judged on up to 1,000 rows of the test part.
"""

import argparse
import json
import logging
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from labels import problem_of
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from hftransfer.planning.labels.curve import Problem
from hftransfer.probe.solver import PENALTIES, make_folds, mean_loss, solve_head

TEST_ROWS, MOST_ROWS = 1000, 500
Folds = list[tuple[np.ndarray, np.ndarray]]
Head = Callable[[Problem, np.ndarray, Folds, np.ndarray], np.ndarray]


def ours(problem: Problem, rows: np.ndarray, folds: Folds, test: np.ndarray) -> np.ndarray:
    """Return logits (T, C) of the test rows by our own head."""
    return solve_head(problem.features[rows], problem.targets[rows], problem.task, folds).logits(problem.features[test])


def each_by_its_own_spread(problem: Problem, rows: np.ndarray, folds: Folds, test: np.ndarray) -> np.ndarray:
    """StandardScaler and LogisticRegressionCV of scikit-learn, with the penalties that our search may take."""
    strengths = 1 / (np.array(PENALTIES) * len(rows))
    search = LogisticRegressionCV(
        Cs=strengths, cv=folds, max_iter=1000, scoring="neg_log_loss", use_legacy_attributes=False
    )
    classifier = make_pipeline(StandardScaler(), search).fit(problem.features[rows], problem.targets[rows])
    return classifier.decision_function(problem.features[test])


HEADS: dict[str, Head] = {
    "hftransfer": ours,
    "each feature by its own spread": each_by_its_own_spread,
}


def measure(name: str, problem: Problem, labels: int, draws: int) -> Iterator[dict]:
    """Accuracy and log-loss of every head, a line for each draw."""
    classes, test = np.unique(problem.targets), problem.held[:TEST_ROWS]
    if labels * len(classes) > MOST_ROWS:
        return
    for draw in tqdm(range(draws), desc=f"{name}, {labels} labels a class"):
        order = np.random.default_rng(draw).permutation(problem.pool)
        rows = np.concatenate([order[problem.targets[order] == label][:labels] for label in classes])
        folds = make_folds(problem.task, problem.targets[rows], None, 5, draw)
        for head, fit in HEADS.items():
            logits = fit(problem, rows, folds, test)
            right = float((logits.argmax(1) == problem.targets[test]).mean())
            loss = mean_loss(problem.task, logits, problem.targets[test])
            yield {"set": name, "labels": labels, "draw": draw, "head": head, "accuracy": right, "log_loss": loss}


def render(lines: list[dict]) -> str:
    """Mean accuracy (standard deviation over draws) and mean log-loss, a row for each set and number of labels."""
    rows = [f"| set | labels a class | draws | {' | '.join(HEADS)} |", "|---|---|---|" + "---|" * len(HEADS)]
    for (name, labels), cell in groupby(lines, key=lambda line: (line["set"], line["labels"])):
        found = list(cell)
        draws = len({line["draw"] for line in found})
        words = " | ".join(_words([line for line in found if line["head"] == head]) for head in HEADS)
        rows.append(f"| {name} | {labels} | {draws} | {words} |")
    return "\n".join(rows)


def _words(lines: list[dict]) -> str:
    accuracy = [line["accuracy"] for line in lines]
    spread = stdev(accuracy) if len(accuracy) > 1 else 0.0
    return f"{mean(accuracy):.3f} ± {spread:.3f}, {mean(line['log_loss'] for line in lines):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--out", type=Path, default=Path("few_labels.jsonl"))
    parser.add_argument("--sets", nargs="*", default=["digits", "flowers5", "clothing10", "bbc", "banking77"])
    parser.add_argument("--labels", nargs="*", type=int, default=[2, 5, 20])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--render", type=Path)
    asked = parser.parse_args()
    if asked.render:
        return print(render([json.loads(line) for line in asked.render.read_text().splitlines()]))
    logging.basicConfig(level=logging.WARNING)
    for name in asked.sets:
        problem = problem_of(name, asked.data_root)
        for labels in asked.labels:
            with asked.out.open("a") as file:
                for line in measure(name, problem, labels, asked.draws):
                    print(json.dumps(line), file=file, flush=True)


if __name__ == "__main__":
    main()
