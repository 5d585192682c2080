"""Run folders made by hand, with every file but the weights: for what reads runs and must not wait for training.

`make_run(folder)` writes one. Which rows there are follows from `seed`, what the model says of them from `signal` and
`model_seed`, so two runs with one `seed` can be compared.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from hftransfer.evaluation import EvaluationConfig, evaluate_predictions
from hftransfer.tasks import MultiLabel, Regression, SingleLabel, Task

SINGLE = SingleLabel(("business", "politics", "sport", "tech"))
MULTI = MultiLabel(("anger", "joy", "surprise"))
VALUES = Regression(("height", "weight"))
WORDS = ("market bank profit", "vote minister party", "goal match coach", "phone software chip")


def make_run(
    folder: Path,
    task: Task = SINGLE,
    modality: str = "text",
    rows: int = 200,
    signal: float = 3.0,
    seed: int = 0,
    model_seed: int = 1,
    strategy: str = "full",
    trainable: Sequence[int] = (0, 700, 700, 300),
    history: Sequence[dict] | None = None,
    temperature: float = 1.0,
    groups: Sequence[str] | None = None,
    out_of_fold: bool = True,
    mislabelled: int = 0,
    truncated: float | None = None,
    prior: Sequence[float] | None = None,
    without_test: bool = False,
) -> Path:
    """A whole run folder with `rows` test rows, half as many validation rows and twice as many training rows.

    `mislabelled` training rows carry a wrong label. `truncated`: the share of cut texts that the run measured.
    """
    folder.mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(bytes(4000))
    sizes = {"train": 2 * rows, "validation": rows // 2} | ({} if without_test else {"test": rows})
    frame = _frame(folder, task, modality, sizes, seed, groups, prior)
    targets = task.encode_all(frame["label"].tolist())
    logits = _logits(task, targets, signal, np.random.default_rng(model_seed))
    _spoil(frame, task, mislabelled)
    frame[_split_columns(frame)].to_parquet(folder / "splits.parquet", index=False)
    held_out = frame["split"] != "train"
    predictions = _table(frame[held_out], task, logits[held_out])
    predictions.insert(1, "split", frame.loc[held_out, "split"])
    predictions.insert(2, "label", frame.loc[held_out, "label"])
    predictions.insert(4, "out_of_fold", False)
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    if out_of_fold:
        train = _table(frame[~held_out], task, logits[~held_out])
        train.insert(1, "label", frame.loc[~held_out, "label"])
        train.to_parquet(folder / "oof.parquet", index=False)
    _write(folder / "metrics.json", _metrics(task, frame, targets, logits, groups))
    _write(folder / "history.json", history if history is not None else learning_curve())
    _write(folder / "receipt.json", _receipt(trainable))
    _write(folder / "run.json", _about(task, modality, strategy, sizes, temperature, truncated))
    (folder / "config.yaml").write_text(f"data:\n  train: data\nmodel:\n  name: tiny\nstrategy:\n  type: {strategy}\n")
    return folder


def learning_curve(
    steps: int = 200,
    first: float = 1.4,
    last: float = 0.2,
    validation_last: float | None = None,
    learning_rate: float = 1e-4,
    bend: float = 4.0,
) -> list[dict]:
    """A Trainer's `log_history`: training loss from `first` to `last`, five looks at the validation part."""
    share = np.linspace(0, 1, 21)
    fall = (1 - np.exp(-bend * share)) / (1 - np.exp(-bend))
    entries = [
        {"step": int(s * steps), "epoch": 10 * s, "loss": first + (last - first) * f, "learning_rate": learning_rate}
        for s, f in zip(share[1:], fall[1:], strict=True)
    ]  # fmt: skip
    end = last * 1.3 if validation_last is None else validation_last
    for s in np.linspace(0.2, 1, 5):
        f = (1 - np.exp(-bend * s)) / (1 - np.exp(-bend))
        loss = first + (end - first) * f
        entries.append(
            {"step": int(s * steps), "epoch": 10 * s, "eval_loss": loss, "eval_log_loss": loss, "eval_accuracy": 0.5 + 0.4 * f}
        )  # fmt: skip
    return [
        *sorted(entries, key=lambda entry: entry["step"]),
        {"step": steps, "train_runtime": 12.0, "train_loss": last},
    ]


