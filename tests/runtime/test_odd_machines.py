"""Machines without a home, a user name, locks or forks; losses that end; metrics without a unit."""

import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock

from hftransfer.config import checked
from hftransfer.core import files
from hftransfer.core.errors import UserError
from hftransfer.core.files import cache_folder
from hftransfer.evaluation.intervals import measure
from hftransfer.runtime import devices
from hftransfer.tasks import Regression
from hftransfer.train import run
from tests.support import tiny


def configuration(model, data, folder, strategy="probe", **training):
    return checked({"data": {"train": str(data)}, "model": str(model), "strategy": {"type": strategy}, "use_cpu": True,
                    "training": {"max_steps": 4, "evaluations": 2, "bf16": False} | training, "output": str(folder),
                    "evaluation": {"explanations": False, "folds": 0, "resamples": 100}})  # fmt: skip


@pytest.mark.parametrize("home", [None, "/", "/nonexistent", "read-only"])
def test_without_a_home_that_can_be_written_the_cache_is_a_temporary_folder(monkeypatch, tmp_path, caplog, home):
    files._temporary_cache.cache_clear()
    monkeypatch.delenv("HFTRANSFER_CACHE")
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in ("/", str(tmp_path)) and writable(path, mode))
    monkeypatch.setenv("HOME", str(tmp_path) if home == "read-only" else home or "")
    if home is None:
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it answers for an unknown user without HOME
    found = cache_folder()
    assert found.name == f"hftransfer-{os.getuid()}" and cache_folder() == found
    assert caplog.text.count("HFTRANSFER_CACHE names another") == 1
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"


def test_a_user_without_a_name_gets_one(monkeypatch):
    import getpass

    def unknown():
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(getpass, "getuser", unknown)
    monkeypatch.setenv("USER", "")
    devices.name_the_user()
    assert os.environ["USER"] == f"uid-{os.getuid()}"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_file_systems_without_locks(monkeypatch, tmp_path, caplog, code):
    def refuse(self, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    data = tiny.text_table(tmp_path / "t.csv", rows=40)
    made = run(configuration(tiny.TEXT_FAMILIES["bert"](tmp_path / "m"), data, tmp_path / "run"))
    assert made.metrics["test"] and caplog.text.count("has no locks") >= 1


def test_loading_processes_need_a_fork(monkeypatch):
    monkeypatch.setattr(devices, "_shared_memory_bytes", lambda: 2**40)
    monkeypatch.setattr(devices, "available_cores", lambda: 8)
    assert devices.thread_plan(torch.device("cuda")).workers > 0
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert devices.thread_plan(torch.device("cuda")).workers == 0


def test_a_loss_that_is_no_number_leaves_the_solved_head(tmp_path, caplog):
    data = tiny.text_table(tmp_path / "t.csv", rows=60)
    model = tiny.TEXT_FAMILIES["bert"](tmp_path / "m")
    made = run(configuration(model, data, tmp_path / "run", "full", learning_rate=1e30, max_grad_norm=0.0))
    assert "the weights of step 0 are kept" in caplog.text
    assert made.interruption is not None and np.isfinite(made.metrics["test"]["log_loss"]["value"])
    probe = run(configuration(model, data, tmp_path / "probe"))
    recorded, solved = (pd.read_parquet(folder / "predictions.parquet") for folder in (made.folder, probe.folder))
    assert recorded.query("split == 'test'")["prediction"].notna().all() and len(solved)


def test_early_stopping_counts_from_the_start_of_each_attempt(tmp_path, monkeypatch):
    from hftransfer.training import trainer as loop

    made = []
    original = loop._callbacks
    monkeypatch.setattr(loop, "_callbacks", lambda *given: made.append(original(*given)) or made[-1])
    train = loop._train
    attempts = []

    def fails_once(trainer, *rest):
        attempts.append(trainer)
        if len(attempts) == 1:
            raise RuntimeError("CUDA out of memory")
        train(trainer, *rest)

    monkeypatch.setattr(loop, "_train", fails_once)
    data = tiny.text_table(tmp_path / "t.csv", rows=60)
    config = configuration(tiny.TEXT_FAMILIES["bert"](tmp_path / "m"), data, tmp_path / "run", "full",
                           early_stopping_patience=1, per_device_train_batch_size=8)  # fmt: skip
    run(config)
    assert len(attempts) == len(made) == 2 and not set(map(id, made[0])) & set(map(id, made[1]))


def test_the_deciding_metric_of_several_targets_has_no_unit():
    two = Regression(("price", "share"))
    assert Regression(("price",)).headline == "rmse" and two.headline == "r2"
    random = np.random.default_rng(0)
    truth = np.column_stack([random.normal(2e5, 3e4, 80), random.random(80)])
    answers = truth + np.column_stack(
        [random.normal(0, 3e3, 80), random.normal(0, 0.3, 80)]
    )  # the share is hardly told
    cents = measure(two, truth * [100, 1], answers * [100, 1], None)[two.headline]
    assert measure(two, truth, answers, None)[two.headline].value == pytest.approx(cents.value)


def test_a_finished_run_that_cannot_be_moved_is_kept_and_named(tmp_path, monkeypatch):
    replace, output = os.replace, tmp_path / "run"

    def refuse(source, target):
        if str(target) == str(output):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    data = tiny.text_table(tmp_path / "t.csv", rows=40)
    with pytest.raises(
        UserError, match="The run is finished and lies in .*run.incomplete: it could not be moved to .*run"
    ):
        run(configuration(tiny.TEXT_FAMILIES["bert"](tmp_path / "m"), data, output))
    assert (tmp_path / "run.incomplete" / "run.json").is_file()


def test_no_features_lie_in_the_folder_that_is_moved(tmp_path, monkeypatch):
    """Windows moves no folder that holds mapped files; without a store the features are such files."""
    replace, output, moved = os.replace, tmp_path / "run", []

    def inspection(source, target):
        if str(target) == str(output):
            moved.extend(path.name for path in Path(source).rglob("*.safetensors"))
            assert list(tmp_path.glob(".run.features/*/*.safetensors"))
        replace(source, target)

    monkeypatch.setattr(os, "replace", inspection)
    data = tiny.text_table(tmp_path / "t.csv", rows=40)
    config = configuration(tiny.TEXT_FAMILIES["bert"](tmp_path / "m"), data, output)
    run(config.model_copy(update={"store": False}))
    assert set(moved) == {"model.safetensors", "reference.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "t.csv", "m"}
