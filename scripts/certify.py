"""Round-trip certificates and exports of real runs: the tables of docs/delivery.md.

    python scripts/certify.py --pairs DATA/sick_pairs --out certify.jsonl
    python scripts/certify.py --exports --images DATA/clothing10 --vit CHECKPOINTS/vit-small-14 --out exports.jsonl
    python scripts/certify.py --render certify.jsonl exports.jsonl

The first trains every strategy on texts, images and pairs for a few steps and asks every form of each model; exports are
among the forms for the strategies in EXPORTED. The second exports converged probes and measures them on the test rows.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STRATEGIES = ("probe", "frozen", "full", "gradual", "lora", "scratch")
EXPORTED = ("lora",)
FORMATS = ("onnx", "onnx-int8")
STEPS = {"max_steps": 20, "per_device_train_batch_size": 16, "evaluations": 1}
FEW = {"test": 0.05, "validation": 0.05}  # rows are asked by sixteens
TEXTS = {"data": {"train": "starter/bbc", "train_examples": 200}, "model": {"name": "starter/minilm", "max_length": 64}}
DIGITS = {
    "data": {"train": "starter/digits", "train_examples": 200},
    "model": {"name": "starter/efficientnet-lite0", "image_size": 64},
    "augmentation": {"flip": False},
}


def pairs(folder: Path) -> dict[str, Any]:
    data = {"train": str(folder / "train.csv"), "test": str(folder / "dev.csv"), "input": ["text_a", "text_b"]}
    data |= {"label": "label", "train_examples": 200}
    return {"data": data, "model": {"name": "starter/minilm", "max_length": 64}}


def photos(folder: Path, model: str) -> dict[str, Any]:
    return {"data": {"train": str(folder / "labels.csv"), "input": "path", "label": "label"}, "model": model}


def certificates(kinds: dict[str, dict], strategies: list[str]) -> Iterator[dict[str, Any]]:
    """One line a run: its stages, as `round_trip.json` holds them."""
    from hftransfer.publish.export import export
    from hftransfer.publish.round_trip import certify

    for kind, values in kinds.items():
        for strategy in strategies:
            with tempfile.TemporaryDirectory() as place:
                data = values["data"] | {"split": FEW}
                folder = train(values | {"data": data, "strategy": strategy, "training": STEPS}, Path(place))
                for format in FORMATS if strategy in EXPORTED else ():
                    refused = attempt(export, folder, format)
                    if refused:
                        yield {"kind": kind, "strategy": strategy, "refused": refused}
                yield {"kind": kind, "strategy": strategy} | certify(folder)


def exports(sources: dict[str, dict]) -> Iterator[dict[str, Any]]:
    """One line an export: what `export.json` holds, or why it was refused."""
    from hftransfer.publish.export import export

    for name, values in sources.items():
        with tempfile.TemporaryDirectory() as place:
            folder = train(values | {"strategy": "probe"}, Path(place))
            for format in FORMATS:
                refused = attempt(export, folder, format)
                found = json.loads((folder / "exports" / format / "export.json").read_text()) if not refused else {}
                yield {"model": name, "format": format, "refused": refused} | found


def train(values: dict[str, Any], place: Path) -> Path:
    from hftransfer.config import checked
    from hftransfer.train import run

    return run(
        checked(values | {"output": str(place / "run"), "evaluation": {"resamples": 200, "explanations": False}})
    ).folder


def attempt(export: Any, folder: Path, format: str) -> str:
    """Export; the reason where it was refused."""
    from hftransfer.core.errors import UserError

    try:
        export(folder, format)
    except UserError as error:
        return str(error)
    return ""


# --- tables -----------------------------------------------------------------------------------------------------------


def render(lines: list[dict[str, Any]]) -> str:
    stages = [line for line in lines if "stages" in line]
    refused = [line for line in lines if line.get("refused")]
    tables = [certificate_table(stages), export_table([line for line in lines if "sides" in line])]
    return "\n\n".join([*tables, *(f"- {json.dumps(line, ensure_ascii=False)}" for line in refused)])


def certificate_table(lines: list[dict[str, Any]]) -> str:
    rows = [
        "| run | form | largest difference of a score | labels that agree | ms an input | MB |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        for stage in line["stages"]:
            agreed = f"{line['rows'] - len(stage['disagreements'])} of {line['rows']}"
            rows.append(
                f"| {line['kind']}, {line['strategy']} | {stage['name']} | {stage['max_difference']:.1e} | {agreed} | "
                f"{1000 * stage['seconds_per_input']:.1f} | {stage['bytes'] / 1e6:.1f} |"
            )
    return "\n".join(rows)


def export_table(lines: list[dict[str, Any]]) -> str:
    rows = ["| model | form | MB | ms a row, one by one | ms a row, 16 together | logits differ by | decisions that agree | "
            "accuracy (95 % interval) |", "|" + "---|" * 8]  # fmt: skip
    shown = set()
    for line in lines:
        for form, side in line["sides"].items():
            if (line["model"], form) in shown:
                continue
            shown.add((line["model"], form))
            quality, same, speed = side["quality"], line["agreement"], side["seconds_per_input"]
            answers = ["", ""] if form == "original" else [f"{line['max_difference']:.1e}", _span(same)]
            cells = [
                line["model"],
                form,
                f"{side['bytes'] / 1e6:.1f}",
                *(f"{1000 * speed[n]:.1f}" for n in ("1", "16")),
            ]
            rows.append(f"| {' | '.join([*cells, *answers, _span(quality)])} |")
    return "\n".join(rows)


def _span(found: dict[str, Any]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="folder with train.csv and dev.csv (text_a, text_b, label)")
    parser.add_argument("--images", type=Path, help="folder with labels.csv (path, label, split)")
    parser.add_argument("--vit", help="a ViT checkpoint, for the table of exports")
    parser.add_argument("--exports", action="store_true", help="the table of exports, in place of the certificates")
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES))
    parser.add_argument("--only", default="", help="the sets whose name begins so")
    parser.add_argument("--out", type=Path, default=Path("certify.jsonl"))
    parser.add_argument("--render", type=Path, nargs="*")
    asked = parser.parse_args()
    if asked.render:
        return print(render([json.loads(line) for file in asked.render for line in file.read_text().splitlines()]))
    logging.basicConfig(level=logging.WARNING)
    if asked.exports:
        sources = {"MiniLM, bbc": TEXTS, "EfficientNet-lite0, digits": DIGITS}
        if asked.images:
            sources["EfficientNet-lite0, clothing"] = photos(asked.images, "starter/efficientnet-lite0")
        if asked.images and asked.vit:
            sources["ViT-S/14, clothing"] = photos(asked.images, asked.vit)
        lines = exports({name: values for name, values in sources.items() if name.startswith(asked.only)})
    else:
        kinds = {"bbc": TEXTS, "digits": DIGITS} | ({"sick pairs": pairs(asked.pairs)} if asked.pairs else {})
        lines = certificates(
            {name: values for name, values in kinds.items() if name.startswith(asked.only)}, asked.strategies
        )
    with asked.out.open("a") as file:
        for line in lines:
            print(json.dumps(line, ensure_ascii=False), file=file, flush=True)


if __name__ == "__main__":
    main()
