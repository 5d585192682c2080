"""The behaviour matrix: every strategy x modality x task on tiny models. One run each; all questions are asked of it."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock

from hftransfer.config import RunConfig, checked, with_overrides
from hftransfer.core.errors import UserError
from hftransfer.core.mask_files import decode_prediction
from hftransfer.prediction.predictor import load
from hftransfer.publish.hub import push
from hftransfer.report import write_report
from hftransfer.runs.predictions import outputs_of
from hftransfer.runs.reader import RecordedRun
from hftransfer.strategies import STRATEGIES
from hftransfer.train import run
from tests.support.fork_server import run_python
from tests.support.runs import KINDS, configuration

# These strategies meet every modality and every task, but not every pair of the two: the other cells are slow.
FEWER = {
    "frozen": {"image", "audio-regression", "text-multi", "tokens", "masks"},
    "gradual": {"image-multi", "audio", "text-regression", "tokens"},
    "lora": {"image", "audio-multi", "text", "text-multi", "text-regression", "pair", "tokens", "masks"},
    "scratch": {"image-regression", "audio-multi", "text"},
}
CASES = [
    pytest.param(strategy, kind, marks=[] if kind in FEWER.get(strategy, KINDS) else pytest.mark.slow)
    for strategy in STRATEGIES
    for kind in KINDS
]


PIPELINE = """
import json, sys
import numpy as np
import soundfile
from transformers import pipeline
answers = []
for folder, task, inputs in json.load(open(sys.argv[1])):
    ask = pipeline(task, folder, device="cpu")
    options = {"truncation": True} if task == "text-classification" else {}
    if task == "audio-classification":  # of a file it would need ffmpeg
        inputs = [soundfile.read(one, dtype="float32")[0] for one in inputs]
    if task == "image-segmentation":
        answers.append([[[s["label"], np.asarray(s["mask"]).tolist()] for s in ask(one, subtask="semantic")] for one in inputs])
        continue
    options |= {"aggregation_strategy": "first"} if task == "token-classification" else {"top_k": None}
    answers.append([ask(one, **options) for one in inputs])
