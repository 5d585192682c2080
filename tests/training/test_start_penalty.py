"""L2-SP: where the pull goes, that nothing pulls at strength 0, and that a resumed training has the same start."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from hftransfer.models.layers import LayerGroups
from hftransfer.strategies import FrozenStrategy, FullStrategy, GradualStrategy
from hftransfer.train import run
from hftransfer.training import trainer as loop
from hftransfer.training.plan_trainer import parameter_groups
from hftransfer.training.start_penalty import StartPenalty
from tests.support.runs import configuration
from tests.training.test_trainer import changed, checkpoint_of, same, weights

pytestmark = pytest.mark.usefixtures("unchecked")

RANDOM = "strategy.head_init=random"


def test_a_step_is_the_minimum_of_penalty_and_distance_in_every_group():
    """The proximal step by its definition: min over w of (w - moved)^2 / (2 rate) + strength / 2 (w - start)^2."""
    model = nn.ModuleDict({"low": nn.Linear(3, 2), "high": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    plan = SimpleNamespace(model=model, l2_sp=40.0, is_held=lambda name: "head" not in name)
    penalty = StartPenalty(plan)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = [{"params": list(model[key].parameters()), "lr": rate} for key, rate in (("low", 1e-3), ("high", 0.5))]
    optimizer = torch.optim.SGD([*groups, {"params": list(model["head"].parameters()), "lr": 1.0}])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    penalty.on_optimizer_step(None, None, None, optimizer=optimizer)
    for name, parameter in model.named_parameters():
        rate = {"low": 1e-3, "high": 0.5, "head": 0.0}[name.split(".")[0]]
        gradient = (parameter - start[name] - 1.0) + rate * 40.0 * (parameter - start[name])
        assert gradient.abs().max() < 1e-5, name


@pytest.mark.parametrize("strategy", [FullStrategy, GradualStrategy, FrozenStrategy])
def test_it_stands_in_place_of_the_decay_of_pretrained_tensors(tmp_path, strategy):
    model = checkpoint_of("bert", tmp_path).model
    groups = LayerGroups.of(model)

    def decayed(strength):
        plan = strategy(l2_sp=strength).prepare(model, groups)
        found = {id(p) for g in parameter_groups(plan, 1e-3, 0.01) if g["weight_decay"] for p in g["params"]}
        return {name for name, parameter in model.named_parameters() if id(parameter) in found}

    assert decayed(1.0) == {"classifier.weight"} < decayed(0.0)


def test_strength_0_changes_no_bit_and_another_one_does(tmp_path):
    config = configuration("full", "text", tmp_path)
    absent, none, some = (
        weights(run(changed(config, *option, f"output={tmp_path / str(number)}")).folder)
        for number, option in enumerate([(), ("strategy.l2_sp=0",), ("strategy.l2_sp=1000",)])
    )
    assert same(absent, none) and not same(absent, some)


def test_a_huge_strength_keeps_the_weights_at_the_start_and_trains_the_head(tmp_path):
    config = changed(configuration("full", "text", tmp_path), RANDOM)
    start = load_file(Path(config.model.name) / "model.safetensors")
    free, held = (
        weights(run(changed(config, f"strategy.l2_sp={strength}", f"output={tmp_path / str(strength)}")).folder)
        for strength in (0, 1e12)
    )
    inner = [name for name in held if name in start and "classifier" not in name]
    assert same({n: start[n] for n in inner}, {n: held[n] for n in inner}, 1e-6)
    assert not same({n: start[n] for n in inner}, {n: free[n] for n in inner}, 1e-5)
    assert not torch.equal(held["classifier.bias"], torch.zeros_like(held["classifier.bias"]))


@pytest.mark.parametrize("strategy", ["full", pytest.param("gradual", marks=pytest.mark.slow)])
def test_a_resumed_training_is_pulled_to_the_same_start(tmp_path, monkeypatch, strategy):
    config = changed(
        configuration(strategy, "text", tmp_path, max_steps=6), RANDOM, "strategy.l2_sp=3000", "training.evaluations=3"
    )
    whole = weights(run(config).folder)

    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    own = loop._callbacks
    monkeypatch.setattr(loop, "_callbacks", lambda *given: [*own(*given), Break()])
    config = changed(config, f"output={tmp_path / 'again'}")
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    assert same(whole, weights(run(config, resume=True).folder))


def test_where_only_the_head_trains_it_says_that_it_has_no_effect(tmp_path, caplog):
    config = changed(configuration("frozen", "text", tmp_path), "strategy.top=0", "strategy.l2_sp=1")
    run(config)
    assert "strategy.l2_sp has no effect: no pretrained tensor trains" in caplog.text
