"""Is the advice any good? The choice of `auto` against every strategy trained in full, on test parts it never saw.

    python scripts/advice.py --data-root DATA --out advice.jsonl --cells digits:20:0 sick:100:0 [--budget 120s] [--steps 100]
    python scripts/advice.py --render advice.jsonl [--plot docs/advice.svg]

A cell is set:labels a class:seed. Its training rows are drawn by the seed from the set's own training part; the test part (at
most 1,000 rows of it, the same for all seeds) is used for nothing else. Every strategy is then trained once on all the
labelled rows, each as advice would have it: the line holds what each reached, and so the regret of any rule to choose by.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd

IMAGE, TEXT = "starter/efficientnet-lite0", "starter/minilm"
TEST_ROWS = 1000
# name -> (title, checkpoint, arguments of `train`)
SETS = {
    "digits": ("MNIST digits, 64 px", IMAGE, ["model.image_size=64", "augmentation.flip=false"]),
    "bbc": ("BBC News, 64 tokens", TEXT, ["model.max_length=64"]),
    "banking20": ("Banking77, 20 of its intents", TEXT, ["model.max_length=48"]),
    "sick": ("SICK entailment, sentence pairs", TEXT, ["model.max_length=64", "data.input=[text_a,text_b]"]),
    "stsb": ("STS benchmark, scores of pairs", TEXT, ["model.max_length=64", "data.input=[text_a,text_b]"]),
    "goemotions": (
        "GoEmotions, several of 28 labels",
        TEXT,
        ["model.max_length=48", "data.separator=|", "data.on_error=skip"],
    ),
    "clothing10": ("Clothing photos, 96 px", IMAGE, ["model.image_size=96", "data.input=path"]),
    "flowers5": (
        "Flower photos, 128 px",
        IMAGE,
        ["model.image_size=128", "data.input=path", "data.split.group=author"],
    ),
    "tiles": ("Magnetic tile defects, 128 px", IMAGE, ["model.image_size=128", "data.input=path"]),
    "wbc": ("Blood cells, another laboratory, 96 px", IMAGE, ["model.image_size=96", "data.input=path"]),
}
# What has no classes to draw from is given so many rows for each "label a class": labels, and steps of the score.
ROWS = {"stsb": 5, "goemotions": 28}
# What is looked at on the test part: the metric of the advice; of scores, their rank correlation, as is usual for STS.
METRIC = {"accuracy": "accuracy", "micro_f1": "micro_f1", "rmse": "spearman"}
CANDIDATES = {
    "probe": {"strategy.type": "probe"},
    "best-layer": {"strategy.type": "probe", "head.layer": "best"},
    "frozen": {"strategy.type": "frozen"},
    "lora": {"strategy.type": "lora"},
    "full": {"strategy.type": "full"},
    "scratch": {"strategy.type": "scratch"},
}

# On request by `--candidates`: where the head begins, a table of docs/results.md.
BEGINNINGS = {
    f"{strategy}, {head} head": {"strategy.type": strategy, "strategy.head_init": head}
    for strategy in ("frozen", "lora", "full")
    for head in ("random", "probe")
}
ALL = CANDIDATES | BEGINNINGS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("advice.jsonl"))
    parser.add_argument("--cells", nargs="*", default=[f"{name}:20:0" for name in SETS])
    parser.add_argument("--budget", default="120s")
    parser.add_argument("--steps", type=int, help="length of every training; default: the strategy's own")
    parser.add_argument("--rules", nargs="*", default=["auto"], choices=["auto", "auto, simplicity"])
    parser.add_argument("--candidates", nargs="*", default=list(CANDIDATES), choices=ALL, help="trained beside auto")
    parser.add_argument("--render", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    if asked.render:
        lines = [json.loads(line) for line in asked.render.read_text().splitlines()]
        print(render(lines))
        return plot(lines, asked.plot) if asked.plot else None
    for cell in asked.cells:
        name, labels, seed = cell.split(":")
        line = measure(name, int(labels), int(seed), asked)
        with asked.out.open("a") as file:
            print(json.dumps(line), file=file)
        print(
            cell,
            chosen_by(line),
            {candidate: found.get("value") for candidate, found in line["runs"].items()},
            file=sys.stderr,
        )


def measure(name: str, labels: int, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Advice on one draw of the labels, and every strategy trained on them."""
    from hftransfer.config import parse_overrides, with_overrides

    title, model, arguments = SETS[name]
    with tempfile.TemporaryDirectory() as place:
        table = Path(place) / "rows.csv"
        draw(name, asked.data_root, labels, seed).to_csv(table, index=False)
        further = [
            *arguments,
            "data.label=label",
            "data.allow_outside=true",
            "evaluation.resamples=200",
            f"seed={seed}",
        ]
        further += [f"training.max_steps={asked.steps}"] if asked.steps else []
        base = {"data": {"train": str(table)}, "model": model} | {"output": str(Path(place) / "run")}
        values = with_overrides(base, parse_overrides(further)).model_dump(mode="json")
        line = {
            "set": name,
            "title": title,
            "labels": labels,
            "seed": seed,
            "budget": asked.budget,
            "steps": asked.steps,
        }
        runs = {}
        for rule, prefer in {"auto": "accuracy", "auto, simplicity": "simplicity"}.items():
            if rule in asked.rules:
                changes = {"strategy.type": "auto", "strategy.budget": asked.budget, "strategy.prefer": prefer}
                runs[rule] = one_run(values, changes, place)
        runs |= {candidate: one_run(values, ALL[candidate], place) for candidate in asked.candidates}
        return line | {"runs": runs}


