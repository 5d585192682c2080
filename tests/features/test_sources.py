"""What the head reads: chosen by cross-validation, exact in the plain model that expresses it."""

import json
import random

import numpy as np
import pandas as pd
import pytest
import torch

from hftransfer.config import parse_overrides, read_yaml, with_overrides
from hftransfer.core.errors import UserError
from hftransfer.features.sources import mean_is_exact, open_head, read_features
from hftransfer.modalities import kind_of
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import ModelConfig, load_checkpoint
from hftransfer.pipeline.run_context import features_identity
from hftransfer.prediction.predictor import load
from hftransfer.tasks import SingleLabel
from hftransfer.train import run
from tests.support import tiny
from tests.support.runs import configuration

TASK = SingleLabel(("a", "b", "c"))
POST_NORM = {"bert", "roberta", "distilbert", "electra", "deberta-v2"}


def probe_run(folder, kind, *overrides):
    values = configuration("probe", kind, folder).model_dump(mode="json")
    values["output"] = str(folder / f"run-{len(list(folder.iterdir()))}")
    return run(with_overrides(values, parse_overrides(overrides))).folder


def disagreement(folder):
    """The largest difference between the scores in the folder and those of the saved model on the raw test inputs."""
    splits = pd.read_parquet(folder / "splits.parquet").set_index("id")
    predictions = pd.read_parquet(folder / "predictions.parquet").set_index("id")
    test = predictions[predictions["split"] == "test"]
    written = test[[c for c in test if c.startswith("score:")]].to_numpy()
    predictor = load(folder, use_cpu=True)
    scores = predictor.task.probabilities(predictor.logits(splits.loc[test.index].reset_index()))
    return np.abs(scores - written).max()


def chosen(folder):
    return json.loads((folder / "run.json").read_text())["feature_source"]


@pytest.mark.parametrize(("kind", "overrides", "names"), [
    ("image-multi", ["head.layer=best"], {"head@1", "head@2", "head@3"}),
    ("text", ["head.layer=best"], {f"{p}@{b}" for p in ("head", "mean") for b in (1, 2, 3)}),
    ("text", ["head.layer=1", "head.pooling=head"], {"head@1"}),
    ("text", ["head.pooling=mean"], {"mean@3"}),
    ("text-regression", ["head.pooling=mean"], {"mean@3"}),
    ("text-multi", ["head.pooling=mean", "head.layer=2"], {"mean@2"}),
])  # fmt: skip
def test_every_readout_is_a_plain_model_with_the_same_answers(tmp_path, kind, overrides, names):
    folder = probe_run(tmp_path, kind, *overrides)
    found = chosen(folder)
    assert set(found["losses"]) == names
    assert found["losses"][found["chosen"]] == min(found["losses"].values())
    assert disagreement(folder) < 1e-4
    depth = int(found["chosen"].partition("@")[2]) + found["chosen"].startswith("mean")
    stored = json.loads((folder / "model" / "config.json").read_text())
    assert depth in (stored.get("num_hidden_layers"), stored.get("n_layers"))


def test_a_family_that_cannot_be_cut_reads_its_end_and_says_so_when_asked_for_more(tmp_path):
    assert set(chosen(probe_run(tmp_path, "image", "head.layer=best"))["losses"]) == {"head@4"}
    with pytest.raises(UserError, match="cannot be taken off a plain model: use head.layer=last"):
        probe_run(tmp_path, "image", "head.layer=2")
    assert (
        len(chosen(probe_run(tmp_path, "image-regression", "head.layer=best"))["losses"]) == 1
    )  # stages of other widths
    with pytest.raises(UserError, match="Blocks of ConvNextForImageClassification cannot be taken off"):
        probe_run(tmp_path, "image-regression", "head.layer=1")
    with pytest.raises(UserError, match="head.layer=7: expected a block from 1 to 3, 'last' or 'best'"):
        probe_run(tmp_path, "image-multi", "head.layer=7")


