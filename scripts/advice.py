"""Is the advice any good? The choice of `auto` against every strategy trained in full, on test parts it never saw.

    python scripts/advice.py --data-root DATA --out advice.jsonl --cells digits:20:0 sick:100:0 [--budget 120s] [--steps 100]
    python scripts/advice.py --render advice.jsonl [--plot docs/advice.png]

A cell is set:labels a class:seed. Its training rows are drawn by the seed from the set's own training part; the test part (at
most 1,000 rows of it, the same for all seeds) is used for nothing else. Every strategy is then trained once on all the
labelled rows, each as advice would have it: the line holds what each reached, and so the regret of any rule to choose by.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

IMAGE, TEXT = "starter/efficientnet-lite0", "starter/minilm"
TEST_ROWS = 1000
# name -> (title, checkpoint, arguments of `train`)
SETS = {
    "digits": ("MNIST digits, 64 px", IMAGE, ["model.image_size=64", "augmentation.flip=false"]),
    "bbc": ("BBC News, 64 tokens", TEXT, ["model.max_length=64"]),
    "banking20": ("Banking77, 20 of its intents", TEXT, ["model.max_length=48"]),
    "sick": ("SICK entailment, sentence pairs", TEXT, ["model.max_length=64", "data.input=[text_a,text_b]"]),
    "clothing10": ("Clothing photos, 96 px", IMAGE, ["model.image_size=96", "data.input=path"]),
}
RUNGS = {
    "probe": {"strategy.type": "probe"},
    "best-layer": {"strategy.type": "probe", "head.layer": "best"},
    "frozen": {"strategy.type": "frozen"},
    "lora": {"strategy.type": "lora"},
    "full": {"strategy.type": "full"},
    "scratch": {"strategy.type": "scratch"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("advice.jsonl"))
    parser.add_argument("--cells", nargs="*", default=[f"{name}:20:0" for name in SETS])
    parser.add_argument("--budget", default="120s")
    parser.add_argument("--steps", type=int, help="length of every training; default: the strategy's own")
    parser.add_argument("--render", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    if asked.render:
        lines = [json.loads(line) for line in asked.render.read_text().splitlines()]
        print(render(lines))
        return plot(lines, asked.plot) if asked.plot else None
    for cell in asked.cells:
        name, labels, seed = cell.split(":")
        line = measure(name, int(labels), int(seed), asked.data_root, asked.budget, asked.steps)
        with asked.out.open("a") as file:
            print(json.dumps(line), file=file)
        print(cell, line["chosen"], {rung: found.get("value") for rung, found in line["runs"].items()}, file=sys.stderr)


def measure(name: str, labels: int, seed: int, root: Path, budget: str, steps: int | None) -> dict[str, Any]:
    """Advice on one draw of the labels, and every strategy trained on them."""
    from hftransfer.advice.command import advise
    from hftransfer.advice.words import as_dict
    from hftransfer.config import parse_overrides, with_overrides

    title, model, arguments = SETS[name]
    with tempfile.TemporaryDirectory() as place:
        table = Path(place) / "rows.csv"
        draw(name, root, labels, seed).to_csv(table, index=False)
        further = [
            *arguments,
            "data.label=label",
            "data.allow_outside=true",
            "evaluation.resamples=200",
            f"seed={seed}",
        ]
        further += [f"training.max_steps={steps}"] if steps else []
        base = {"data": {"train": str(table)}, "model": model} | {"output": str(Path(place) / "run")}
        values = with_overrides(base, parse_overrides(further)).model_dump(mode="json")
        begin = time.perf_counter()
        climb = advise(with_overrides(dict(values), {"strategy.type": "auto", "strategy.budget": budget}))
        found = as_dict(climb)
        line = {"set": name, "title": title, "labels": labels, "seed": seed, "budget": budget, "steps": steps}
        line |= {"chosen": found["chosen"], "seconds": time.perf_counter() - begin, "advice": found}
        line["by_accuracy"] = climb.judge.choose(climb.deployable, "accuracy").name
        changes = RUNGS | {rung["name"]: rung["changes"] for rung in found["rungs"] if rung["changes"]}
        return line | {"runs": {rung: one_run(values, change, place) for rung, change in changes.items()}}


def draw(name: str, root: Path, labels: int, seed: int) -> pd.DataFrame:
    """So many rows of each class by the seed, and the test rows, told apart by the column `split`."""
    train, test = PARTS[name](root)
    drawn = train.groupby("label").sample(n=labels, random_state=seed)
    test = test.sample(n=min(TEST_ROWS, len(test)), random_state=0)
    return pd.concat([drawn.assign(split="train"), test.assign(split="test")])


def _starter_digits(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    from hftransfer import starter

    files = sorted(starter.load("starter/digits").glob("*/*.png"))
    table = pd.DataFrame({"path": [str(file) for file in files], "label": [f"d{file.parent.name}" for file in files]})
    test = table.groupby("label").sample(frac=0.4, random_state=0)
    return table.drop(test.index), test


def _starter_bbc(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    from hftransfer import starter

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


def _clothing10(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = pd.read_csv(root / "clothing10" / "labels.csv")
    table["path"] = [str((root / "clothing10" / path).resolve()) for path in table["path"]]
    return tuple(table.loc[table["split"] == part, ["path", "label"]] for part in ("train", "test"))


PARTS = {
    "digits": _starter_digits, "bbc": _starter_bbc, "banking20": _banking20, "sick": _sick, "clothing10": _clothing10,
}  # fmt: skip


def one_run(values: dict[str, Any], changes: dict[str, Any], place: str) -> dict[str, Any]:
    """The test accuracy of one strategy on all the labelled rows, and what the run took."""
    from hftransfer.config import with_overrides
    from hftransfer.train import run

    with tempfile.TemporaryDirectory(dir=place) as folder:
        begin = time.perf_counter()
        try:
            metrics = run(with_overrides(json.loads(json.dumps(values)), {"output": f"{folder}/run"} | changes)).metrics
        except Exception as error:  # one broken run must not end the table; it is shown as such
            return {"error": repr(error)[-400:]}
        return metrics["test"]["accuracy"] | {"seconds": time.perf_counter() - begin}


# --- the table and the plot -------------------------------------------------------------------------------------------


def reached(line: dict[str, Any]) -> dict[str, float]:
    return {rung: found["value"] for rung, found in line["runs"].items() if "value" in found}


def regrets(line: dict[str, Any]) -> dict[str, float]:
    """Points that each rule to choose by loses to the best strategy in hindsight."""
    found = reached(line)
    rules = {
        "auto": line["chosen"],
        "auto, accuracy": line["by_accuracy"],
        "always probe": "probe",
        "always full": "full",
    }
    return {rule: 100 * (max(found.values()) - found[rung]) for rule, rung in rules.items() if rung in found}


def render(lines: list[dict[str, Any]]) -> str:
    """A row a cell, and the mean regret of every rule."""
    rows = [
        "| set | a class | seed | probe | best in hindsight | auto's choice | its regret | by accuracy | advice, s | all, s |"
    ]
    rows.append("|---|---|---|---|---|---|---|---|---|---|")
    for line in lines:
        found, lost = reached(line), regrets(line)
        best = max(found, key=found.__getitem__)
        seconds = sum(run.get("seconds", 0) for run in line["runs"].values())
        rows.append(
            f"| {line['title']} | {line['labels']} | {line['seed']} | {found['probe']:.3f} | {best} {found[best]:.3f} | "
            f"{line['chosen']} {found[line['chosen']]:.3f} | {lost['auto']:.1f} | "
            f"{line['by_accuracy']} {lost['auto, accuracy']:.1f} | {line['seconds']:.0f} | {seconds:.0f} |"
        )
    rows += ["", f"Mean regret in points over {len(lines)} cells, and the worst:", ""]
    for rule in regrets(lines[0]):
        lost = [regrets(line)[rule] for line in lines if rule in regrets(line)]
        rows.append(f"- {rule}: {sum(lost) / len(lost):.1f}, at worst {max(lost):.1f}")
    return "\n".join(rows)


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Regret of each rule, a line a cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.45 * len(lines)), layout="constrained")
    for offset, (rule, marker) in enumerate(
        {"auto": "o", "auto, accuracy": "D", "always probe": "s", "always full": "^"}.items()
    ):
        lost = [regrets(line).get(rule) for line in lines]
        axes.plot(lost, [row + 0.16 * (offset - 1.5) for row in range(len(lines))], marker, label=rule, markersize=6)
    axes.set_yticks(range(len(lines)), [f"{line['title']}, {line['labels']} a class" for line in lines])
    axes.set_xlabel("points lost to the best strategy in hindsight")
    axes.grid(axis="x", alpha=0.3)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
