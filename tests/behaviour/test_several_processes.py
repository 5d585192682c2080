"""Several processes make the run that one would make: what they agree on, and how they end together."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from hftransfer.core.errors import UserError
from hftransfer.features.store import FeatureStore
from hftransfer.runtime import devices
from hftransfer.runtime.launch import World
from tests.behaviour.test_matrix import configuration
from tests.support.processes import in_each, start, two_processes
from tests.training.test_trainer import changed


def launched(config, cache, resume=False):
    """Exit codes of two processes of one run."""
    processes = two_processes(config, cache, resume)
    for process in processes:
        process.join(120)
        process.kill()
    return [process.exitcode for process in processes]


def log_of(config, rank):
    return Path(f"{config.output}.{rank}.log").read_text()


# --- what they agree on ----------------------------------------------------------------------------------------------


def own_measurement(world, config):
    """The precision and batch size of the run, where the clock of each process tells it something else."""
    from hftransfer.data import load_data
    from hftransfer.models.loading import load_checkpoint
    from hftransfer.pipeline.run_context import prepare
    from hftransfer.runtime import autotune

    autotune.remembered = lambda key, trial: trial()
    autotune.measure_precision = lambda *a, **k: "bf16" if world.rank == 0 else "fp32"
    autotune.batch_size_for_inference = lambda *a, **k: 8 if world.rank == 0 else 16
    data = load_data(config.data, None)
    config = config.resolved(data)
    checkpoint = load_checkpoint(config.model, data.kind, data.task)
    compute_config = prepare(config, data, checkpoint, torch.device("cpu"), world, Path(config.output)).compute_config
    return str(compute_config.autocast), compute_config.train_in_bf16, compute_config.batch_size


def test_all_processes_compute_as_the_first_one_measured(tmp_path):
    config = configuration("full", "text", tmp_path)
    config = config.model_copy(update={"training": config.training.model_copy(update={"bf16": None})})
    assert in_each(own_measurement, config) == [("torch.bfloat16", True, 8)] * 2


@pytest.mark.parametrize(("visible", "expected"), [(1, 0), (2, 1), (4, 3)])
def test_a_process_that_sees_one_gpu_takes_that_one(monkeypatch, visible, expected):
    monkeypatch.setattr(devices, "_accelerator", lambda: "cuda")
    monkeypatch.setattr(devices, "device_name", str)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: visible)
    assert devices.choose_device(World(3, 4, 3, 4)).index == expected


def draws(world):
    """A number that each process draws in training."""
    from hftransfer.training.callbacks import OwnDraws

    torch.manual_seed(5)
    OwnDraws().on_train_begin(SimpleNamespace(world_size=world.size, process_index=world.rank, seed=5), None, None)
    return torch.rand(1).item(), np.random.rand()


def test_each_process_draws_other_dropout_and_crops():
    first, second = in_each(draws)
    assert first[0] != second[0] and first[1] != second[1]
    assert draws(World())[0] == first[0]


def test_the_training_loop_draws_by_process():
    from hftransfer.config import TrainingConfig
    from hftransfer.strategies import Plan
    from hftransfer.training.callbacks import OwnDraws
    from hftransfer.training.trainer import _callbacks

    assert any(isinstance(c, OwnDraws) for c in _callbacks(Plan(torch.nn.Linear(1, 1), None, {}), TrainingConfig()))


def test_statistics_of_batch_norm_are_those_that_are_saved(tmp_path):
    """Without validation examples the last weights are kept, and each process evaluates its share of the test part."""
    config = configuration("full", "image", tmp_path, max_steps=6, per_device_train_batch_size=4)
    config = changed(config, "strategy.batchnorm=adapt", "data.split.validation=0", "strategy.head_init=random")
    assert launched(config, tmp_path / "cache") == [0, 0], log_of(config, 0)[-2000:]
    from hftransfer.prediction.predictor import load

    recorded = pd.read_parquet(Path(config.output) / "predictions.parquet")
    inputs = pd.read_parquet(Path(config.output) / "splits.parquet").set_index("id").loc[recorded["id"], "input"]
    scores = recorded.filter(like="score:").to_numpy()
    found = load(config.output, use_cpu=True).predict(inputs.tolist()).filter(like="score:").to_numpy()
    assert np.abs(scores - found).max() < 1e-5


def test_another_number_of_processes_does_not_resume(tmp_path):
    config = configuration("full", "text", tmp_path, max_steps=40, evaluations=8)
    stopped = start(config, tmp_path / "cache", kill_at=60)
    stopped.join()
    folder = Path(f"{config.output}.incomplete")
    assert list(folder.glob("checkpoints/checkpoint-*/trainer_state.json")), "killed too early for this test"
    assert launched(config, tmp_path / "cache", resume=True) == [2, 2]
    assert "processes: 1 before, 2 now" in log_of(config, 0)
    assert "Process 1 of 2 failed" in log_of(config, 1)
    assert list(folder.glob("checkpoints/checkpoint-*/trainer_state.json")), "what was trained is kept"


# --- how they end ----------------------------------------------------------------------------------------------------


def features_with_an_error(world, folder, failing):
    """Collect features, which fail in the process `failing`."""

    def computed(positions):
        for position in positions:
            if world.rank == failing:
                raise OSError("no such image")
            yield [position], {"x": np.ones((1, 2), np.float32)}

    with world.together():
        keys = [f"{number:032x}" for number in range(8)]
        FeatureStore(folder).collect("space", keys, computed, share=(world.rank, world.size), barrier=world.barrier)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_the_features_of_one_process_ends_all(tmp_path, failing):
    found = in_each(features_with_an_error, tmp_path, failing)
    assert isinstance(found[failing], OSError)
    assert isinstance(found[1 - failing], UserError)
    assert str(found[1 - failing]) == f"Process {failing + 1} of 2 failed: OSError: no such image"


def phases(world, failing_at):
    """Three phases with an exchange in the middle of each; the second process fails at one point."""
    done = []
    for phase in range(3):
        with world.together():
            for point in ("before", "after"):
                if world.rank == 1 and (phase, point) == failing_at:
                    raise UserError("wrong")
                if point == "before":
                    done.append(world.from_first(lambda: phase * 10))  # noqa: B023
    return done


@pytest.mark.parametrize("failing_at", [(0, "before"), (1, "after"), (2, "after"), None])
def test_processes_end_in_the_same_phase(failing_at):
    first, second = in_each(phases, failing_at)
    if failing_at is None:
        assert first == second == [0, 10, 20]
    else:
        assert (str(first), str(second)) == ("Process 2 of 2 failed: wrong", "wrong")


def test_a_run_that_the_first_process_refuses_ends_in_all(tmp_path):
    config = configuration("probe", "text", tmp_path)
    Path(config.output).mkdir()
    assert launched(config, tmp_path / "cache") == [2, 2]
    assert "exists already" in log_of(config, 0) and "Process 1 of 2 failed" in log_of(config, 1)