@pytest.mark.parametrize("family", list(tiny.TEXT_FAMILIES))
def test_mean_pooling_is_offered_where_the_family_can_express_it(tmp_path, family):
    checkpoint = load_checkpoint(
        ModelConfig(name=str(tiny.TEXT_FAMILIES[family](tmp_path / "m"))), kind_of("text"), TASK
    )
    batch = dict(checkpoint.processor(["goal match team player", "bank"], padding=True, return_tensors="pt"))
    model = checkpoint.model.eval()
    open_head(model, checkpoint.new_parameters, batch)
    assert mean_is_exact(model, LayerGroups.of(model), batch) == (family in POST_NORM)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra", "deberta-v2", "modernbert", "esm", "mpnet"])
def test_a_fresh_head_of_several_layers_hands_the_features_on(tmp_path, family):
    """Opened, the hidden layer keeps what it reads: the pooled token can be told from what comes out."""
    checkpoint = load_checkpoint(
        ModelConfig(name=str(tiny.TEXT_FAMILIES[family](tmp_path / "m"))), kind_of("text"), TASK
    )
    protein = family == "esm"
    texts = [tiny.sentence([i % 3], random.Random(i), protein=protein) for i in range(40)]
    batch = dict(checkpoint.processor(texts, padding=True, return_tensors="pt"))
    model = checkpoint.model.eval()
    open_head(model, checkpoint.new_parameters, batch)
    with torch.no_grad():
        pooled = model.base_model(**batch).last_hidden_state[:, 0]
    read = read_features(model, batch)
    if family == "modernbert":  # a norm of its own follows
        pooled = torch.nn.functional.layer_norm(pooled, pooled.shape[-1:])
    correlation = torch.corrcoef(torch.stack([read.flatten() - read.mean(), pooled.flatten() - pooled.mean()]))[0, 1]
    assert correlation > 0.99


def test_a_number_of_training_rows_is_kept_to(tmp_path):
    """A cut validation part trains the head too, but not beside a number of rows that was asked for."""
    for override, fitted, note in ((None, {"train", "validation"}, True), ("data.train_examples=18", {"train"}, False)):
        folder = probe_run(tmp_path, "text", *([override] if override else []))
        splits = pd.read_parquet(folder / "splits.parquet")
        oof = pd.read_parquet(folder / "oof.parquet")
        assert set(oof["id"]) == set(splits["id"][splits["split"].isin(fitted)])
        assert ("validation" in json.loads((folder / "metrics.json").read_text())["notes"]) == note
        predictions = pd.read_parquet(folder / "predictions.parquet").set_index("id")
        assert set(predictions.index) == set(splits["id"])
        assert set(predictions.index[predictions["out_of_fold"]]) == set(oof["id"])


def test_a_validation_part_that_was_given_is_not_fitted_on(tmp_path):
    first = probe_run(tmp_path, "text")
    table = pd.read_csv(read_yaml(first / "config.yaml")["data"]["train"])
    table["split"] = [
        "validation" if row % 5 == 0 else "test" if row % 5 == 1 else "train" for row in range(len(table))
    ]
    table.to_csv(tmp_path / "divided.csv", index=False)
    folder = probe_run(tmp_path, "text", f"data.train={tmp_path / 'divided.csv'}", f"output={tmp_path / 'given'}")
    splits = pd.read_parquet(folder / "splits.parquet").set_index("id")["split"]
    assert set(splits[pd.read_parquet(folder / "oof.parquet")["id"]]) == {"train"}
    assert (splits == "validation").sum() == (table["split"] == "validation").sum()


def test_features_of_another_fresh_layer_are_other_features(tmp_path):
    """The last layer reads the features; a fresh layer below it makes them, so the store must tell two of those apart."""
    checkpoint = load_checkpoint(
        ModelConfig(name=str(tiny.TEXT_FAMILIES["distilbert"](tmp_path / "m"))), kind_of("text"), TASK
    )
    before = features_identity(checkpoint)
    with torch.no_grad():
        checkpoint.model.classifier.weight.add_(1.0)
    assert features_identity(checkpoint) == before
    with torch.no_grad():
        checkpoint.model.pre_classifier.weight.add_(1.0)
    assert features_identity(checkpoint) != before
