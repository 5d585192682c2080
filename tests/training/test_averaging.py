"""The mean of the weights over the second half of a training: what it is, when it is taken, and that resuming keeps it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hftransfer.config import TrainingConfig
from hftransfer.tasks import SingleLabel
from hftransfer.train import run
from hftransfer.training import trainer as loop
from hftransfer.training.averaging import FEW
from tests.support.runs import configuration
from tests.training.test_trainer import changed, same, weights

pytestmark = pytest.mark.usefixtures("unchecked")

RANDOM = "strategy.head_init=random"


def states_of(monkeypatch):
    """The weights after every step, as a run fills them in."""
    states, own = {}, loop._callbacks

    class Record(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            states[state.global_step] = {n: t.detach().clone() for n, t in model.named_parameters()}

    monkeypatch.setattr(loop, "_callbacks", lambda *given: [*own(*given), Record()])
    return states


def test_the_weights_are_the_mean_over_the_second_half_of_the_steps(tmp_path, monkeypatch):
    states = states_of(monkeypatch)
    config = changed(configuration("full", "text", tmp_path, max_steps=6, evaluations=2), RANDOM)
    found = weights(run(config).folder)
    body = [name for name in found if "classifier" not in name and name in states[6]]  # the head takes the temperature
    mean = {name: sum(states[step][name] for step in (4, 5, 6)) / 3 for name in body}
    assert body and same({name: found[name] for name in body}, mean, 1e-6)
    assert not same({name: found[name] for name in body}, {name: states[6][name] for name in body}, 1e-6)


def test_they_lie_three_quarters_of_the_way_from_a_solved_head(tmp_path, monkeypatch):
    states = states_of(monkeypatch)
    config = changed(configuration("full", "text", tmp_path, max_steps=6), "strategy.head_init=probe")
    found = weights(run(config).folder)
    name = "bert.encoder.layer.1.output.dense.weight"
    start = load_file(Path(config.model.name) / "model.safetensors")[name]
    mean = sum(states[step][name] for step in (4, 5, 6)) / 3
    assert torch.allclose(found[name], start + 0.75 * (mean - start), atol=1e-6) and not torch.equal(start, mean)


def test_the_start_is_gone_back_to_only_where_the_training_is_surely_worse():
    task, targets = SingleLabel(("a", "b")), np.arange(20) % 2
    examples = SimpleNamespace(task=task, targets=targets, validation=np.arange(20))
    good = np.where(np.eye(2)[targets] > 0, 2.0, -2.0)
    one_wrong, most_wrong = good.copy(), -good
    one_wrong[0] *= -1
    most_wrong[:3] *= -1
    worse = lambda *seen: loop._is_surely_worse(examples, np.arange(20), list(seen))  # noqa: E731
    assert worse(good, most_wrong) and not worse(good, one_wrong) and not worse(most_wrong, good)


def test_what_does_not_move_keeps_every_bit(tmp_path):
    config = changed(configuration("gradual", "text", tmp_path, max_steps=6), RANDOM, "strategy.schedule=[0.9]")
    still, moved = (
        run(changed(config, f"training.weights={w}", f"output={tmp_path / w}")).folder for w in ("mean", "best")
    )
    first, second = weights(still), weights(moved)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(first[name], second[name])


@pytest.mark.parametrize(("settings", "examples", "expected"), [
    ({}, FEW - 1, True), ({}, FEW, False), ({"weights": "best"}, 10, False), ({"weights": "mean"}, 10_000, True),
    ({"metric_for_best_model": "accuracy"}, 10, False), ({"early_stopping_patience": 2}, 10, False),
])  # fmt: skip
def test_when_the_mean_is_kept(settings, examples, expected):
    assert loop._averages(TrainingConfig(**settings), examples) == expected


def test_the_run_says_that_no_step_was_chosen(tmp_path, caplog):
    caplog.set_level("INFO", "hftransfer")
    config = changed(configuration("full", "text", tmp_path, max_steps=6, evaluations=2), RANDOM)
    notes, histories = {}, {}
    for choice in ("mean", "best"):
        made = run(changed(config, f"training.weights={choice}", f"output={tmp_path / choice}"))
        notes[choice] = made.metrics["notes"]["validation"]
        histories[choice] = json.loads((made.folder / "history.json").read_text())
    assert notes["mean"] == "this part chose the temperature: expect it to flatter"
    assert notes["best"] == "this part chose the best checkpoint and the temperature: expect it to flatter"
    assert "The mean of the weights over the last 3 steps is kept (training.weights)" in caplog.text
    steps = {c: [e["step"] for e in entries if "eval_loss" in e] for c, entries in histories.items()}
    assert steps["mean"] == steps["best"] == [3, 6]
    assert [e["step"] for e in histories["mean"] if "mean_loss" in e] == [6]
    assert not any("mean_loss" in entry for entry in histories["best"])


def test_a_run_that_is_resumed_at_its_last_step_has_the_mean(tmp_path, monkeypatch):
    """The mean lies in the checkpoint: nothing is trained again."""
    config = changed(configuration("full", "text", tmp_path, max_steps=6, evaluations=2), RANDOM)
    whole = weights(run(config).folder)
    config = changed(config, f"output={tmp_path / 'again'}")
    monkeypatch.setattr(loop, "_take_mean", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    assert same(whole, weights(run(config, resume=True).folder))
