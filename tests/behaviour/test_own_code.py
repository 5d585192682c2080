"""A model with Python code of its own is usable after training where the user allowed that code, and nowhere else."""

import importlib.util
import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants

import hftransfer
from hftransfer.apps.serving import serve
from hftransfer.core.errors import UserError
from hftransfer.core.hashing import remote_code_key
from hftransfer.evaluation import EvaluationConfig
from hftransfer.planning.labels.pool import next_to_label
from hftransfer.prediction.evaluate import evaluate
from hftransfer.prediction.explain import explain
from hftransfer.publish.card import render_card
from hftransfer.publish.export import export
from hftransfer.publish.hub import push
from hftransfer.publish.round_trip import Form, ask_form, readable_rows
from hftransfer.runs.reader import RecordedRun
from hftransfer.train import run
from tests.models.test_loading import REMOTE
from tests.pipeline.test_self_check import configuration
from tests.support import tiny
from tests.support.run_folders import make_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(root / "modules"))
        patch.setenv("HF_MODULES_CACHE", str(root / "modules"))  # of the processes that are started
        patch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
        yield root


@pytest.fixture(scope="module")
def made(root):
    """A run of a network whose class and config are code in the checkpoint's folder."""
    model, pictures = tiny.VISION_FAMILIES["vit"](root / "checkpoint"), tiny.image_folder(root / "pictures")
    config = json.loads((model / "config.json").read_text())
    own = {"AutoConfig": "code.OwnConfig", "AutoModelForImageClassification": "code.OwnModel"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own-vit", "auto_map": own}))
    (model / "code.py").write_text(REMOTE)
    return run(
        configuration({"name": str(model), "trust_remote_code": True}, pictures, root / "run", training={"bf16": False})
    ).folder


def test_every_command_after_training_runs_allowed_code(made, root):
    recorded = RecordedRun.open(made)
    part = readable_rows(recorded, 8)
    predictor = hftransfer.load(made, use_cpu=True)
    assert type(predictor.model).__name__ == "OwnModel" and predictor.modality.kind.name == "image"
    table = predictor.predict(part.frame["input"].tolist())
    scores = table[[f"score:{name}" for name in recorded.task.names]].to_numpy()
    assert np.abs(scores - part.scores).max() < 1e-4
    assert evaluate(made, str(root / "pictures"), {}, EvaluationConfig(resamples=100))["metrics"]
    assert serve(made).kind.name == "image"
    assert (
        len(next_to_label(str(tiny.image_folder(root / "pool", per_class=2, size=40)), 2, str(made), None, None)) == 2
    )
    assert (export(made, "safetensors-merged") / "code.py").is_file()
    assert explain(predictor, part.frame.head(1))[0].heat is not None


def test_the_round_trip_and_the_card_name_it(made, forked_programs):
    recorded = RecordedRun.open(made)
    stage = ask_form(recorded, readable_rows(recorded, 4), Form("pipeline", "pipeline", made / "model", 1))
    assert stage.label_agreement == 1 and stage.max_difference < 1e-4
    assert 'pipeline("image-classification", "owner/name", trust_remote_code=True)' in render_card(
        recorded, "owner/name"
    )
    with pytest.raises(UserError, match="needs Python code of its own, which the app of a Space does not run"):
        push(made, "owner/name", space="owner/space", dry_run=made.parent / "dry")


def test_a_model_folder_alone_runs_no_code(made):
    refused = (
        r"The model in .*model needs Python code of its own, .*hftransfer.load\('.*model', trust_remote_code=True\)"
    )
    with pytest.raises(UserError, match=refused):
        hftransfer.load(made / "model")
    assert type(hftransfer.load(made / "model", trust_remote_code=True).model).__name__ == "OwnModel"


def test_a_run_that_was_not_allowed_runs_no_code(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("trust_remote_code: true", "trust_remote_code: false"))
    for command in (hftransfer.load, serve, lambda path: hftransfer.predict(path, [])):
        with pytest.raises(UserError, match="needs Python code of its own"):
            command(folder)
    with pytest.raises(UserError, match="needs Python code of its own"):
        hftransfer.load(made, trust_remote_code=False)


def test_what_was_downloaded_from_the_hub_allows_nothing(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "hub" / "models--a--b" / "snapshots" / "c", rows=10)
    (folder / "config.yaml").write_text("model:\n  name: a/b\n  trust_remote_code: true\n")
    assert RecordedRun(folder).runs_own_code
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert not RecordedRun(folder).runs_own_code


def test_the_key_of_remote_code_holds_every_file_beside_it(tmp_path, monkeypatch):
    package = tmp_path / "transformers_modules" / "own"
    (package / "parts").mkdir(parents=True)
    (package / "model.py").write_text("class Own:\n    pass\n")
    (package / "parts" / "layers.py").write_text("FACTOR = 1\n")
    spec = importlib.util.spec_from_file_location("transformers_modules.own.model", package / "model.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    before = remote_code_key(module.Own)
    assert before == remote_code_key(module.Own) and remote_code_key(dict) is None
    (package / "parts" / "layers.py").write_text("FACTOR = 2\n")
    assert remote_code_key(module.Own) != before


def test_labels_in_the_order_of_their_numbers(tmp_path):
    """JSON keeps the order of a file, in which "10" often stands before "2"."""
    model = tiny.TEXT_FAMILIES["bert"](tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    names = {str(number): f"label {number}" for number in (0, 1, 3, 2, 6, 5, 4)}
    (model / "config.json").write_text(json.dumps(config | {"id2label": names}))
    assert hftransfer.load(model, use_cpu=True).task.names == tuple(f"label {number}" for number in range(7))
    assert isinstance(hftransfer.predict(model, ["goal match"]), pd.DataFrame)
