"""What a run survives: being killed at any moment, signals, too little memory, a loss that is no number, a full disk."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl

from hftransfer import train as training
from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json, write_json
from hftransfer.features import shards
from hftransfer.pipeline import fit as fitting
from hftransfer.pipeline import outputs
from hftransfer.prediction.predictor import load
from hftransfer.runs import folder as run_folder
from hftransfer.runtime import interruption
from hftransfer.runtime.interruption import Interruption, Stop, StopRequest, listening
from hftransfer.runtime.memory import is_lack_of_memory, smaller, with_less
from hftransfer.tasks import SingleLabel
from hftransfer.train import run
from hftransfer.training import callbacks
from hftransfer.training import trainer as loop
from hftransfer.training.callbacks import StopCallback
from hftransfer.training.checkpointing import keep_only, last_complete
from tests.support.processes import Interrupted, can_resume, start, two_processes, wait_for
from tests.support.runs import configuration
from tests.training.test_trainer import changed, same, weights

pytestmark = pytest.mark.usefixtures("unchecked")

PAGES = {"report.html", "README.md"}
FILES = {
    "config.yaml",
    "run.json",
    "splits.parquet",
    "model",
    "metrics.json",
    "predictions.parquet",
    "receipt.json",
}


def about(folder):
    return json.loads((folder / "run.json").read_text())


def scores(folder):
    return pd.read_parquet(folder / "predictions.parquet").set_index("id").sort_index().filter(like="score:").to_numpy()


def is_servable(folder):
    """Whole, nothing left over, and it answers."""
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES and not names & {"checkpoints", "features"}
    assert not run_folder.incomplete(folder).exists()
    return len(load(folder, use_cpu=True).predict(["the goal of the team"])) == 1


def has_pages(folder):
    return {path.name for path in folder.iterdir()} >= PAGES


# --- killed ----------------------------------------------------------------------------------------------------------


def kill_and_resume(strategy, folder, times, seed):
    """Kill a run `times` times at random moments; each is brought to its end with the weights of the whole one."""
    settings = {"max_steps": 60, "evaluations": 12} if strategy != "probe" else {}
    config = configuration(strategy, "text", folder, **settings)
    interrupted, chance = Interrupted(config, folder), random.Random(seed)
    expected, found = weights(interrupted.whole), []
    for _ in range(times):
        output, lay_there = interrupted.killed(chance)
        found.append(lay_there)
        print(f"{strategy}: killed with {lay_there}", flush=True)
        assert same(expected, weights(output)), found
        assert is_servable(output) and has_pages(output)
        shutil.rmtree(output.parent)
    print(
        f"{strategy}: {interrupted.seconds:.1f} s, {interrupted.writes} writes, {times} times killed, equal weights",
        flush=True,
    )


@pytest.mark.slow  # runs killed at chosen moments are in the quick suite
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    kill_and_resume("frozen", tmp_path, times=1, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["probe", "frozen", "gradual", "lora", "full"])
def test_a_run_killed_at_twenty_random_moments_in_all(tmp_path, strategy):
    kill_and_resume(strategy, tmp_path, times=4, seed=2)


@pytest.mark.slow
def test_two_processes_killed_at_random_moments(tmp_path):
    config = configuration("full", "text", tmp_path, max_steps=60, evaluations=12, per_device_train_batch_size=4)
    config = changed(config, f"output={tmp_path / 'whole'}")
    cache, chance = tmp_path / "cache", random.Random(3)
    begin = time.monotonic()
    assert [finished(process) for process in two_processes(config, cache)] == [0, 0]
    seconds, expected = time.monotonic() - begin, weights(config.output)
    for number in range(4):
        again = changed(config, f"output={tmp_path / str(number)}")
        processes = two_processes(again, cache)
        time.sleep(chance.uniform(0.2, 0.95) * seconds)
        for process in processes:
            process.kill()
            process.join()
        resumable = can_resume(Path(again.output))
        assert [finished(process) for process in two_processes(again, cache, resumable)] == [0, 0]
        assert same(expected, weights(again.output)), number
        print(f"two processes: killed, {'resumed' if resumable else 'begun again'}, equal weights", flush=True)


def finished(process):
    process.join()
    return process.exitcode


def test_half_written_checkpoints_do_not_count(tmp_path):
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "rng_state.pth").write_bytes(b"")
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5}')
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 10}')
    (tmp_path / "checkpoint-15" / "trainer_state.json").write_text('{"global_st')
    assert last_complete(tmp_path).name == "checkpoint-10"
    assert last_complete(tmp_path, processes=2) is None  # the other process had not written its random numbers
    assert last_complete(tmp_path / "none") is None


def test_rotation_goes_by_steps_not_by_file_times(tmp_path):
    for number, step in enumerate((90, 100, 20)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (10.0 * number, 10.0 * number))
    keep_only(tmp_path, Path("checkpoint-100"), tmp_path / "checkpoint-20")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-100", "checkpoint-20"}


@pytest.mark.parametrize("validation", [0.15, 0.0])
def test_a_run_killed_while_it_was_written_loses_no_training(tmp_path, monkeypatch, validation):
    """The last checkpoint is at the last step, in the middle of an epoch: no step more is trained, the best is loaded."""
    config = configuration("full", "text", tmp_path, max_steps=13, evaluations=3)
    config = changed(config, f"data.split.validation={validation}")
    expected = weights(run(changed(config, f"output={tmp_path / 'whole'}")).folder)
    with monkeypatch.context() as broken:
        broken.setattr(outputs, "write_run", stops(RuntimeError("killed")))
        with pytest.raises(RuntimeError):
            run(config)
    moved = changed(config, f"output={tmp_path / 'moved'}")  # as on another machine
    os.replace(run_folder.incomplete(Path(config.output)), run_folder.incomplete(Path(moved.output)))
    monkeypatch.setattr(loop.PlanTrainer, "training_step", stops(AssertionError("trained once more")))
    assert same(expected, weights(run(moved, resume=True).folder))


def test_a_start_that_was_best_is_kept_by_a_resumed_run_too(tmp_path, monkeypatch):
    config = configuration("full", "text", tmp_path, max_steps=6, evaluations=2)
    config = changed(config, "strategy.head_init=probe", "training.learning_rate=3.0")
    expected = weights(run(changed(config, f"output={tmp_path / 'whole'}")).folder)
    with monkeypatch.context() as broken:
        broken.setattr(outputs, "write_run", stops(RuntimeError("killed")))
        with pytest.raises(RuntimeError):
            run(config)
    assert same(expected, weights(run(config, resume=True).folder))


def stops(error):
    def stop(*args, **kwargs):
        raise error

    return stop


def test_resuming_a_whole_run_makes_its_pages_and_nothing_else(tmp_path, pages):
    config = configuration("probe", "text", tmp_path)
    folder = run(config).folder
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    (folder / "report.html").unlink()
    again = run(config, resume=True)
    assert again.metrics["test"] and is_servable(folder) and has_pages(folder)
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(
        UserError, match="(?s)made from something else.*config.seed: 0 before, 5 now\n.*another --output"
    ):
        run(changed(config, "seed=5"), resume=True)
    table = Path(config.data.train)
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    with pytest.raises(UserError, match="  data: '"):
        run(config, resume=True)


def test_a_run_is_resumed_as_it_was_begun_or_refused_with_what_differs(tmp_path, monkeypatch):
    """Resumed with other settings, data or weights, the old steps were reported under the new configuration."""
    config = configuration("full", "text", tmp_path, max_steps=4, evaluations=2)
    with monkeypatch.context() as broken:
        broken.setattr(outputs, "write_run", stops(RuntimeError("killed")))
        with pytest.raises(RuntimeError):
            run(config)

    def refused(*overrides):
        with pytest.raises(UserError) as caught:
            run(changed(config, *overrides), resume=True)
        return [line.split(":")[0].strip() for line in str(caught.value).splitlines() if line.startswith("  ")]

    assert refused("training.learning_rate=0.01") == ["config.training.learning_rate"]
    assert refused("training.max_steps=9") == ["config.training.max_steps"]
    assert "config.seed" in refused("seed=3")
    assert refused("data.split.seed=3") == ["config.data.split.seed", "split"]
    assert "config.strategy.type" in refused("strategy.type=lora")
    table = Path(config.data.train)
    before = table.read_text()
    table.write_text(before + before.splitlines()[1] + "\n")
    assert refused() == ["data", "split"]
    table.write_text(before)
    origin = run_folder.incomplete(Path(config.output)) / "origin.json"
    write_json(origin, read_json(origin) | {"weights": "another"})
    assert refused() == ["weights"]


def test_the_second_of_two_processes_on_one_folder_is_refused(tmp_path):
    config = configuration("full", "text", tmp_path, max_steps=100_000)
    first = start(config, tmp_path / "cache")
    wait_for(run_folder.incomplete(Path(config.output)).exists, first)
    with pytest.raises(UserError, match="Another process is writing .*: wait for it, or choose another --output."):
        run(config)
    assert first.is_alive()
    first.kill()
    first.join()


# --- asked to stop ---------------------------------------------------------------------------------------------------


def at_step(monkeypatch, step, action):
    """Does something when a step begins (counted from 0)."""
    begin = callbacks.FreezeCallback.on_step_begin

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == step:
            action()
        begin(self, args, state, control, **kwargs)

    monkeypatch.setattr(callbacks.FreezeCallback, "on_step_begin", on_step_begin)


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(("strategy", "number", "code"), [
    ("full", signal.SIGINT, 130), ("lora", signal.SIGTERM, 143), ("frozen", signal.SIGINT, 130),
])  # fmt: skip
def test_a_signal_ends_in_a_whole_run_with_the_best_weights_so_far(
    tmp_path, monkeypatch, pages, strategy, number, code
):
    config = configuration(strategy, "text", tmp_path, max_steps=40, evaluations=1)
    config = changed(config, "strategy.head_init=random")  # with a solved head the start would be the best so far
    at_step(monkeypatch, 2, send(number))
    before = [signal.getsignal(each) for each in interruption.SIGNALS]
    made = run(config)
    assert [signal.getsignal(each) for each in interruption.SIGNALS] == before
    name = f"{number.name} at step 3 of 40"
    assert (
        made.interruption.describe() == about(made.folder)["interrupted"] == name
        and made.interruption.exit_code == code
    )
    assert is_servable(made.folder)
    assert name in (made.folder / "report.html").read_text() and name in (made.folder / "README.md").read_text()
    history = json.loads((made.folder / "history.json").read_text())
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [3]  # before the first planned evaluation
    monkeypatch.undo()
    three = changed(
        config, f"output={tmp_path / 'three'}", "training.lr_scheduler_type=constant", "training.warmup_steps=0"
    )
    assert not same(weights(made.folder), weights(run(changed(three, "training.max_steps=1")).folder))


def test_a_signal_without_validation_rows_keeps_the_weights_of_that_step(tmp_path, monkeypatch, caplog):
    config = configuration("full", "text", tmp_path, max_steps=40, evaluations=1)
    at_step(monkeypatch, 2, send(signal.SIGINT))
    made = run(changed(config, "data.split.validation=0"))
    assert "Training ended early (SIGINT at step 3 of 40): the weights of step 3 are kept" in caplog.text
    assert made.metrics["notes"] == {
        "training": "ended early (SIGINT at step 3 of 40); these are the weights of that step"
    }
    assert is_servable(made.folder) and "eval_loss" not in (made.folder / "history.json").read_text()


def test_an_earlier_checkpoint_that_is_better_is_what_an_interrupted_run_keeps(tmp_path, monkeypatch):
    config = configuration("full", "text", tmp_path, max_steps=40, evaluations=20)
    worse = iter([0.05, 0.9] + [0.1] * 40)
    monkeypatch.setattr(loop, "calibrated_log_loss", lambda *args: -next(worse))
    kept = {}
    saved = callbacks.StopCallback.on_save

    def on_save(self, args, state, control, **kwargs):
        kept[state.global_step] = load_file(
            Path(args.output_dir) / f"checkpoint-{state.global_step}" / "model.safetensors"
        )
        saved(self, args, state, control, **kwargs)

    monkeypatch.setattr(callbacks.StopCallback, "on_save", on_save)
    at_step(monkeypatch, 6, send(signal.SIGINT))
    made = run(config)
    best = min(kept)
    assert set(kept) == {2, 4, 6, 7} and best == 2
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(weights(made.folder)[name], kept[2][name]) and not torch.equal(kept[2][name], kept[7][name])


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_run_to_resume(tmp_path, monkeypatch):
    config = configuration("full", "text", tmp_path, max_steps=12, evaluations=6)
    expected = weights(run(changed(config, f"output={tmp_path / 'whole'}")).folder)
    monkeypatch.setattr(interruption, "ECHO_SECONDS", 0.0)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 7, twice)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not Path(config.output).exists() and run_folder.incomplete(Path(config.output)).exists()
    monkeypatch.undo()
    assert same(expected, weights(run(config, resume=True).folder))


def test_a_ctrl_c_that_a_launcher_passes_on_counts_once():
    with listening() as stop:
        with stop.gently():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.request == StopRequest.of_signal(signal.SIGINT)
            stop.asked -= 2 * interruption.ECHO_SECONDS
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 143


@pytest.mark.parametrize(("owner", "place"), [(training, "load_data"), (fitting, "solve_head"), (outputs, "write_run")])
def test_outside_of_training_a_signal_stops_at_once(tmp_path, monkeypatch, owner, place):
    config = configuration("probe", "text", tmp_path)
    monkeypatch.setattr(owner, place, lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run(config)
    assert ended.value.code == 143
    assert not Path(config.output).exists() and not run_folder.incomplete(Path(config.output)).exists()


def test_a_signal_in_the_feature_pass_keeps_the_rows_that_were_computed(tmp_path, monkeypatch):
    from hftransfer.features import extract as frozen_pass

    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "cache"))
    config = configuration("probe", "text", tmp_path)
    passes = frozen_pass.passes

    def interrupted(*args, **kwargs):
        for number, batch in enumerate(passes(*args, **kwargs)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as broken:
        broken.setattr(frozen_pass, "passes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    (shard,) = (tmp_path / "cache" / "features").glob("*/*.safetensors")
    assert 0 < len(shards.open_checked(shard).keys) < 60 and not list(shard.parent.glob("*.tmp"))


def test_a_thread_leaves_the_signals_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def listen():
        with listening():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_process_of_a_data_loader_leaves_ctrl_c_to_its_parent():
    with listening():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 143


def test_a_signal_to_one_of_two_processes_ends_both(tmp_path):
    config = configuration("full", "text", tmp_path, max_steps=100_000, evaluations=5, per_device_train_batch_size=4)
    processes = two_processes(config, tmp_path / "cache")
    log = Path(f"{config.output}.1.log")
    wait_for(lambda: log.exists() and "Training:" in log.read_text(), processes[1])
    time.sleep(1)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert finished(processes[0]) == 143 and finished(processes[1]) == 143
    assert about(Path(config.output))["interrupted"].startswith("SIGTERM at step")
    assert is_servable(Path(config.output)) and has_pages(Path(config.output))


def test_a_signal_while_the_processes_wait_for_each_other_is_not_lost():
    stop, control = Stop(), TrainerControl()

    class Waiting:
        def largest(self, value, device):
            stop.request = StopRequest.of_signal(signal.SIGTERM)  # what the handler does
            return value

    ending = StopCallback(stop, SimpleNamespace(world=Waiting(), device=torch.device("cpu")))
    evaluated = SimpleNamespace(eval_strategy="steps")
    ending.on_step_end(evaluated, None, control)
    assert stop.request == StopRequest.of_signal(signal.SIGTERM) and not control.should_training_stop
    ending.on_step_end(evaluated, None, control)
    assert control.should_training_stop and control.should_evaluate and control.should_save


def test_the_command_exits_as_a_shell_expects(tmp_path, monkeypatch, capsys):
    from tests.behaviour.test_cli import call

    config = configuration("full", "text", tmp_path, max_steps=40)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    at_step(monkeypatch, 2, send(signal.SIGINT))
    code, out, err = call(monkeypatch, capsys, "train", tmp_path / "config.yaml")
    assert code == 130 and "Ended early: SIGINT at step 3 of 40" in err and "Run folder:" in out


# --- memory ----------------------------------------------------------------------------------------------------------


CPU_WORDS = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."
LACKS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(CPU_WORDS),
    MemoryError(),
]


def holds(monkeypatch, rows, error, training, after=0):
    """BERT runs out of memory with more than `rows` examples, in training or else in evaluation, after some passes."""
    from transformers import BertForSequenceClassification

    forward, passes = BertForSequenceClassification.forward, iter(range(10**9))

    def checked(self, input_ids, **inputs):
        if self.training == training and next(passes) >= after and len(input_ids) > rows:
            raise error
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", checked)


@pytest.fixture(scope="module")
def of_two_rows(tmp_path_factory):
    """A configuration of batches of eight, and the weights that four times two give."""
    folder = tmp_path_factory.mktemp("fewer")
    config = configuration("full", "text", folder, max_steps=12, evaluations=3)
    fewer = ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=4"]
    return config, weights(run(changed(config, *fewer, f"output={folder / 'fewer'}")).folder)


@pytest.mark.parametrize("error", LACKS, ids=["device", "cpu", "python"])
def test_out_of_memory_goes_on_with_fewer_rows_and_the_same_global_batch(
    tmp_path, monkeypatch, caplog, of_two_rows, error
):
    caplog.set_level("INFO", "hftransfer")
    config, expected = changed(of_two_rows[0], f"output={tmp_path / 'run'}"), of_two_rows[1]
    holds(monkeypatch, 3, error, training=True)
    made = run(config).folder
    assert same(expected, weights(made))
    assert about(made)["batch_size"] == [2, 4] and about(made)["steps"] == 12
    assert "Memory ran out with 8 rows at a time: training goes on with 4" in caplog.text
    assert "12 steps of 8 examples, 2 at a time" in caplog.text


def test_memory_that_runs_out_in_the_middle_goes_on_from_the_checkpoint(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "hftransfer")
    config = configuration("gradual", "text", tmp_path, max_steps=12)
    config = changed(config, "training.evaluations=3")
    holds(monkeypatch, 4, LACKS[0], training=True, after=9)
    made = run(config).folder
    assert about(made)["steps"] == 12 and about(made)["batch_size"] == [4, 2]
    assert "Goes on from step 8 of 12" in caplog.text


def test_memory_that_holds_not_one_row_is_said(tmp_path, monkeypatch):
    config = configuration("full", "text", tmp_path)
    holds(monkeypatch, 0, LACKS[0], training=True)
    with pytest.raises(UserError, match="Memory ran out. Take fewer rows at a time .* Then run it again."):
        run(config)
    assert not run_folder.incomplete(Path(config.output)).exists()


@pytest.mark.parametrize("strategy", ["full", "probe"])
def test_evaluation_and_passes_get_along_with_fewer_rows(tmp_path, monkeypatch, strategy):
    config = configuration(strategy, "text", tmp_path)
    expected = run(changed(config, f"output={tmp_path / 'plenty'}")).folder
    if strategy == "probe":
        from hftransfer.features import sources

        read = sources.Reader.__call__

        def checked(self, batch):
            if len(batch["input_ids"]) > 8:
                raise LACKS[0]
            return read(self, batch)

        monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "another"))
        monkeypatch.setattr(sources.Reader, "__call__", checked)
    else:
        step = loop.PlanTrainer.prediction_step

        def prediction_step(self, model, inputs, *rest, **settings):
            if len(inputs["labels"]) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return step(self, model, inputs, *rest, **settings)

        monkeypatch.setattr(loop.PlanTrainer, "prediction_step", prediction_step)
    found = run(config).folder
    if strategy == "full":
        assert same(weights(expected), weights(found), 1e-5)
    # Other batches round otherwise, and the out-of-fold scores are a search's; rows that change places would move by 1.
    assert np.allclose(scores(expected), scores(found), atol=0.1)


def test_smaller_sizes_divide_the_larger_ones():
    assert [smaller(size) for size in (32, 6, 9, 7, 2)] == [16, 3, 3, 1, 1]
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 3:
            raise LACKS[0]
        return size

    assert with_less(12, attempt, "it") == 3 and tried == [12, 6, 3]
    with pytest.raises(torch.OutOfMemoryError):
        with_less(12, attempt, "it", least=6)
    assert not is_lack_of_memory(RuntimeError("shapes do not fit")) and not is_lack_of_memory(
        ValueError("out of memory")
    )


# --- a loss that is no number ----------------------------------------------------------------------------------------


def spoils_the_loss(monkeypatch, step, value=float("nan")):
    at_step(
        monkeypatch,
        step,
        lambda: monkeypatch.setattr(SingleLabel, "loss", lambda self, logits, labels, smoothing: logits.sum(1) * value),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_keeps_the_last_good_weights(tmp_path, monkeypatch, value):
    config = configuration("full", "text", tmp_path, max_steps=40, evaluations=10)
    spoils_the_loss(monkeypatch, 9, value)
    made = run(config)
    assert made.interruption == Interruption(interruption.LOSS_DIVERGED, 10, 40) and made.interruption.exit_code == 1
    assert about(made.folder)["interrupted"] == "loss no longer a number at step 10 of 40"
    assert is_servable(made.folder)
    assert all(torch.isfinite(tensor).all() for tensor in weights(made.folder).values())


def test_a_loss_that_is_no_number_at_once_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    config = configuration("full", "text", tmp_path, max_steps=40, evaluations=2, learning_rate=1e-3)
    random_head = config.strategy.model_copy(update={"head_init": "random"})  # a solved one would be kept
    config = config.model_copy(update={"strategy": random_head})
    spoils_the_loss(monkeypatch, 3)
    words = r"no longer a number at step 4 of 40, before anything was saved. Lower training.learning_rate \(it is 0.001\), or set"
    with pytest.raises(UserError, match=words):
        run(config)
    assert not run_folder.incomplete(Path(config.output)).exists()


def test_weights_that_are_no_numbers_are_never_the_best(tmp_path, monkeypatch):
    """They are spoilt by the step itself, whose loss was good: the evaluation that follows sees them first."""
    config = configuration("full", "text", tmp_path, max_steps=40, evaluations=10)
    models = []
    hold = callbacks.FreezeCallback._hold

    def held(self, model, args):
        models.append(model)
        hold(self, model, args)

    monkeypatch.setattr(callbacks.FreezeCallback, "_hold", held)
    step_end = callbacks.StopCallback.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            models[-1].classifier.weight.data.fill_(float("nan"))
        step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(callbacks.StopCallback, "on_step_end", on_step_end)
    made = run(config)
    assert made.interruption.step == 9
    assert all(torch.isfinite(tensor).all() for tensor in weights(made.folder).values())


# --- the machine -----------------------------------------------------------------------------------------------------


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


def refused(*args, **kwargs):
    raise OSError(errno.EROFS, "Read-only file system", "somewhere")


WRITERS = {
    "checkpoint": (loop.PlanTrainer, "_save_optimizer_and_scheduler", False),
    "splits": (outputs, "split_table", True),
    "model": (outputs, "save_model", True),
    "report": (outputs, "write_pages", True),
    "features": (shards.Path, "write_bytes", False),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A configuration, and the weights it ends with."""
    config = configuration("frozen", "text", tmp_path_factory.mktemp("undisturbed"), max_steps=8, evaluations=4)
    return config, weights(run(config).folder)