json.dump(answers, open(sys.argv[2], "w"), default=float)
assert "hftransfer" not in sys.modules
"""


@pytest.fixture(scope="module")
def pipeline_answers(tiny_run, request) -> dict[tuple[str, str], list]:
    """What a fresh process with plain transformers answers to the raw test inputs of every run that is asked for."""
    asking = [item for item in request.session.items if "pipeline_answers" in item.fixturenames]
    cases = [(item.callspec.params["strategy"], item.callspec.params["kind"]) for item in asking]
    asked, answers = tiny_run.root / "asked.json", tiny_run.root / "answers.json"
    with FileLock(tiny_run.root / "answers.lock"):
        if not answers.exists():
            folders = [tiny_run(strategy, kind, pages=False) for strategy, kind in cases]
            questions = [[str(path / "model"), _about(path)["pipeline_task"], raw_inputs(path)] for path in folders]
            asked.write_text(json.dumps(questions))
            command = [sys.executable, "-c", PIPELINE, str(asked), str(answers)]
            run_python(command, check=True, cwd=tiny_run.root, ready=True)
    return dict(zip(cases, json.loads(answers.read_text()), strict=True))


def _about(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def raw_inputs(folder: Path) -> list:
    table = pd.read_parquet(folder / "splits.parquet")
    table = table[table["split"] == "test"].head(4)
    if "input_pair" in table:
        return [{"text": a, "text_pair": b} for a, b in zip(table["input"], table["input_pair"], strict=True)]
    return table["input"].tolist()


def entities_of(found) -> list[tuple]:
    """Entities of our predictions, or of the pipeline, with scores as near as rounding lets them be."""
    return [
        (e["start"], e["end"], e.get("entity_group", e.get("label")), pytest.approx(e["score"], abs=1e-4))
        for e in found
    ]


def assert_same_mask(recorded: bytes, answer: list, task) -> None:
    """The masks of a pipeline, one for each class, make up the recorded one, but for pixels at which rounding decides."""
    classes, certainty = decode_prediction(recorded)
    found = np.full(classes.shape, 255)
    for label, mask in answer:
        found[np.array(mask) > 0] = task.names.index(label)
    assert (found == classes)[certainty > 140].all()
    assert (found == classes).mean() > 0.99


@pytest.mark.parametrize(("strategy", "kind"), CASES)
class TestEveryCase:
    def test_the_run_folder_is_whole(self, tiny_run, strategy, kind):
        folder = tiny_run(strategy, kind, pages=False)
        names = {path.name for path in folder.iterdir()}
        expected = {"config.yaml", "run.json", "splits.parquet", "model", "metrics.json", "predictions.parquet"}
        assert expected | {"receipt.json", "history.json"} <= names
        assert ("adapter" in names) == (strategy == "lora" and kind != "masks")
        assert not names & {"checkpoints", "features"}
        assert RunConfig.from_yaml(folder / "config.yaml") == checked(
            yaml.safe_load((folder / "config.yaml").read_text())
        )

    def test_only_what_the_plan_names_moved(self, tiny_run, strategy, kind):
        groups = json.loads((tiny_run(strategy, kind, pages=False) / "receipt.json").read_text())["layer_groups"]
        moved = {r["depth"]: r["hash_before"] != r["hash_after"] for r in groups if r["parameters"]}
        trained = {r["depth"]: r["trainable"] > 0 for r in groups if r["parameters"]}
        assert moved == trained
        head = max(moved)
        lowest = {"probe": head, "frozen": head - 1, "lora": 1}.get(strategy, 0)
        assert {depth for depth, moves in moved.items() if moves} == {r for r in moved if r >= lowest}

    def test_predictions_have_one_row_an_example_and_match_the_saved_model(self, tiny_run, strategy, kind):
        folder = tiny_run(strategy, kind, pages=False)
        splits = pd.read_parquet(folder / "splits.parquet").set_index("id")
        predictions = pd.read_parquet(folder / "predictions.parquet")
        assert predictions["id"].is_unique
        task = RecordedRun(folder).task
        refitted = strategy == "probe" and not task.by_part
        evaluated = ["train", "validation", "test"] if refitted else ["validation", "test"]
        assert set(predictions["id"]) == set(splits.index[splits["split"].isin(evaluated)])
        test = predictions[predictions["split"] == "test"].set_index("id")
        logits = load(folder, use_cpu=True).logits(splits.loc[test.index].reset_index())
        if task.by_pixel:
            assert not task.decides_otherwise(outputs_of(test, task), logits, 1e-3).any()
            return
        written = task.units(outputs_of(test, task, "logit"))
        assert np.allclose(task.units(logits), written, atol=1e-4 * max(1, np.abs(written).max()))

    def test_plain_pipeline_answers_the_same(self, tiny_run, pipeline_answers, strategy, kind):
        folder = tiny_run(strategy, kind, pages=False)
        predictions = pd.read_parquet(folder / "predictions.parquet").set_index("id")
        splits = pd.read_parquet(folder / "splits.parquet")
        ids = splits[splits["split"] == "test"].head(4)["id"]
        for key, answer in zip(ids, pipeline_answers[strategy, kind], strict=True):
            if RecordedRun(folder).task.by_pixel:
                assert_same_mask(predictions.loc[key, "mask"], answer, RecordedRun(folder).task)
                continue
            if RecordedRun(folder).task.by_word:
                assert entities_of(predictions.loc[key, "prediction"]) == entities_of(answer)
                continue
            given = {entry["label"]: entry["score"] for entry in answer}
            expected = {
                c.removeprefix("score:"): predictions.loc[key, c] for c in predictions if c.startswith("score:")
            }
            assert given == pytest.approx(expected, abs=1e-4), (strategy, kind)

    def test_metrics_carry_intervals(self, tiny_run, strategy, kind):
        metrics = json.loads((tiny_run(strategy, kind, pages=False) / "metrics.json").read_text())
        for split in ("test", "validation"):
            assert metrics[split]
            known = {name: found for name, found in metrics[split].items() if found["low"] is not None}
            assert {
                "accuracy",
                "subset_accuracy",
                "mae",
                "log_loss",
                "pixel_accuracy",
            } & known.keys()  # the others may hang on a class of a few rows
            for measured in known.values():
                assert measured["low"] <= measured["value"] <= measured["high"]


def test_transfer_learns(tiny_run):
    """The tiny problems can be solved from random features: the linear probe must do far better than chance."""
    accuracy = {kind: _test_metric(tiny_run("probe", kind, pages=False), "accuracy") for kind in ("image", "text")}
    assert accuracy["image"] > 0.6 and accuracy["text"] > 0.5


def _test_metric(folder: Path, name: str) -> float:
    return json.loads((folder / "metrics.json").read_text())["test"][name]["value"]


@pytest.mark.parametrize("strategy", ["probe", "full", "lora"])
def test_two_equal_runs_give_equal_weights(tmp_path, strategy):
    config = configuration(strategy, "text", tmp_path)
    first = run(config).folder
    second = run(config.model_copy(update={"output": str(tmp_path / "again")})).folder
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]
    if strategy != "probe":  # the linear probe has one solution, whatever the seed
        third = run(config.model_copy(update={"output": str(tmp_path / "other"), "seed": 1})).folder
        assert (third / "model" / "model.safetensors").read_bytes() != weights[0]


@pytest.mark.parametrize("kind", ["text", "text-regression", "text-multi", "image"])
def test_adapter_on_the_published_checkpoint_gives_the_merged_logits(tiny_run, kind):
    from peft import PeftModel

    from hftransfer.models.loading import ModelConfig, load_checkpoint

    folder = tiny_run("lora", kind)
    config = RunConfig.from_yaml(folder / "config.yaml")
    merged = load(folder, use_cpu=True)
    published = load_checkpoint(ModelConfig(name=config.model.name), merged.modality.kind, merged.task).model
    adapted = PeftModel.from_pretrained(published, folder / "adapter").eval()
    inputs = pd.read_parquet(folder / "splits.parquet").head(3)
    batch = merged.modality.collate(merged.modality.encode(inputs))
    with torch.no_grad():
        expected = merged.model(**batch).logits
        assert torch.allclose(adapted(**batch).logits, expected, atol=1e-4 * max(1, expected.abs().max()))


@pytest.mark.parametrize(
    ("source", "blocks"), [({"head.layer": 1, "head.pooling": "head"}, 1), ({"head.pooling": "mean"}, 4)], ids=str
)
def test_lora_from_another_feature_source_is_a_plain_model_without_an_adapter(tmp_path, source, blocks):
    """An adapter would not fit the published checkpoint of three blocks; a mean is one block more."""
    values = configuration("lora", "text", tmp_path).model_dump(mode="json")
    made = run(with_overrides(values, {"strategy.head_init": "probe"} | source)).folder
    assert not (made / "adapter").exists()
    with pytest.raises(
        UserError, match="has no adapter: its head reads another layer or pooling than the checkpoint's"
    ):
        push(made, "me/topics", adapter=True, dry_run=tmp_path / "repo")
    assert json.loads((made / "model" / "config.json").read_text())["num_hidden_layers"] == blocks


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_of_every_kind_is_drawn(tiny_run, drawn_plots, tmp_path, kind):
    folder = Path(
        shutil.copytree(tiny_run("full", kind, pages=False), tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    )
    (folder / "model").mkdir()
    page = write_report(folder).read_text()
    assert page.count("<svg") >= 4 and page.count("<path") > 60