def _frame(folder, task, modality, sizes, seed, groups, prior) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    total = sum(sizes.values())
    split = np.repeat(list(sizes), list(sizes.values()))
    if task.type == "single_label":
        labels = rng.choice(task.names, size=total, p=prior).tolist()
    elif task.type == "multi_label":
        labels = [[name for name in task.names if rng.random() < 0.4] for _ in range(total)]
    else:
        labels = rng.normal(size=(total, task.head_size)).round(3).tolist()
    inputs = [_input(folder, modality, task, label, i, rng) for i, label in enumerate(labels)]
    group = list(groups) if groups is not None else [None] * total
    ids = [f"row-{i:04d}" for i in range(total)]
    return pd.DataFrame({"id": ids, "split": split, "group": group, "label": labels, "input": inputs})


def _input(folder, modality, task, label, number, rng) -> str:
    index = task.names.index(label) if isinstance(label, str) else number
    if modality == "text":
        return f"Report {number}: {WORDS[index % len(WORDS)]} and what came of it, told at some length for a test."
    path = folder.parent / "images" / f"{number}.jpg"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        image = Image.new("RGB", (96, 64), tuple(rng.integers(60, 220, 3).tolist()))
        ImageDraw.Draw(image).regular_polygon((48, 32, 24), 3 + index % 6, fill="white")
        image.save(path)
    return str(path)


def _split_columns(frame: pd.DataFrame) -> list[str]:
    return ["id", "split", "group", "label", "input"]


def _logits(task: Task, targets: np.ndarray, signal: float, rng: np.random.Generator) -> np.ndarray:
    """Answers with noise of spread 1; times `signal` they are the log-odds that the noise leaves, so they are calibrated."""
    if task.type == "single_label":
        return signal * (rng.normal(size=(len(targets), task.head_size)) + signal * np.eye(task.head_size)[targets])
    if task.type == "multi_label":
        return signal * (rng.normal(size=targets.shape) + signal * (targets - 0.5)) + np.log(0.4 / 0.6)
    return targets + rng.normal(size=targets.shape) / signal


def _spoil(frame: pd.DataFrame, task: Task, count: int) -> None:
    for row in range(count):
        frame.at[row, "label"] = task.names[(task.names.index(frame.at[row, "label"]) + 1) % task.head_size]


def _table(frame: pd.DataFrame, task: Task, logits: np.ndarray) -> pd.DataFrame:
    scores = task.probabilities(logits)
    decided = [task.decode(row) for row in task.decide(scores)]
    columns = {"id": frame["id"], "prediction": pd.Series(decided, index=frame.index, dtype=object)}
    for kind, values in (("score", scores), ("logit", logits)):
        columns |= {f"{kind}:{name}": values[:, column] for column, name in enumerate(task.names)}
    return pd.DataFrame(columns)


def _metrics(task, frame, targets, logits, groups) -> dict:
    found = {"per_class": {}, "notes": {"validation": "this part chose the best checkpoint: expect it to flatter"}}
    for split in [split for split in ("test", "validation") if (frame["split"] == split).any()]:
        rows = (frame["split"] == split).to_numpy()
        chosen = None if groups is None else frame.loc[rows, "group"].tolist()
        piece = evaluate_predictions(
            task, targets[rows], task.probabilities(logits[rows]), chosen, EvaluationConfig(resamples=200)
        )
        found[split], found["per_class"][split] = piece["metrics"], piece["per_class"]
    return found


def _receipt(trainable: Sequence[int]) -> dict:
    names = ["embeddings", *(f"layer.{i}" for i in range(len(trainable) - 2)), "classifier"]
    depths = [
        {"depth": i, "name": name, "parameters": 300 if i == len(trainable) - 1 else 700, "trainable": count,
         "learning_rate": 1e-4 if count else 0.0, "hash_before": f"{i:032x}", "hash_after": f"{i + bool(count) * 16:032x}"}
        for i, (name, count) in enumerate(zip(names, trainable, strict=True))
    ]  # fmt: skip
    return {"trainable_share": sum(trainable) / sum(depth["parameters"] for depth in depths), "layer_groups": depths}


def _about(task, modality, strategy, sizes, temperature, truncated) -> dict:
    return {
        "modality": modality,
        "task": {"type": task.type, "names": list(task.names), "mean": [], "std": []},
        "checkpoint": {"source": "tiny", "weights_hash": "0" * 32},
        "strategy": strategy,
        "temperature": temperature,
        "seconds": {"data": 0.5, "features": 2.0, "training": 12.0},
        "versions": {"torch": "2.11.0", "transformers": "5.17.0"},
        "seed": 0,
        "data": {"fingerprint": "f" * 16, "counts": sizes, "skipped": []},
        "hardware": {"device": "cpu", "name": "a test", "threads": 1},
        "peak_memory_bytes": 500_000_000,
    } | ({} if truncated is None else {"truncated_share": truncated})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
