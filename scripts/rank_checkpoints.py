"""Does the ranking on a sample give the true order? The tables of docs/checkpoints.md.

    python scripts/rank_checkpoints.py --data-root DATA --vit FOLDER --out ranks.jsonl [--sets clothing10 bbc] [--rows 200 1000]
    python scripts/rank_checkpoints.py --render ranks.jsonl > tables.md

The truth is the test metric of a probe on all training rows; the ranking sees a sample of these, and no test row. Images:
the three EfficientNets that come as packages, and with --vit one more folder. Texts: MiniLM, and what is left of it with
fewer layers or with random weights, for want of further checkpoints that come as packages.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from results import SETS
from scipy.stats import weightedtau

METRIC = {"single_label": "accuracy", "multi_label": "mean_average_precision"}
IMAGES = [f"starter/efficientnet-lite{size}" for size in range(3)]
# Training rows of the truth: all, or so many.
LIMITS = {"digits": 1500, "banking77": 2000, "bbc": None, "clothing10": None, "flowers5": None}


def variants(folder: Path) -> list[str]:
    """MiniLM whole, with one and three of its six layers, and with random weights, as folders."""
    from transformers import AutoModel, AutoTokenizer, set_seed

    from hftransfer.core import starter

    source = starter.checkpoint("starter/minilm").path
    tokenizer = AutoTokenizer.from_pretrained(source)
    places = ["starter/minilm"]
    for name, layers in {"minilm-3-layers": 3, "minilm-1-layer": 1, "minilm-random": 6}.items():
        model = AutoModel.from_pretrained(source)
        if name.endswith("random"):
            set_seed(0)
            model = type(model)(model.config)
        model.encoder.layer = model.encoder.layer[:layers]
        model.config.num_hidden_layers = layers
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        places.append(str(folder / name))
    return places


def measure(name: str, root: str, checkpoints: list[str], samples: list[int]) -> Iterator[dict]:
    """Yield the ranking on each sample, and the test metric of each checkpoint's probe on all training rows."""
    from hftransfer.config import parse_overrides, with_overrides
    from hftransfer.data import load_data
    from hftransfer.evaluation.metrics import compute_metrics
    from hftransfer.pipeline.run_context import probed
    from hftransfer.planning.checkpoints.ranking import rank

    source, *overrides = (argument.replace("{root}", root) for argument in SETS[name].arguments.split())
    changes = parse_overrides(overrides) | {"data.train_examples": LIMITS[name]}
    config = with_overrides({"data": {"train": source}, "model": checkpoints[0]}, changes)
    data = load_data(config.data)
    metric, truth = METRIC[data.task.type], {}
    for checkpoint in checkpoints:
        context, probe = probed(
            config.model_copy(update={"model": config.model.model_copy(update={"name": checkpoint})}), data
        )
        test = context.positions("test")
        found = compute_metrics(data.task, context.targets[test], data.task.probabilities(probe.logits[test]))
        truth[Path(checkpoint).name] = found[metric]
    rows = int((data.frame["split"] != "test").sum())
    for sample in samples:
        ranking = rank(config, checkpoints, sample, metric).to_dict()
        del ranking["pairs"]  # long, and not needed
        yield {"set": name, "truth": truth, "training_rows": rows} | ranking


def render(lines: list[dict]) -> str:
    parts = [_agreement(lines)]
    for line in lines:
        rows = [
            f"{line['set']}: ranked on {line['rows']} rows, truth from {line['training_rows']:,}. {_short(line['verdict'])}",
            "",
            f"| checkpoint | {line['metric']}, cross-validated | ms a row | size, M | test {line['metric']} |",
            "|---" * 5 + "|",
        ]
        for found in line["checkpoints"]:
            score, name = found["metrics"][line["metric"]], Path(found["name"]).name
            rows.append(
                f"| {name} | {score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f}) | "
                f"{found['milliseconds']:.3g} | {found['parameters'] / 1e6:.1f} | "
                f"{line['truth'][name]:.3f} |"
            )
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _short(verdict: str) -> str:
    return " ".join(word.rsplit("/", 1)[-1] for word in verdict.split())


def _agreement(lines: list[dict]) -> str:
    """Weighted tau of each score with the truth, and what the best is better than the first, and than the one named."""
    titles = "set, sample, level with the first, first loses, named loses, probe τ, size τ"
    columns = titles.split(", ")
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for line in lines:
        found = line["checkpoints"]
        truth = [line["truth"][Path(each["name"]).name] for each in found]
        scores = {
            "probe": [each["metrics"][line["metric"]]["value"] for each in found],
            "size": [each["parameters"] for each in found],
        }
        level = [each for each in found if each["name"] in line["level_with_best"]]
        named = min(level, key=lambda each: each["milliseconds"])
        lost = [100 * (max(truth) - line["truth"][Path(each["name"]).name]) for each in (found[0], named)]
        cells = [f"{weightedtau(truth, values).statistic:+.2f}" for values in scores.values()]
        counts = f"{line['rows']:,} | {len(level)} of {len(found)}"
        rows.append(f"| {line['set']} | {counts} | {lost[0]:.1f} | {lost[1]:.1f} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--vit", help="folder of one more image checkpoint")
    parser.add_argument("--out", type=Path, default=Path("ranks.jsonl"))
    parser.add_argument("--sets", nargs="*", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--rows", nargs="*", type=int, default=[200, 1000], help="of the samples")
    parser.add_argument("--render", type=Path)
    asked = parser.parse_args()
    if asked.render:
        return print(render([json.loads(line) for line in asked.render.read_text().splitlines()]))
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.sets:
            texts = SETS[name].model == "starter/minilm"
            checkpoints = variants(Path(folder)) if texts else IMAGES + ([asked.vit] if asked.vit else [])
            for line in measure(name, asked.data_root, checkpoints, asked.rows):
                with asked.out.open("a") as file:
                    print(json.dumps(line), file=file)


if __name__ == "__main__":
    main()
