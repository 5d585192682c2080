"""The behaviour matrix: every strategy x modality x task on tiny models. One run each; all questions are asked of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from hftransfer.config import RunConfig, checked
from hftransfer.prediction.predictor import load
from hftransfer.strategies import STRATEGIES
from hftransfer.train import run
from hftransfer.training import trainer as loop
from tests.support import tiny

KINDS = {
    "image": ("timm-resnet", None),
    "image-multi": ("vit", "multi_label"),
    "image-regression": ("convnext", "regression"),
    "text": ("bert", "single_label"),
    "text-multi": ("distilbert", "multi_label"),
    "text-regression": ("roberta", "regression"),
    "pair": ("bert", "single_label"),
}
CASES = [(strategy, kind) for strategy in STRATEGIES for kind in KINDS]


def image_table(folder: Path, task: str) -> Path:
    """Image paths with several labels, or a number, that their colour tells."""
    tiny.image_folder(folder / "images", per_class=16)
    rows = []
    for index, label in enumerate(("red", "green", "blue")):
        for file in sorted((folder / "images" / label).glob("*.png")):
            value = f"{label}|warm" if label == "red" else label
            rows.append({"path": f"images/{label}/{file.name}", "label": value if task == "multi_label" else index / 2})
    table = folder / "table.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def data_of(kind: str, folder: Path) -> dict:
    """The `data` part of a configuration for a kind of the matrix."""
    _, task = KINDS[kind]
    if kind == "image":
        return {"train": str(tiny.image_folder(folder / "shapes", per_class=16))}
    if kind.startswith("image"):
        columns = {"input": "path", "label": "label", "task": task}
        return {"train": str(image_table(folder, task))} | columns | _separator(task)
    table = tiny.text_table(folder / "texts.csv", task, pairs=kind == "pair", rows=60)
    columns = {"input": ["first", "second"] if kind == "pair" else "text", "label": "label", "task": task}
    return {"train": str(table)} | columns | _separator(task)


def _separator(task: str | None) -> dict:
    return {"separator": "|"} if task == "multi_label" else {}


def configuration(strategy: str, kind: str, folder: Path, **training: object) -> RunConfig:
    family, _ = KINDS[kind]
    makers = tiny.VISION_FAMILIES | tiny.TEXT_FAMILIES
    model = folder / family
    if not model.exists():
        makers[family](model)
    training = {"max_steps": 4, "per_device_train_batch_size": 8, "evaluations": 2, "bf16": False} | training
    # The convex head on the features of a tiny random network has weights of hundreds, which would magnify the rounding of
    # the merge of adapters; beginnings with the probe's head are compared in test_train.
    options = {"frozen": {"top": 1}, "gradual": {"open_all_by": 0.7}, "lora": {"head_init": "random"}}.get(strategy, {})
    if strategy == "gradual":
        training |= {"evaluations": 1}  # an earlier checkpoint could be the best, from before all rungs were open
    return checked(
        {
            "data": data_of(kind, folder),
            "model": str(model),
            "strategy": {"type": strategy} | options,
            "training": training,
            # Cross-validation of few examples is the default: it has tests of its own, and costs every run some seconds.
            "evaluation": {"resamples": 100, "explanations": False, "folds": 0},
            "output": str(folder / f"{kind}-{strategy}"),
        }
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Every case trained once. What was trained is kept: four steps from a solved head gain nothing, and would be undone."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_undo_a_loss", lambda trainer, start: None)
        return {(s, kind): run(configuration(s, kind, folders[kind])).folder for s, kind in CASES}


PIPELINE = """
import json, sys
from transformers import pipeline
answers = []
for folder, task, inputs in json.load(open(sys.argv[1])):
    ask = pipeline(task, folder, device="cpu")
    options = {} if task == "image-classification" else {"truncation": True}
    answers.append([ask(one, top_k=None, **options) for one in inputs])