@pytest.mark.parametrize(("place", "fault"), [*((place, full) for place in WRITERS), ("model", refused)])
def test_a_disk_that_refuses_is_said_and_nothing_is_lost(tmp_path, monkeypatch, pages, undisturbed, place, fault):
    owner, name, resumable = WRITERS[place]
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "cache"))
    config = changed(undisturbed[0], f"output={tmp_path / 'run'}")
    words = {
        full: "The disk is full|Free space with",
        refused: r"Permission denied \(somewhere\): make the folder writable",
    }
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, fault)
        with pytest.raises(UserError, match=words[fault]) as error:
            run(config)
    assert ("continue with --resume" in str(error.value)) == resumable
    assert same(undisturbed[1], weights(run(config, resume=resumable).folder), 1e-6) and is_servable(tmp_path / "run")
    assert has_pages(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; only an administrator may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(kilobytes):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)], capture_output=True
        )
        if done.returncode:
            pytest.skip("no permission to mount a file system")
        return disk

    def grow(kilobytes):
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)

    yield mount, grow
    subprocess.run(["umount", str(disk)], capture_output=True)


@pytest.fixture(scope="module")
def on_a_large_disk(tmp_path_factory):
    """A configuration, and the weights it ends with."""
    config = configuration("full", "text", tmp_path_factory.mktemp("large"), max_steps=8)
    return config, weights(run(config).folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only an administrator may mount a file system")
@pytest.mark.parametrize(
    "kilobytes", [16, 300, pytest.param(600, marks=pytest.mark.slow), pytest.param(900, marks=pytest.mark.slow)]
)
def test_a_disk_that_fills_up_at_any_moment(on_a_large_disk, small_disk, pages, kilobytes):
    """A real one: what the writers of safetensors, torch and Parquet make of it differs."""
    mount, grow = small_disk
    config, expected = changed(on_a_large_disk[0], f"output={mount(kilobytes) / 'run'}"), on_a_large_disk[1]
    with pytest.raises(
        UserError, match="The disk is full.*: free some space. Then (continue with --resume|run it again)."
    ):
        run(config)
    grow(40_000)
    assert same(expected, weights(run(config, resume=can_resume(Path(config.output))).folder)) and is_servable(
        Path(config.output)
    )


def test_a_lost_worker_is_said(tmp_path, monkeypatch):
    config = configuration("full", "text", tmp_path)
    config = changed(config, "training.extra={dataloader_num_workers: 1}")
    parent, collate = os.getpid(), loop.Collator.__call__

    def dies(self, rows):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(self, rows)

    monkeypatch.setattr(loop.Collator, "__call__", dies)
    with pytest.raises(UserError, match="A process that loads data was killed, .* Then run it again."):
        run(config)


@pytest.mark.parametrize("jump", [-3600.0, 3600.0 * 24 * 365])
def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch, undisturbed, jump):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "cache"))
    clock, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: clock() + jump * (next(calls) % 3))
    made = run(changed(undisturbed[0], f"output={tmp_path / 'run'}"))
    assert same(undisturbed[1], weights(made.folder), 1e-6)
    assert all(0 <= seconds < 60 for seconds in about(made.folder)["seconds"].values())
