"""Entities in tweets (WNUT-17): every strategy, and a plain recipe of transformers with the same checkpoint and steps.

    python scripts/results_tokens.py --data WNUT --texts 1000 --test 600 --steps 100
    python scripts/results_tokens.py --render tokens.jsonl

The folder has `train.jsonl` and `test.jsonl` (tokens, tags). `transformers` is Trainer and AutoModelForTokenClassification
with their own defaults, the first token of a word labelled, batches of 16. Entities are counted alike for all.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

MODEL, BATCH, LONGEST = "starter/minilm", 16, 128
STRATEGIES = ("probe", "transformers", "full", "frozen", "lora", "gradual", "scratch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/wnut17_ner"))
    parser.add_argument("--out", type=Path, default=Path("tokens.jsonl"))
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--texts", type=int, default=0, help="of the training part, drawn at random; 0: all")
    parser.add_argument("--test", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--render", type=Path)
    asked = parser.parse_args()
    if asked.render:
        return print(render([json.loads(line) for line in asked.render.read_text().splitlines()]))
    train, test = (drawn(asked.data / f"{name}.jsonl", count, asked.seed)
                   for name, count in (("train", asked.texts), ("test", asked.test)))  # fmt: skip
    with asked.out.open("a") as file:
        for strategy in asked.strategies:
            line = {"strategy": strategy, "texts": len(train), "test_texts": len(test), "steps": asked.steps}
            begin = time.perf_counter()
            make = plain if strategy == "transformers" else trained
            line |= {"entity_f1": make(train, test, strategy, asked), "seconds": time.perf_counter() - begin}
            print(json.dumps(line), file=file, flush=True)
            print(line, file=sys.stderr)


def drawn(path: Path, count: int, seed: int) -> pd.DataFrame:
    rows = pd.read_json(path, lines=True)
    return rows.sample(count, random_state=seed).reset_index(drop=True) if count else rows


def trained(train: pd.DataFrame, test: pd.DataFrame, strategy: str, asked: argparse.Namespace) -> dict:
    """Train once, self-check included, without report and card."""
    from hftransfer.config import with_overrides
    from hftransfer.train import run

    with tempfile.TemporaryDirectory() as folder:
        files = {name: f"{folder}/{name}.jsonl" for name in ("train", "test")}
        for name, rows in (("train", train), ("test", test)):
            rows.to_json(files[name], orient="records", lines=True)
        values = {"data": files, "model": MODEL, "strategy": strategy, "output": f"{folder}/run", "seed": asked.seed,
                  "training": {"max_steps": asked.steps, "per_device_train_batch_size": BATCH}}  # fmt: skip
        found = run(with_overrides(values, {})).metrics["test"]["entity_f1"]
    return {name: found[name] for name in ("value", "low", "high")}


def plain(train: pd.DataFrame, test: pd.DataFrame, strategy: str, asked: argparse.Namespace) -> dict:
    """Fine-tune as the course of transformers does."""
    import torch
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from hftransfer.core.starter import checkpoint
    from hftransfer.evaluation.intervals import measure
    from hftransfer.tasks import Tokens
    from hftransfer.tasks.tokens import IGNORED, ragged

    set_seed(asked.seed)
    task = Tokens(tuple(sorted({tag[2:] for rows in (train, test) for tags in rows["tags"] for tag in tags} - {""})))
    source = checkpoint(MODEL).path
    tokenizer = AutoTokenizer.from_pretrained(source)

    def item(words: list[str], tags: list[str]) -> dict:
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=LONGEST)
        found, before = [], None
        for word in encoded.word_ids():
            found.append(IGNORED if word is None or word == before else task.tags.index(tags[word]))
            before = word
        return {**encoded, "labels": found}

    items = [[item(*row) for row in zip(rows["tokens"], rows["tags"], strict=True)] for rows in (train, test)]
    model = AutoModelForTokenClassification.from_pretrained(source, num_labels=task.head_size)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(folder, max_steps=asked.steps, per_device_train_batch_size=BATCH, report_to=[],
                                     save_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
                                     seed=asked.seed)  # fmt: skip
        trainer = Trainer(model, settings, DataCollatorForTokenClassification(tokenizer), train_dataset=items[0])
        trainer.train()
        logits = trainer.predict(items[1]).predictions
    scores = [rows[: len(one["labels"])][np.array(one["labels"]) != IGNORED]
              for rows, one in zip(logits, items[1], strict=True)]  # fmt: skip
    cut = sum(len(words) - len(one) for words, one in zip(test["tokens"], scores, strict=True))
    scores = [np.vstack([one, np.tile(np.eye(task.head_size)[0], (len(words) - len(one), 1))])
              for words, one in zip(test["tokens"], scores, strict=True)]  # fmt: skip
    print(f"words of the test part without a prediction: {cut}", file=sys.stderr)
    targets = ragged([np.array([task.tags.index(tag) for tag in tags]) for tags in test["tags"]])
    found = measure(task, targets, task.probabilities(ragged(scores)), None)["entity_f1"]
    return {"value": found.value, "low": found.low, "high": found.high}


def render(lines: list[dict]) -> str:
    rows = ["| recipe | entity F1 | seconds |", "|---|---|---|"]
    for line in lines:
        value = "{value:.3f} ({low:.3f} to {high:.3f})".format(**line["entity_f1"])
        rows.append(f"| {line['strategy']} | {value} | {line['seconds']:.0f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
