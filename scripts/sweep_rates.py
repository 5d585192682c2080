"""Where the default learning rates come from: each strategy at several rates on several sets, judged on validation.

    python scripts/sweep_rates.py --data-root DATA --out sweep.jsonl --jobs 8
    python scripts/sweep_rates.py --render sweep.jsonl

The sets and commands are those of scripts/results.py. The table shows the validation metric, which chose the rate; the test
parts are not looked at. Both beginnings of the head are tried at each rate.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from results import IMAGE, SETS, write_lines

RATES = {
    ("image", "full"): (1e-4, 3e-4, 1e-3),
    ("image", "frozen"): (1e-4, 3e-4, 1e-3),
    ("image", "gradual"): (1e-4, 3e-4, 1e-3),
    ("image", "lora"): (5e-4, 2e-3, 5e-3),
    ("image", "scratch"): (1e-3, 3e-3),
    ("text", "full"): (2e-5, 5e-5, 2e-4),
    ("text", "frozen"): (5e-5, 2e-4, 5e-4),
    ("text", "gradual"): (5e-5, 1e-4, 2e-4),
    ("text", "lora"): (2e-4, 5e-4, 2e-3),
    ("text", "scratch"): (1e-4, 3e-4),
}
BOTH_HEADS = ("full", "frozen", "lora")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--out", type=Path, default=Path("sweep.jsonl"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--sets", nargs="*", default=["clothing10", "flowers5", "digits", "bbc", "banking77", "sick", "stsb"]
    )
    parser.add_argument("--render", type=Path)
    asked = parser.parse_args()
    if asked.render:
        return print(render([json.loads(line) for line in asked.render.read_text().splitlines()]))
    write_lines([(name, s, asked.data_root, extra) for name, s, extra in jobs(asked.sets)], asked.out, asked.jobs)


def jobs(sets: list[str]) -> list[tuple[str, str, list[str]]]:
    """(set, strategy, further arguments) of every run."""
    result = []
    for name in sets:
        modality = "image" if SETS[name].model == IMAGE else "text"
        for (of, strategy), rates in RATES.items():
            heads = ("probe", "random") if strategy in BOTH_HEADS else (None,)
            for rate in rates if of == modality else ():
                for head in heads:
                    extra = [f"training.learning_rate={rate}", "evaluation.resamples=100"]
                    result.append((name, strategy, extra + ([f"strategy.head_init={head}"] if head else [])))
    return result


def render(lines: list[dict]) -> str:
    """Return a row per strategy, rate and head, a column per set."""
    table: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for line in lines:
        setting = [part.partition("=")[2] for part in line["extra"] if "resamples" not in part]
        modality = "image" if SETS[line["set"]].model == IMAGE else "text"
        value = f"{line['validation']['value']:.3f}" if "validation" in line else "–"
        table[modality, line["strategy"], *setting][line["set"]] = value
    names = list(dict.fromkeys(line["set"] for line in lines))
    rows = ["| modality, strategy, rate, head | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    rows += [
        f"| {', '.join(key)} | " + " | ".join(cells.get(n, "") for n in names) + " |" for key, cells in table.items()
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
