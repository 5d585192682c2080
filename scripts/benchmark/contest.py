"""What every competitor shares: the arguments, the tables, and one line of JSON with the accuracy at the end.

A table is a CSV file with the columns `input` (an image's path, or a text) and `label`.
"""

import argparse
import csv
import json
import time

START = time.perf_counter()


def parser(description: str) -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--train", required=True, help="CSV table")
    arguments.add_argument("--test", required=True, help="CSV table")
    arguments.add_argument("--weights", required=True, help="folder in the layout of transformers")
    arguments.add_argument("--modality", choices=["image", "text"], required=True)
    arguments.add_argument("--image-size", type=int, default=224)
    arguments.add_argument("--max-length", type=int, default=128)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--output", required=True, help="folder for what the method writes")
    return arguments


def read(path: str) -> tuple[list[str], list[str]]:
    """Return inputs and labels."""
    csv.field_size_limit(2**24)
    with open(path, newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    return [row["input"] for row in rows], [row["label"] for row in rows]


def classes(labels: list[str]) -> list[str]:
    return sorted(set(labels))


def answer(predicted: list[str], labels: list[str], **seconds: float) -> None:
    """Print the result; `seconds` are parts of the time that are of interest."""
    accuracy = sum(one == other for one, other in zip(predicted, labels, strict=True)) / len(labels)
    total = time.perf_counter() - START
    print(json.dumps({"accuracy": accuracy, "seconds_inside": total, "phases": seconds}), flush=True)