def draw(name: str, root: Path, labels: int, seed: int) -> pd.DataFrame:
    """So many rows of each class by the seed (all, where a class has fewer), and the test rows; `split` tells them apart."""
    train, test = PARTS[name](root)
    train = train.sample(frac=1, random_state=seed)
    drawn = train.head(ROWS[name] * labels) if name in ROWS else train.groupby("label").head(labels)
    test = test.sample(n=min(TEST_ROWS, len(test)), random_state=0)
    return pd.concat([drawn.assign(split="train"), test.assign(split="test")])


def _starter_digits(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    from hftransfer.core import starter

    files = sorted(starter.load("starter/digits").glob("*/*.png"))
    table = pd.DataFrame({"path": [str(file) for file in files], "label": [f"d{file.parent.name}" for file in files]})
    test = table.groupby("label").sample(frac=0.4, random_state=0)
    return table.drop(test.index), test


def _starter_bbc(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    from hftransfer.core import starter

    table = pd.read_csv(starter.load("starter/bbc")).rename(columns={"topic": "label"}).drop_duplicates("text")
    test = table.groupby("label").sample(frac=0.4, random_state=0)
    return table.drop(test.index), test


def _banking20(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    train, test = (pd.read_csv(root / "banking77" / f"{part}.csv") for part in ("train", "test"))
    intents = sorted(train["label"].unique())[:20]
    train, test = (part[part["label"].isin(intents)] for part in (train, test))
    return train[~train["text"].isin(test["text"])], test


def _sick(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    train, test = (pd.read_csv(root / "sick_pairs" / f"{part}.csv") for part in ("train", "test"))
    return tuple(part[["text_a", "text_b", "label"]] for part in (train, test))


def _stsb(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    train, test = (pd.read_csv(root / "stsb_en_de" / f"en_{part}.csv") for part in ("train", "test"))
    return tuple(part.rename(columns={"score": "label"}) for part in (train, test))


def _goemotions(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    train, test = (pd.read_csv(root / "goemotions_multilabel" / f"{part}.csv") for part in ("train", "test"))
    return tuple(part[["text", "labels"]].rename(columns={"labels": "label"}) for part in (train, test))


def _clothing10(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = _pictures(root / "clothing10")
    return tuple(table.loc[table["split"] == part, ["path", "label"]] for part in ("train", "test"))


def _flowers5(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return _by_group(_pictures(root / "flowers5"), "author")


def _tiles(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    train, test = _by_group(_pictures(root / "magnetic_tile"), "near_dup_group")
    return train.groupby("near_dup_group").head(1), test  # near-duplicates would be on both sides of a fold


def _wbc(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = _pictures(root / "wbc").query("label != 'basophil'")  # one picture in the first laboratory
    return tuple(table.loc[table["domain"] == part, ["path", "label"]] for part in ("dataset1", "dataset2"))


def _pictures(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "labels.csv")
    return table.assign(path=[str((folder / path).resolve()) for path in table["path"]])


def _by_group(table: pd.DataFrame, group: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test rows (0.4) of different authors, or of different near-duplicates."""
    from sklearn.model_selection import GroupShuffleSplit

    (train, test), *_ = GroupShuffleSplit(1, test_size=0.4, random_state=0).split(table, groups=table[group])
    return tuple(table.iloc[rows][["path", "label", group]] for rows in (train, test))


PARTS = {
    "digits": _starter_digits, "bbc": _starter_bbc, "banking20": _banking20, "sick": _sick, "stsb": _stsb,
    "goemotions": _goemotions, "clothing10": _clothing10, "flowers5": _flowers5, "tiles": _tiles, "wbc": _wbc,
}  # fmt: skip


def one_run(values: dict[str, Any], changes: dict[str, Any], place: str) -> dict[str, Any]:
    """Return what one strategy reached on the test part with all the labelled rows, and what the run took."""
    from hftransfer.config import with_overrides
    from hftransfer.planning.strategies.wording import FILE
    from hftransfer.train import run

    with tempfile.TemporaryDirectory(dir=place) as folder:
        begin = time.perf_counter()
        try:
            made = run(with_overrides(json.loads(json.dumps(values)), {"output": f"{folder}/run"} | changes))
        except Exception as error:  # one broken run must not end the table; it is shown as such
            return {"error": repr(error)[-400:]}
        test = made.metrics["test"]
        metric = next(metric for headline, metric in METRIC.items() if headline in test)
        found = test[metric] | {"metric": metric, "seconds": time.perf_counter() - begin}
        advice = made.folder / FILE
        return found | {"advice": json.loads(advice.read_text())} if advice.exists() else found


# --- the table and the plot -------------------------------------------------------------------------------------------


RULES = {"auto": "o", "auto, simplicity": "D", "always probe": "s", "always frozen": "v", "always full": "^"}
FIXED = ("always best-layer", "always lora")  # rules of the table alone
ELSEWHERE = ("wbc",)  # sets whose test rows come from another place than the training rows
Lines = list[dict[str, Any]]


def reached(line: dict[str, Any]) -> dict[str, float]:
    return {candidate: found["value"] for candidate, found in line["runs"].items() if "value" in found}


def regrets(line: dict[str, Any]) -> dict[str, float]:
    """Points that each of `RULES` and `FIXED` loses to the best strategy in hindsight."""
    found = reached(line)
    best = max(value for name, value in found.items() if name not in RULES)
    taken = {rule: rule.removeprefix("always ") for rule in (*RULES, *FIXED)}
    return {rule: 100 * (best - found[name]) for rule, name in taken.items() if name in found}


def chosen_by(line: dict[str, Any], rule: str = "auto") -> str:
    return line["runs"].get(rule, {}).get("advice", {}).get("chosen", "")


def by_kind(lines: Lines) -> dict[tuple[str, int], Lines]:
    """Return the seeds of each set and number of labels a class, in the order of `SETS`."""
    order = list(SETS)
    ordered = sorted(lines, key=lambda line: (order.index(line["set"]), line["labels"], line["seed"]))
    return {kind: list(seeds) for kind, seeds in groupby(ordered, key=lambda line: (line["title"], line["labels"]))}


def render(lines: Lines) -> str:
    """Return what the strategies reached and what the rules lost, per set and number of labels, the mean over seeds."""
    return "\n\n".join([_reached_table(lines), _regret_table(lines), _summary(lines)])


def _reached_table(lines: Lines) -> str:
    rows = [
        f"| set | a class | seeds | {' | '.join(CANDIDATES)} | all trained, s |",
        "|---|---|---|" + "---|" * (len(CANDIDATES) + 1),
    ]
    for (title, labels), seeds in by_kind(lines).items():
        found = [[reached(line)[candidate] for line in seeds if candidate in reached(line)] for candidate in CANDIDATES]
        means = " | ".join(f"{mean(values):.3f}" if values else "" for values in found)
        seconds = mean(sum(run.get("seconds", 0) for run in line["runs"].values()) for line in seeds)
        rows.append(f"| {title} | {labels} | {len(seeds)} | {means} | {seconds:.0f} |")
    return "\n".join(rows)


def _regret_table(lines: Lines) -> str:
    rows = [
        f"| set | a class | auto chose | {' | '.join(RULES)} | advice, s |",
        "|---|---|---|" + "---|" * (len(RULES) + 1),
    ]
    for (title, labels), seeds in by_kind(lines).items():
        chosen = Counter(chosen_by(line) for line in seeds).most_common()
        lost = " | ".join(f"{mean(regrets(line).get(rule, np.nan) for line in seeds):.1f}" for rule in RULES)
        words = ", ".join(f"{candidate} {count}" for candidate, count in chosen)
        rows.append(
            f"| {title} | {labels} | {words} | {lost} | {mean(line['runs']['auto']['seconds'] for line in seeds):.0f} |"
        )
    return "\n".join(rows)


def _summary(lines: Lines) -> str:
    near = [line for line in lines if line["set"] not in ELSEWHERE]
    return "\n\n".join(
        [
            f"Points lost over all {len(lines)} cells:",
            _lost_table(lines),
            f"Where the test rows are like the training rows ({len(near)} cells):",
            _lost_table(near),
        ]
    )


def _lost_table(lines: Lines) -> str:
    """Means over the kinds (set and labels a class) with intervals: another choice of kinds, not of rows or seeds."""
    rows = [
        "| rule | mean (95 %) | more than auto (95 %) | worst | more than 5 |",
        "|---|---|---|---|---|",
    ]
    kinds = [[regrets(line) for line in seeds] for seeds in by_kind(lines).values()]
    for rule in (*RULES, *FIXED):
        lost = [found[rule] for seeds in kinds for found in seeds if rule in found]
        if len(lost) < sum(map(len, kinds)):
            continue
        mean_lost = _over_kinds([mean(found[rule] for found in seeds) for seeds in kinds])
        more = _over_kinds([mean(found[rule] - found["auto"] for found in seeds) for seeds in kinds])
        many = f"{sum(points > 5 for points in lost)} of {len(lost)}"
        more = "" if rule == "auto" else more
        rows.append(f"| {rule} | {mean_lost} | {more} | {max(lost):.1f} | {many} |")
    return "\n".join(rows)


def _over_kinds(values: list[float]) -> str:
    """Return the mean, and its percentile interval by 10,000 resamples."""
    from scipy.stats import bootstrap

    low, high = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    return f"{mean(values):.1f} ({low:.1f} to {high:.1f})"


def plot(lines: Lines, path: Path) -> None:
    """Points that each rule lost: the mean over seeds as a mark, from the least to the most as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = by_kind(lines)
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.5 * len(kinds)), layout="constrained")
    for number, (rule, marker) in enumerate(RULES.items()):
        lost = [[regrets(line).get(rule, np.nan) for line in seeds] for seeds in kinds.values()]
        heights = [row + 0.15 * (number - (len(RULES) - 1) / 2) for row in range(len(kinds))]
        axes.plot([mean(points) for points in lost], heights, marker, label=rule, markersize=5, color=f"C{number}")
        axes.hlines(
            heights, [min(points) for points in lost], [max(points) for points in lost], f"C{number}", alpha=0.4
        )
    axes.set_yticks(range(len(kinds)), [f"{title}, {labels} a class" for title, labels in kinds])
    axes.set_xlabel("points lost to the best in hindsight (range: seeds)")
    for row in range(0, len(kinds), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    figure.legend(loc="outside upper center", ncols=len(RULES), frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
