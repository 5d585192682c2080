"""Advice where an example has many units of prediction: words of texts, pixels of images."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from hftransfer.config import RunConfig, checked, parse_overrides, with_overrides
from hftransfer.core.mask_files import IGNORED, encode_mask
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.modalities.pixels import PixelsKind
from hftransfer.pipeline.words import held_out_words, owners_of
from hftransfer.planning.strategies.candidates import changed
from hftransfer.planning.strategies.command import advise
from hftransfer.planning.strategies.wording import as_dict, evidence
from hftransfer.probe.fit import Rows
from hftransfer.probe.solver import make_folds, solve_head
from hftransfer.tasks import Masks, Tokens
from hftransfer.tasks.tokens import ragged
from hftransfer.train import run
from tests.support.runs import configuration

pytestmark = pytest.mark.usefixtures("unchecked")

FEW = ("strategy.budget=6s", "training.max_steps=2", "training.learning_rate=1e-3", "head.folds=2")


def auto(kind, folder, *overrides):
    values = configuration("probe", kind, folder).model_dump(mode="json")
    return with_overrides(values, {"strategy.type": "auto"} | parse_overrides([*FEW, *overrides]))


@pytest.mark.parametrize(("kind", "metric"), [("tokens", "entity_f1"), ("masks", "mean_iou")])
def test_candidates_are_compared_by_the_headline_of_whole_examples(tmp_path, kind, metric):
    search = advise(auto(kind, tmp_path))
    found = json.loads(json.dumps(as_dict(search)))
    candidates = {candidate["name"]: candidate for candidate in found["candidates"]}
    assert found["metric"] == metric and {"majority", "probe", "frozen"} <= candidates.keys()
    assert {"frozen", "lora", "full", "scratch"} <= candidates.keys() | found["skipped"].keys()
    assert "test" not in set(search.experiments.data.frame["split"])
    rows = search.measured["probe"].rows
    assert len(set(rows)) == len(rows) and search.measured["frozen"].folds <= search.measured["probe"].folds
    scores = search.measured["probe"].scores
    exact = compute_metrics(search.evaluator.task, search.evaluator.targets[rows], scores)[metric]
    assert candidates["probe"]["score"]["value"] == pytest.approx(exact, nan_ok=True)
    assert candidates["frozen"]["over_probe"]["low"] <= candidates["frozen"]["over_probe"]["value"]
    open_ended = changed(checked({"data": "d", "model": "m"}), {"strategy.type": "probe"})
    assert kind == "tokens" or search.experiments.steps(open_ended) == 200  # the own steps of a probe that trains
    assert any(sentence.startswith("There are no prior results on") for sentence in evidence(search))


def test_held_out_words_are_answered_by_the_words_of_the_other_texts():
    """Random labels can only be learned by heart: who saw them is right, who did not is as good as a guess."""
    rng = np.random.default_rng(0)
    targets = ragged([rng.integers(3, size=size) for size in rng.integers(1, 6, 30)])
    words = np.concatenate(list(targets))
    features = rng.normal(size=(len(words), 200))
    unit, texts = Tokens(("LOC",)).of_unit, np.arange(30)
    rows = Rows([], [], words, np.arange(len(words)), owners_of(targets))
    head = solve_head(features, words, unit, make_folds(unit, words, rows.groups, 3, 0))
    head = replace(head, penalty=1e-4)
    folds = [(texts[10:], texts[:10]), (texts[:10], texts[10:20])]
    found = held_out_words(features, rows, unit, head, targets, folds)
    assert [each.shape for each in found] == [(len(tags), 3) for tags in targets]
    assert all(np.isnan(each).all() for each in found[20:])  # held out by no fold
    seen = held_out_words(features, rows, unit, head, targets, [(texts, texts)])
    hits = [
        (np.concatenate(list(each[:20])).argmax(1) == np.concatenate(list(targets[:20]))).mean()
        for each in (found, seen)
    ]
    assert hits[0] < 0.6 and hits[1] == 1


def test_a_faultless_answer_has_no_error_and_the_commonest_no_entity():
    task = Tokens(("LOC",))
    targets = ragged([np.array([0, 1, 2]), np.array([0, 0])])
    assert compute_metrics(task, targets, task.faultless(targets))["entity_f1"] == 1
    assert compute_metrics(task, targets, task.commonest(targets, targets))["entity_f1"] == 0
    masks = Masks(("background", "crack"))
    mask = np.zeros((4, 6), np.uint8)
    mask[0, :5], mask[3] = 1, IGNORED
    labels = ragged([encode_mask(mask)])
    assert compute_metrics(masks, labels, masks.faultless(labels))["mean_iou"] == 1
    found = compute_metrics(masks, labels, masks.commonest(labels, labels))
    assert found["pixel_accuracy"] == pytest.approx(13 / 18)


def test_a_changed_configuration_leaves_the_batch_size_to_the_kind_of_input():
    """A candidate of masks had batches of 32 images in place of 8."""
    config = changed(checked({"data": "d", "model": "m"}), {"strategy.type": "full"})
    assert config.training.resolved(PixelsKind()).per_device_train_batch_size == PixelsKind.batch_size


@pytest.mark.slow  # the search itself is measured above
def test_auto_leaves_a_whole_run_of_masks_within_its_budget(tmp_path):
    config = auto("masks", tmp_path, f"output={tmp_path / 'run'}", "strategy.budget=20s")
    begin = time.perf_counter()
    finished = run(config)
    assert time.perf_counter() - begin < 60
    found = json.loads((finished.folder / "advice.json").read_text())
    stored = RunConfig.from_yaml(finished.folder / "config.yaml")
    assert stored.strategy.type == found["changes"]["strategy.type"] != "auto"
    assert "mean_iou" in finished.metrics["test"]