json.dump(answers, open(sys.argv[2], "w"))
assert "hftransfer" not in sys.modules
"""


@pytest.fixture(scope="module")
def pipeline_answers(runs, tmp_path_factory) -> dict[tuple[str, str], list]:
    """What a fresh process with plain transformers answers to the raw test inputs of every run."""
    folder = tmp_path_factory.mktemp("pipeline")
    asked = [[str(path / "model"), _about(path)["pipeline_task"], raw_inputs(path)] for path in runs.values()]
    (folder / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-c", PIPELINE, str(folder / "asked.json"), str(folder / "answers.json")]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return dict(zip(runs, json.loads((folder / "answers.json").read_text()), strict=True))


def _about(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def raw_inputs(folder: Path) -> list:
    table = pd.read_parquet(folder / "splits.parquet")
    table = table[table["split"] == "test"].head(4)
    if "input_pair" in table:
        return [{"text": a, "text_pair": b} for a, b in zip(table["input"], table["input_pair"], strict=True)]
    return table["input"].tolist()


@pytest.mark.parametrize(("strategy", "kind"), CASES)
class TestEveryCase:
    def test_the_run_folder_is_whole(self, runs, strategy, kind):
        folder = runs[strategy, kind]
        names = {path.name for path in folder.iterdir()}
        expected = {"config.yaml", "run.json", "splits.parquet", "model", "metrics.json", "predictions.parquet"}
        assert expected | {"receipt.json", "history.json"} <= names
        assert ("adapter" in names) == (strategy == "lora")
        assert not names & {"checkpoints", "features"}
        assert RunConfig.from_yaml(folder / "config.yaml") == checked(
            yaml.safe_load((folder / "config.yaml").read_text())
        )

    def test_only_what_the_plan_names_moved(self, runs, strategy, kind):
        rungs = json.loads((runs[strategy, kind] / "receipt.json").read_text())["rungs"]
        moved = {r["rung"]: r["hash_before"] != r["hash_after"] for r in rungs if r["parameters"]}
        trained = {r["rung"]: r["trainable"] > 0 for r in rungs if r["parameters"]}
        assert moved == trained
        head = max(moved)
        lowest = {"probe": head, "frozen": head - 1, "lora": 1}.get(strategy, 0)
        assert {rung for rung, moves in moved.items() if moves} == {r for r in moved if r >= lowest}

    def test_predictions_have_one_row_an_example_and_match_the_saved_model(self, runs, strategy, kind):
        folder = runs[strategy, kind]
        splits = pd.read_parquet(folder / "splits.parquet").set_index("id")
        predictions = pd.read_parquet(folder / "predictions.parquet")
        assert predictions["id"].is_unique
        judged = ["train", "validation", "test"] if strategy == "probe" else ["validation", "test"]
        assert set(predictions["id"]) == set(splits.index[splits["split"].isin(judged)])
        test = predictions[predictions["split"] == "test"].set_index("id")
        logits = load(folder, use_cpu=True).logits(splits.loc[test.index].reset_index())
        written = test[[c for c in test.columns if c.startswith("logit:")]].to_numpy()
        assert np.allclose(logits, written, atol=1e-4 * max(1, np.abs(written).max()))

    def test_plain_pipeline_answers_the_same(self, runs, pipeline_answers, strategy, kind):
        folder = runs[strategy, kind]
        predictions = pd.read_parquet(folder / "predictions.parquet").set_index("id")
        splits = pd.read_parquet(folder / "splits.parquet")
        ids = splits[splits["split"] == "test"].head(4)["id"]
        for key, answer in zip(ids, pipeline_answers[strategy, kind], strict=True):
            given = {entry["label"]: entry["score"] for entry in answer}
            expected = {
                c.removeprefix("score:"): predictions.loc[key, c] for c in predictions if c.startswith("score:")
            }
            assert given == pytest.approx(expected, abs=1e-4), (strategy, kind)

    def test_metrics_carry_intervals(self, runs, strategy, kind):
        metrics = json.loads((runs[strategy, kind] / "metrics.json").read_text())
        for split in ("test", "validation"):
            assert metrics[split]
            known = {name: found for name, found in metrics[split].items() if found["low"] is not None}
            assert {"accuracy", "subset_accuracy", "mae"} & known.keys()  # the others may hang on a class of a few rows
            for measured in known.values():
                assert measured["low"] <= measured["value"] <= measured["high"]


def test_transfer_learns(runs):
    """The tiny problems can be solved from random features: the convex head must do far better than chance."""
    accuracy = {kind: _test_metric(runs["probe", kind], "accuracy") for kind in ("image", "text")}
    assert accuracy["image"] > 0.6 and accuracy["text"] > 0.5


def _test_metric(folder: Path, name: str) -> float:
    return json.loads((folder / "metrics.json").read_text())["test"][name]["value"]


@pytest.mark.parametrize("strategy", ["probe", "full", "lora"])
def test_two_equal_runs_give_equal_weights(runs, tmp_path, strategy):
    config = configuration(strategy, "text", tmp_path)
    first = run(config).folder
    second = run(config.model_copy(update={"output": str(tmp_path / "again")})).folder
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]
    third = run(config.model_copy(update={"output": str(tmp_path / "other"), "seed": 1})).folder
    if strategy != "probe":  # the convex head has one solution, whatever the seed
        assert (third / "model" / "model.safetensors").read_bytes() != weights[0]


@pytest.mark.parametrize("kind", ["text", "text-regression", "text-multi", "image"])
def test_adapter_on_the_published_checkpoint_gives_the_merged_logits(runs, kind):
    from peft import PeftModel

    from hftransfer.models.loading import ModelConfig, load_checkpoint

    folder = runs["lora", kind]
    config = RunConfig.from_yaml(folder / "config.yaml")
    merged = load(folder, use_cpu=True)
    published = load_checkpoint(ModelConfig(name=config.model.name), merged.modality.name, merged.task).model
    adapted = PeftModel.from_pretrained(published, folder / "adapter").eval()
    inputs = pd.read_parquet(folder / "splits.parquet").head(3)
    batch = merged.modality.collate(merged.modality.encode(inputs))
    with torch.no_grad():
        expected = merged.model(**batch).logits
        assert torch.allclose(adapted(**batch).logits, expected, atol=1e-4 * max(1, expected.abs().max()))
