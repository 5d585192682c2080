"""Rows a second of the network at work, without start-up: hftransfer beside a bare torch loop, the Trainer and fixed padding.

    python scripts/measure_passes.py [--what train predict store] [--sets digits bbc] [--rounds 3]
    python scripts/measure_passes.py --what predict --sets banking77 --data-root DATA

Training (`full`, batches of 32): a run of 5 steps and one of 5 + `--steps` differ by the steps alone, so the difference of
their seconds holds neither imports nor the first step. All run in one process, so the Trainer has our allocator's settings
too. The bare loop repeats one batch that lies on the device: nothing is read, cut to length or evaluated. Prediction: a pass
over the texts in batches of like length against the same network over batches padded to 256 tokens. Store: `frozen` from
stored activations and without. Medians of the rounds, which take turns.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmark"))
from hftransfer.config import RunConfig, parse_overrides, with_overrides
from hftransfer.models.partial import SplitPoint
from hftransfer.runtime.autotune import seconds_of
from hftransfer.train import run

BATCH, FIRST = 32, 5
SETS = {
    "digits": ("image", "starter/digits", "starter/efficientnet-lite0", "model.image_size=128"),
    "bbc": ("text", "starter/bbc", "starter/minilm", "model.max_length=128"),
    "banking77": ("text", "{root}/banking77/test.csv", "starter/minilm", "model.max_length=256"),
}
QUIET = ["evaluation.explanations=false", "evaluation.resamples=100", "augmentation.level=none", "data.split.test=0.5",
         "training.evaluations=1", "strategy.head_init=random", f"training.per_device_train_batch_size={BATCH}"]  # fmt: skip


def configuration(name: str, folder: str, strategy: str, *further: str) -> RunConfig:
    _, data, model, shape = SETS[name]
    values = {"data": {"train": data}, "model": model, "strategy": strategy, "output": f"{folder}/run"}
    return with_overrides(values, parse_overrides([shape, *QUIET, *further]))


def phases(name: str, strategy: str, *further: str) -> dict[str, float]:
    """Seconds of each phase of one run."""
    with tempfile.TemporaryDirectory() as folder:
        made = run(configuration(name, folder, strategy, *further)).folder
        return json.loads((made / "run.json").read_text())["seconds"]


def prepared(name: str, folder: str) -> Any:
    """Return data, network and machine as a run has them before it trains."""
    from hftransfer.data import load_data
    from hftransfer.models.loading import load_checkpoint
    from hftransfer.pipeline.run_context import prepare
    from hftransfer.runtime import devices
    from hftransfer.runtime.launch import World

    config = configuration(name, folder, "full")
    data = load_data(config.data)
    checkpoint = load_checkpoint(config.model, data.kind, data.task)
    return prepare(config, data, checkpoint, devices.choose_device(), World(), Path(folder) / "scratch")


# --- training ---------------------------------------------------------------------------------------------------------


def ours(name: str, steps: int) -> float:
    seconds = [phases(name, "full", f"training.max_steps={n}")["training"] for n in (FIRST, FIRST + steps)]
    return BATCH * steps / (seconds[1] - seconds[0])


def trainer(name: str, steps: int) -> float:
    """Return the Trainer with its defaults but for the batch, from the transformers documentation."""
    seconds = [_trained(name, n) for n in (FIRST, FIRST + steps)]
    return BATCH * steps / (seconds[1] - seconds[0])


def _trained(name: str, steps: int) -> float:
    from stock_trainer import DataCollatorWithPadding, DefaultDataCollator, Images, Texts, Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        context = prepared(name, folder)
        processor, frame = context.checkpoint.processor, context.data.frame
        limit = int(SETS[name][3].rpartition("=")[2])  # pixels or tokens
        labels = [list(context.data.task.names).index(label) for label in frame["label"]]
        if SETS[name][0] == "image":
            data, collator = Images(list(frame["input"]), labels, processor, limit, False), DefaultDataCollator()
        else:
            data, collator = Texts(list(frame["input"]), labels, processor, limit), DataCollatorWithPadding(processor)
        settings = TrainingArguments(output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH,
                                     save_strategy="no", report_to="none", disable_tqdm=True,
                                     remove_unused_columns=False)  # fmt: skip
        model = context.model.to(memory_format=torch.contiguous_format)
        made = Trainer(model=model, args=settings, train_dataset=data, data_collator=collator)
        begin = time.perf_counter()
        made.train()
        return time.perf_counter() - begin


def bare(name: str, steps: int, bf16: bool) -> float:
    """Forward, backward and AdamW on one batch that stays on the device; channels last with bf16."""
    with tempfile.TemporaryDirectory() as folder:
        context = prepared(name, folder)
    device, model = context.compute_config.device, context.model.train()
    if not bf16:
        model.to(memory_format=torch.contiguous_format)
    batch = context.compute_config.place(context.modality.collate(context.items[:BATCH]))
    targets = torch.zeros(BATCH, dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(**batch).logits
        torch.nn.functional.cross_entropy(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return BATCH * steps / _seconds(step, steps, device)


def _seconds(step: Any, count: int, device: torch.device) -> float:
    """Of so many steps, after three to warm up."""
    for _ in range(3):
        step()
    return seconds_of(lambda: [step() for _ in range(count)], device)


def training(name: str, steps: int) -> dict[str, float]:
    with patch("hftransfer.training.trainer.quick_operations", lambda device: nullcontext()):
        torchs_own = ours(name, steps)
    return {
        "train: hftransfer full": ours(name, steps),
        "train: hftransfer full, torch's own operations": torchs_own,
        "train: Trainer, its defaults": trainer(name, steps),
        "train: bare loop, float32": bare(name, steps, bf16=False),
        "train: bare loop, bf16, channels last": bare(name, steps, bf16=True),
    }


# --- prediction and the store -----------------------------------------------------------------------------------------


def prediction(name: str, rows: int = 1024) -> dict[str, float]:
    """Rows a second of a pass over real lengths; texts also padded to a fixed length, in float32 and as our machine computes."""
    from hftransfer.features.passes import predict_logits

    with tempfile.TemporaryDirectory() as folder:
        context = prepared(name, folder)
        context.model.eval()
        items = context.items[:rows]
        timed = {
            "predict: hftransfer": lambda: predict_logits(
                context.model, context.modality, items, context.compute_config
            )
        }
        if SETS[name][0] == "text":
            for title, dtype in {"float32": None, "our precision": context.compute_config.autocast}.items():
                padded = SimpleNamespace(context=context, items=items, dtype=dtype)
                timed[f"predict: padded to 256, {title}"] = lambda padded=padded: _padded(padded)
        return {title: len(items) / _seconds(step, 1, context.compute_config.device) for title, step in timed.items()}


@torch.inference_mode()
def _padded(what: SimpleNamespace) -> None:
    context, tokenizer = what.context, what.context.checkpoint.processor
    device = context.compute_config.device
    for start in range(0, len(what.items), BATCH):
        batch = tokenizer.pad(
            what.items[start : start + BATCH], padding="max_length", max_length=256, return_tensors="pt"
        )
        with torch.autocast(device.type, what.dtype or torch.bfloat16, enabled=what.dtype is not None):
            context.model(**context.compute_config.place(dict(batch)))


def stored(name: str, epochs: int = 10) -> dict[str, float]:
    """Seconds of features and training together, of `frozen` with the store, without it, and of `full`."""
    same = [f"training.num_train_epochs={epochs}", "data.train_examples=500", "data.split.test=0.1"]
    found = {}
    live = patch.object(
        SplitPoint, "is_exact", lambda *_: False
    )  # as for a network that cannot be run from a split point
    for title, strategy, how in [
        ("frozen", "frozen", nullcontext()),
        ("frozen, no store", "frozen", live),
        ("full", "full", nullcontext()),
    ]:
        with how:
            seconds = phases(name, strategy, *same)
        found[f"{epochs} epochs of 500, seconds: {title}"] = seconds["features"] + seconds["training"]
    return found


WHAT = {"train": training, "predict": lambda name, steps: prediction(name), "store": lambda name, steps: stored(name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["digits", "bbc"])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    SETS["banking77"] = tuple(part.replace("{root}", asked.data_root) for part in SETS["banking77"])
    print("| set | what | median | all rounds |\n|---|---|---|---|")
    for name in asked.sets:
        rounds = [{k: v for what in asked.what for k, v in WHAT[what](name, asked.steps).items()}
                  for _ in range(asked.rounds)]  # fmt: skip
        for title in rounds[0]:
            values = [found[title] for found in rounds]
            print(f"| {name} | {title} | {statistics.median(values):,.1f} | {', '.join(f'{v:,.1f}' for v in values)} |")


if __name__ == "__main__":
    main()
