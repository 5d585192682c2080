"""The training loop: rates, decay, what stays still, what each option changes, resuming, several processes."""

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from hftransfer.config import TrainingConfig, parse_overrides, with_overrides
from hftransfer.core.errors import UserError
from hftransfer.modalities import kind_of
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import ModelConfig, load_checkpoint
from hftransfer.strategies import FrozenStrategy, FullStrategy, GradualStrategy, LoraStrategy, ProbeStrategy
from hftransfer.tasks import Regression, SingleLabel
from hftransfer.train import run
from hftransfer.training import trainer as loop
from hftransfer.training.callbacks import FreezeCallback, StopCallback
from hftransfer.training.examples import training_order
from hftransfer.training.freeze_check import FrozenMoved, check_frozen, tensor_hashes
from hftransfer.training.plan_trainer import Loss, parameter_groups
from tests.support import tiny
from tests.support.fork_server import run_python
from tests.support.processes import start, two_processes, wait_for
from tests.support.runs import KINDS, configuration

pytestmark = pytest.mark.usefixtures("unchecked")

TASK = SingleLabel(("a", "b", "c"))


def checkpoint_of(family, folder):
    modality = "image" if family in tiny.VISION_FAMILIES else "text"
    maker = (tiny.VISION_FAMILIES | tiny.TEXT_FAMILIES)[family]
    return load_checkpoint(ModelConfig(name=str(maker(folder / family))), kind_of(modality), TASK)


def changed(config, *overrides):
    return with_overrides(config.model_dump(mode="json"), parse_overrides(overrides))


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def same(a, b, tolerance=0.0):
    return a.keys() == b.keys() and all((a[n].float() - b[n].float()).abs().max() <= tolerance for n in a)


class TestGroups:
    def test_every_trainable_parameter_stands_in_one_group_with_its_rate(self, tmp_path):
        model = checkpoint_of("bert", tmp_path).model
        plan = FullStrategy(layer_decay=0.5).prepare(model, LayerGroups.of(model))
        groups = parameter_groups(plan, 1e-3, 0.01)
        rate = {id(p): group["lr"] for group in groups for p in group["params"]}
        assert len(rate) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        for name, parameter in model.named_parameters():
            depth = plan.layer_groups.depth[name]
            expected = 1e-2 if depth == 4 else 1e-3 * 0.5 ** (3 - depth)
            assert rate[id(parameter)] == pytest.approx(expected), name

    def test_the_highest_rate_comes_first_since_the_log_shows_the_first(self, tmp_path):
        model = checkpoint_of("bert", tmp_path).model
        plan = FullStrategy(layer_decay=0.5).prepare(model, LayerGroups.of(model))
        first, *_ = parameter_groups(plan, 1e-3, 0.01)
        assert first["lr"] == pytest.approx(1e-2)  # the head's, which lies last in the model

    @pytest.mark.parametrize(
        "family", ["timm-resnet", "resnet", "vit", "timm-vit", "dinov2", "convnext", "bert", "swin"]
    )
    def test_decay_spares_norms_biases_tokens_positions_and_scales(self, tmp_path, family):
        model = checkpoint_of(family, tmp_path).model
        plan = FullStrategy().prepare(model, LayerGroups.of(model))
        decayed = {id(p) for g in parameter_groups(plan, 1e-3, 0.01) if g["weight_decay"] for p in g["params"]}
        names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
        assert names
        spared = ("bias", "norm", "bn", "cls_token", "pos", "lambda", "gamma", "layer_scale", "mask_token")
        assert not [
            name for name in names if name.endswith("bias") or any(s in name.split(".")[-2:][0] for s in spared[1:])
        ]
        assert not [name for name in names if any(s in name for s in ("cls_token", "position_embedding", "pos_embed"))]

    def test_frozen_parameters_are_not_in_the_optimizer(self, tmp_path):
        model = checkpoint_of("bert", tmp_path).model
        plan = FrozenStrategy(top=1).prepare(model, LayerGroups.of(model))
        held = {id(p) for group in parameter_groups(plan, 1e-3, 0.01) for p in group["params"]}
        frozen = [p for name, p in model.named_parameters() if plan.layer_groups.depth[name] < 3]
        assert frozen and not any(id(parameter) in held for parameter in frozen)


@pytest.fixture(scope="module")
def image_networks(tmp_path_factory):
    families = ("vit", "dinov2", "swin", "convnext", "timm-vgg", "resnet", "timm-efficientnet")
    return {family: checkpoint_of(family, tmp_path_factory.mktemp(family)).model for family in families}


class TestDefaultRates:
    """Image networks without BatchNorm do not bear the rates of those that have it (docs/results.md)."""

    @pytest.mark.parametrize(
        "strategy, factor", [("frozen", 0.1), ("full", 0.1), ("gradual", 0.1), ("lora", 0.25), ("scratch", 0.1)]
    )
    def test_are_lower_for_image_networks_without_batchnorm(self, image_networks, strategy, factor):
        chosen = with_overrides({"data": "d", "model": "m"}, {"strategy.type": strategy}).strategy
        usual = chosen.defaults(kind_of("image")).learning_rate
        rate = {
            name: chosen.defaults_for(kind_of("image"), model).learning_rate for name, model in image_networks.items()
        }
        lower, same = pytest.approx(usual * factor), pytest.approx(usual)
        assert rate == {"vit": lower, "dinov2": lower, "swin": lower, "convnext": lower, "timm-vgg": lower,
                        "resnet": same, "timm-efficientnet": same}  # fmt: skip

    def test_of_texts_are_as_the_strategy_says(self, tmp_path):
        model = checkpoint_of("bert", tmp_path).model
        assert FullStrategy().defaults_for(kind_of("text"), model) == FullStrategy().defaults(kind_of("text"))
        assert ProbeStrategy().defaults_for(kind_of("image"), model) is None

    def test_reach_the_training_and_the_log(self, tmp_path, caplog):
        caplog.set_level("INFO")
        model = tiny.VISION_FAMILIES["vit"](tmp_path / "vit")
        config = changed(configuration("full", "image", tmp_path), f"model={model}", f"output={tmp_path / 'run'}")
        folder = run(config).folder
        groups = json.loads((folder / "receipt.json").read_text())["layer_groups"]
        rates = [group["learning_rate"] for group in groups]
        assert max(rates) == pytest.approx(5e-4)  # ten times 5e-5: the head begins at random
        assert "No BatchNorm in this image network: the default rate is 5e-05, not 0.0005" in caplog.text


class TestStillness:
    def test_what_is_frozen_behaves_as_in_evaluation_although_the_trainer_calls_train(self, tmp_path):
        model = checkpoint_of("timm-resnet", tmp_path).model
        plan = FrozenStrategy(top=1).prepare(model, LayerGroups.of(model))
        self._step_begins(plan, 0)
        model.train()
        model(torch.randn(2, 3, tiny.SIZE, tiny.SIZE))
        modes = {path: module.training for path, module in model.named_modules() if not list(module.children())}
        assert not any(mode for path, mode in modes.items() if plan.depth_of(path) < 4)
        norms = [path for path, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and not any(modes[path] for path in norms)

    @pytest.mark.parametrize("family", ["bert", "vit", "gpt2", "modernbert", "distilbert"])
    def test_no_dropout_in_the_frozen_part(self, tmp_path, family):
        """Twice the same input, with every dropout at one half: what reaches the first trainable block is the same."""
        checkpoint = checkpoint_of(family, tmp_path)
        model = checkpoint.model
        for module in model.modules():
            for name, value in vars(module).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.5)
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        plan = FrozenStrategy(top=1).prepare(model, LayerGroups.of(model))
        self._step_begins(plan, 0)
        seen = []
        last = model.get_submodule(plan.layer_groups.blocks[-1])
        last.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
        model.train()
        if family in tiny.VISION_FAMILIES:
            batch = {"pixel_values": torch.randn(2, 3, tiny.SIZE, tiny.SIZE)}
        else:
            batch = dict(checkpoint.processor(["goal match team", "bank"], padding=True, return_tensors="pt"))
        first, second = model(**batch).logits, model(**batch).logits
        assert torch.equal(seen[0], seen[1])
        assert last.training and (family == "vit" or not torch.equal(first, second))

    def test_batchnorm_adapts_where_it_is_asked_to(self, tmp_path):
        for policy, moves in (("frozen", False), ("adapt", True)):
            model = checkpoint_of("timm-resnet", tmp_path / policy).model
            plan = FrozenStrategy(top=1, batchnorm=policy).prepare(model, LayerGroups.of(model))
            before = tensor_hashes(model, plan.layer_groups)
            self._step_begins(plan, 0)
            model.train()
            model(torch.randn(4, 3, tiny.SIZE, tiny.SIZE))
            after = tensor_hashes(model, plan.layer_groups)
            moved = {plan.layer_groups.depth[name] for name in before if before[name] != after[name]}
            assert moved == ({4} if moves else set())
            check_frozen(plan, before)

    def test_a_frozen_buffer_that_moved_is_named(self, tmp_path):
        model = checkpoint_of("timm-resnet", tmp_path).model
        plan = FrozenStrategy(top=1).prepare(model, LayerGroups.of(model))
        before = tensor_hashes(model, plan.layer_groups)
        model.train()
        model(torch.randn(4, 3, tiny.SIZE, tiny.SIZE))  # without Stillness: running statistics drift
        with pytest.raises(
            FrozenMoved, match="Expected every frozen tensor to stay as it was, found that 45 changed: .*running_mean"
        ):
            check_frozen(plan, before)

    def test_gradual_opens_one_rung_after_another(self, tmp_path):
        model = checkpoint_of("bert", tmp_path).model
        plan = GradualStrategy(open_all_by=0.8).prepare(model, LayerGroups.of(model))
        callback = FreezeCallback(plan)
        lowest = []
        for step in range(10):
            self._step_begins(plan, step, callback)
            lowest.append(min(plan.layer_groups.depth[n] for n, p in model.named_parameters() if p.requires_grad))
        assert lowest == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]

    def test_a_schedule_of_ones_own(self, tmp_path):
        model = checkpoint_of("bert", tmp_path).model
        plan = GradualStrategy(schedule=[0.0, 0.5]).prepare(model, LayerGroups.of(model))
        assert plan.opens_at == {3: 0.0, 2: 0.5} and plan.split_point == 2
        with pytest.raises(
            UserError, match="strategy.schedule has 9 entries; the network has 4 layer groups below the head."
        ):
            GradualStrategy(schedule=[0.1] * 9).prepare(model, LayerGroups.of(model))

    @staticmethod
    def _step_begins(plan, step, callback=None):
        state = type("State", (), {"global_step": step, "max_steps": 10})()
        (callback or FreezeCallback(plan)).on_step_begin(None, state, None)


class TestLora:
    @pytest.mark.parametrize("family", ["timm-resnet", "timm-efficientnet", "vit", "bert", "gpt2", "modernbert"])
    def test_adapters_stand_in_the_blocks_and_the_head_trains(self, tmp_path, family):
        model = checkpoint_of(family, tmp_path).model
        plan = LoraStrategy(r=2).prepare(model, LayerGroups.of(model))
        trained = {plan.depth_of(name) for name in plan.rate_factors}
        assert trained == set(range(1, plan.layer_groups.head_depth + 1))
        plain = [name for name in plan.rate_factors if "lora_" not in name]
        assert plain and {plan.depth_of(name) for name in plain} == {plan.layer_groups.head_depth}

    @pytest.mark.parametrize("option", [{"r": 4}, {"alpha": 32}, {"dropout": 0.3}, {"top": 1}])
    def test_every_option_changes_the_adapters(self, tmp_path, option):
        def adapters(**options):
            model = checkpoint_of("bert", tmp_path).model
            adapted = LoraStrategy(**({"r": 2} | options)).prepare(model, LayerGroups.of(model)).model
            layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
            trained = {name: value.shape for name, value in adapted.named_parameters() if value.requires_grad}
            return trained, [layer.scaling for layer in layers], [str(layer.lora_dropout) for layer in layers]

        assert adapters(**option) != adapters()


class TestLoss:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]])

    def outputs(self):
        return type("Outputs", (), {"logits": self.logits})()

    def test_accumulated_batches_sum_to_the_mean_over_all(self):
        labels = torch.tensor([0, 2])
        loss = Loss(TASK)
        whole = loss(self.outputs(), labels)
        parts = [
            loss(type("Outputs", (), {"logits": self.logits[i : i + 1]})(), labels[i : i + 1], num_items_in_batch=2)
            for i in range(2)
        ]
        assert sum(parts) == pytest.approx(whole.item())

    def test_balanced_classes_count_alike(self):
        targets = np.array([0] * 8 + [1] * 2 + [2] * 2)
        balanced = TASK.with_balance(targets)
        assert np.array(balanced.weights) * np.bincount(targets) == pytest.approx(4.0)
        assert Regression(("y",)).with_balance(targets) == Regression(("y",))
        loss, logits = Loss(balanced), torch.zeros(12, 3)
        assert loss(type("Outputs", (), {"logits": logits})(), torch.from_numpy(targets)).item() == pytest.approx(
            np.log(3)
        )
        assert Loss(TASK) != loss


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    config = configuration("full", "image", folder, evaluations=1)
    return config, weights(run(config).folder)


@pytest.mark.parametrize("option", [
    "training.learning_rate=1e-2", "training.weight_decay=0.5", "training.warmup_steps=0", "training.lr_scheduler_type=constant",
    "training.label_smoothing_factor=0.2", "training.gradient_accumulation_steps=2", "training.max_steps=3",
    "training.num_train_epochs=1", "training.max_grad_norm=0.001", "training.bf16=true", "training.per_device_train_batch_size=4",
    "training.extra={adam_beta1: 0.1}", "augmentation.level=none", "augmentation.level=strong", "augmentation.flip=false",
    "strategy.layer_decay=0.1", "strategy.batchnorm=adapt", "strategy.l2_sp=1000",
    "strategy.head_init=probe", "seed=3", "data.train_examples=12",
])  # fmt: skip
def test_every_option_changes_the_weights(plain, option, tmp_path):
    config, before = plain
    overrides = [option] if "epochs" not in option else [option, "training.max_steps=null"]
    assert not same(before, weights(run(changed(config, *overrides, f"output={tmp_path / 'run'}")).folder))


@pytest.mark.parametrize(("strategy", "image"), [
    (FullStrategy, "random"), (GradualStrategy, "random"), (FrozenStrategy, "probe"), (LoraStrategy, "probe"),
])  # fmt: skip
def test_the_beginning_of_the_head_is_as_it_was_measured(strategy, image):
    assert strategy().resolved(kind_of("text")).head_init == "probe"
    assert strategy().resolved(kind_of("image")).head_init == image
    assert {strategy().resolved(kind_of(modality), keep_head=True).head_init for modality in ("text", "image")} == {
        "random"
    }
    assert FullStrategy(head_init="random").resolved(kind_of("text")).head_init == "random"
    assert FullStrategy(head_init="probe").resolved(kind_of("image")).head_init == "probe"


def test_evaluation_takes_as_many_rows_at_a_time_as_asked_for(tmp_path, monkeypatch):
    sizes, step = [], loop.PlanTrainer.prediction_step

    def prediction_step(self, model, inputs, *rest, **settings):
        sizes.append(len(inputs["labels"]))
        return step(self, model, inputs, *rest, **settings)

    monkeypatch.setattr(loop.PlanTrainer, "prediction_step", prediction_step)
    config = configuration("full", "image", tmp_path, evaluations=1, per_device_eval_batch_size=3, max_steps=1)
    run(config)
    assert max(sizes) == 3


def test_options_that_must_not_change_the_weights(plain, tmp_path):
    config, before = plain
    for number, option in enumerate(
        ("training.gradient_checkpointing=true", "store=false", "evaluation.resamples=200")
    ):
        if "checkpointing" in option:
            continue  # timm's ResNet recomputes with other kernels; tested for a transformer below
        assert same(before, weights(run(changed(config, option, f"output={tmp_path / str(number)}")).folder))


def test_gradient_checkpointing_gives_the_same_weights(tmp_path):
    config = configuration("full", "text", tmp_path, evaluations=1)
    first = weights(run(config).folder)
    second = weights(run(changed(config, "training.gradient_checkpointing=true", f"output={tmp_path / 'b'}")).folder)
    assert same(first, second, 1e-5)


def test_frozen_from_the_store_equals_frozen_without_it(tmp_path, monkeypatch):
    from hftransfer.pipeline import activations

    config = configuration("frozen", "text", tmp_path, evaluations=1)
    stored = weights(run(config).folder)
    monkeypatch.setattr(activations.SplitPoint, "is_exact", lambda self, batch: False)
    live = weights(run(changed(config, f"output={tmp_path / 'live'}")).folder)
    assert same(stored, live, 1e-5)


@pytest.mark.parametrize("strategy", ["probe", "full"])
def test_balanced_training_changes_the_weights_of_unbalanced_data(tmp_path, strategy):
    config = configuration(strategy, "text", tmp_path)
    table = pd.read_csv(config.data.train)
    table = pd.concat([table[table["label"] != "topic0"], table[table["label"] == "topic0"].head(8)])
    table.to_csv(config.data.train, index=False)
    first = weights(run(config).folder)
    second = weights(run(changed(config, "training.imbalance=balanced", f"output={tmp_path / 'b'}")).folder)
    assert not same(first, second)


def test_a_head_that_is_solved_says_which_settings_it_does_not_use(tmp_path, caplog):
    config = configuration("probe", "text", tmp_path)
    plain = config.model_copy(update={"training": TrainingConfig(imbalance="balanced", bf16=False)})
    named = changed(config, "training.learning_rate=1e-3", "training.max_steps=7", f"output={tmp_path / 'named'}")
    with caplog.at_level("WARNING", "hftransfer"):
        run(plain)
        assert "Without effect" not in caplog.text
        run(named)
    assert "Without effect: training.evaluations, training.learning_rate, training.max_steps" in caplog.text


def test_every_row_trains_once_an_epoch_with_rows_of_like_length():
    lengths = np.random.default_rng(0).integers(4, 120, size=640)
    order = training_order(lengths, batch=32, steps=40, seed=0)
    assert len(order) == 40 * 32
    for epoch in (order[:640], order[640:]):
        assert sorted(epoch) == list(range(640))
    padded = lengths[order].reshape(-1, 32).max(1).sum() * 32
    assert padded < 1.15 * lengths[order].sum()  # batches of random rows: about 1.9 times
    assert (training_order(lengths, 32, 40, seed=0) == order).all()
    assert (training_order(lengths, 32, 40, seed=1) != order).any()
    means = lengths[order].reshape(-1, 32).mean(1)
    assert abs(np.corrcoef(means[1:20], means[:19])[0, 1]) < 0.6  # neither from long to short nor the other way


@pytest.mark.parametrize("rows", [1, 5, 32, 33, 100])
def test_the_order_of_few_rows_is_full_and_even(rows):
    order = training_order(np.ones(rows, dtype=int), batch=32, steps=10, seed=3)
    counts = np.bincount(order, minlength=rows)
    assert len(order) == 320
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize(("strategy", "kind"), [
    ("frozen", "text"), ("lora", "text"), ("full", "text-regression"), ("full", "image"),
    *(pytest.param(strategy, "text", marks=pytest.mark.slow) for strategy in ("full", "gradual")),
])  # fmt: skip
def test_training_that_gains_nothing_is_undone(tmp_path, strategy, kind, caplog):
    """At a rate that ruins everything the head that was solved is left, as at one that moves nothing."""
    config = changed(configuration(strategy, kind, tmp_path, max_steps=6, evaluations=2), "strategy.head_init=probe")
    ruined, still = (
        run(changed(config, f"training.learning_rate={rate}", f"output={tmp_path / str(rate)}")).folder
        for rate in (3.0, 1e-12)
    )
    assert "Training gained nothing: " in caplog.text and "The start is kept." in caplog.text
    first, *others = [entry for entry in json.loads((ruined / "history.json").read_text()) if "eval_loss" in entry]
    assert first["step"] == 0 and others[-1]["step"] == 6
    scores = [
        pd.read_parquet(folder / "predictions.parquet").filter(like="score:").to_numpy() for folder in (ruined, still)
    ]
    assert np.abs(scores[0] - scores[1]).max() < 1e-4


@pytest.mark.parametrize("strategy", ["full", "gradual", "scratch"])
def test_a_random_head_is_never_gone_back_to(tmp_path, strategy):
    """Its even probabilities had a smaller loss on seven rows than a network that was mostly right."""
    config = configuration(strategy, "image", tmp_path, max_steps=6, evaluations=2)
    folder = run(changed(config, "training.learning_rate=3.0")).folder
    evaluated = [entry["step"] for entry in json.loads((folder / "history.json").read_text()) if "eval_loss" in entry]
    assert evaluated and 0 not in evaluated
    still = run(changed(config, "training.learning_rate=1e-12", f"output={tmp_path / 'still'}")).folder
    assert not same(weights(folder), weights(still), 1e-3)


def test_a_head_that_was_kept_is_a_start_to_go_back_to(tmp_path):
    first = run(configuration("probe", "text", tmp_path)).folder
    config = configuration("full", "text", tmp_path, max_steps=6, evaluations=2)
    config = changed(config, f"model.name={first / 'model'}", "model.keep_head=true", "training.learning_rate=3.0")
    folder = run(changed(config, f"data.split.file={first}")).folder
    kept, before = weights(folder), weights(first)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(kept[name], before[name])


@pytest.mark.parametrize(
    ("steps", "evaluations", "expected"), [(11, 5, [2, 4, 7, 9, 11]), (14, 5, [3, 6, 8, 11, 14]), (3, 5, [1, 2, 3])]
)
def test_a_run_is_looked_at_as_often_as_asked_and_at_its_last_step(tmp_path, steps, evaluations, expected):
    """Five times were asked for, and a fixed interval made seven of them at 14 steps."""
    config = configuration("full", "text", tmp_path, max_steps=steps, evaluations=evaluations)
    history = json.loads((run(changed(config, "strategy.head_init=random")).folder / "history.json").read_text())
    assert [entry["step"] for entry in history if "eval_loss" in entry] == expected


def test_an_interval_that_the_user_names_is_the_only_one(tmp_path):
    config = configuration("full", "text", tmp_path, max_steps=8, evaluations=8)
    config = changed(config, "training.extra={eval_steps: 4, save_steps: 4}", "strategy.head_init=random")
    history = json.loads((run(config).folder / "history.json").read_text())
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [4, 8]


def test_early_stopping_ends_before_the_last_step(tmp_path):
    config = configuration("full", "text", tmp_path, max_steps=40, evaluations=20, learning_rate=0.0001)
    config = changed(config, "training.early_stopping_patience=1", "training.learning_rate=1.0")
    about = json.loads((run(config).folder / "run.json").read_text())
    assert about["steps"] < 40


def kept_states(monkeypatch):
    """The weights at every step that is saved, as a run fills them in."""
    saved, states = StopCallback.on_save, {}

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        states[state.global_step] = load_file(folder / "model.safetensors")
        saved(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopCallback, "on_save", on_save)
    return states


def test_without_validation_rows_the_last_weights_are_kept(tmp_path, monkeypatch, caplog):
    states = kept_states(monkeypatch)
    config = configuration("full", "text", tmp_path, max_steps=6, evaluations=3)
    config = changed(config, "data.split.validation=0", "strategy.head_init=probe", "training.weights=best")
    made = run(config)
    assert "No validation rows: nothing chooses a step, and probabilities are not calibrated" in caplog.text
    assert "validation" not in made.metrics and made.metrics["test"] and set(states) == {2, 4, 6}
    found = weights(made.folder)
    assert same(found, states[6]) and not same(found, states[4])
    with pytest.raises(UserError, match="training.early_stopping_patience needs validation rows, and there are none"):
        run(changed(config, "training.early_stopping_patience=2", f"output={tmp_path / 'b'}"))


@pytest.mark.parametrize(("strategy", "kind", "setting", "message"), [
    ("probe", "text", "model.image_size=24", "model.image_size=24 is for images, and the data are texts. Leave it out."),
    ("probe", "image", "model.max_length=24", "model.max_length=24 is for texts, and the data are images. Leave it out."),
    ("full", "image-regression", "training.gradient_checkpointing=true",
     "training.gradient_checkpointing: ConvNextForImageClassification does not have it. Leave it out."),
])  # fmt: skip
def test_settings_of_another_kind_of_data_or_network(tmp_path, strategy, kind, setting, message):
    with pytest.raises(UserError, match=message):
        run(changed(configuration(strategy, kind, tmp_path), setting))


@pytest.mark.parametrize(("strategy", "kind", "settings", "expected"), [
    ("full", "image", ["head.folds=3"], ["head.folds (the head begins random"]),
    ("probe", "text", ["augmentation.flip=false"], ["augmentation.flip (the data are texts)"]),
    ("probe", "image", ["augmentation.level=strong", "head.pooling=mean"],
     ["augmentation.level (the features of a probe", "head.pooling (images are pooled as the checkpoint does it)"]),
    ("full", "text-regression", ["training.imbalance=balanced"], ["training.imbalance (numbers have no classes)"]),
    ("full", "image", ["augmentation.flip=false", "training.learning_rate=1e-3"], []),
])  # fmt: skip
def test_settings_without_effect_are_said(tmp_path, caplog, strategy, kind, settings, expected):
    config = configuration(strategy, kind, tmp_path, evaluations=1)
    if strategy == "probe":
        config = config.model_copy(update={"training": TrainingConfig()})
    run(changed(config, *settings))
    said = [record.message for record in caplog.records if record.message.startswith("Without effect")]
    assert len(said) == len(expected)
    assert all(
        line.startswith(f"Without effect: {start}") for line, start in zip(sorted(said), sorted(expected), strict=True)
    )


OPTIONS = [
    "head.layer=best", "head.layer=1", "head.pooling=mean",
    "head.pooling=auto", "head.folds=2", "augmentation.flip=false", "augmentation.level=strong",
    "training.imbalance=balanced", "training.label_smoothing_factor=0.1", "training.gradient_checkpointing=true",
    "training.bf16=true", "training.per_device_train_batch_size=500", "training.gradient_accumulation_steps=3",
    "training.max_steps=1", "training.evaluations=50", "training.early_stopping_patience=1",
    "training.metric_for_best_model=loss", "model.keep_head=true", "model.image_size=24", "model.max_length=4",
    "data.train_examples=10000", "data.train_examples=5", "data.split.validation=0", "data.split.test=0", "data.split.test=0.84",
    "evaluation.folds=3", "evaluation.seeds=2", "evaluation.conformal_level=0.999", "evaluation.reference=false",
    "evaluation.explanations=true", "strategy.head_init=probe", "strategy.head_init=random", "store=false",
]  # fmt: skip
OWN_OPTIONS = {
    "frozen": ["strategy.top=0", "strategy.top=1.0", "strategy.batchnorm=adapt"],
    "full": ["strategy.layer_decay=1", "strategy.batchnorm=adapt"],
    "gradual": ["strategy.schedule=[0.0]", "strategy.open_all_by=0", "strategy.batchnorm=adapt"],
    "lora": ["strategy.top=1", "strategy.dropout=0.3", "strategy.r=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_options_together_run_or_are_the_users_mistake(tmp_path, seed):
    chance, refused = random.Random(seed), 0
    for number in range(50):
        strategy, kind = chance.choice(["probe", "scratch", *OWN_OPTIONS]), chance.choice(list(KINDS))
        options = chance.sample(OPTIONS + 2 * OWN_OPTIONS.get(strategy, []), chance.choice([1, 2, 3]))
        print(strategy, kind, *options)
        place = tmp_path / str(number)
        place.mkdir()
        try:
            run(changed(configuration(strategy, kind, place, max_steps=2, evaluations=1), *options))
        except UserError as error:
            refused += 1
            print(error)
        shutil.rmtree(place)
    assert refused < 35


@pytest.mark.parametrize(("setting", "message"), [
    ("training.extra={warmup_rato: 0.1}", "training.extra.warmup_rato: transformers has no such argument. Did you mean"),
    ("training.lr_scheduler_type=cosin", "training.lr_scheduler_type=cosin: transformers has no such schedule. Did you mean 'cosine'"),
    ("training.lr_scheduler_type=cosine_with_min_lr", r"training.lr_scheduler_type=cosine_with_min_lr .*is refused: .*min_lr"),
    ("training.metric_for_best_model=acuracy", "Unknown metric 'acuracy'. Did you mean 'accuracy'"),
    ("training.report_to=wandbb", "training.report_to=wandbb is refused: wandbb is not supported, only .*wandb"),
    ("training.report_to=clearml", "training.report_to=clearml is refused: .*requires 'clearml'"),
])  # fmt: skip
def test_what_transformers_does_not_have_is_said_before_anything_is_computed(tmp_path, monkeypatch, setting, message):
    monkeypatch.setattr("hftransfer.train.load_data", None)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_clearml_available", lambda: False)
    with pytest.raises(UserError, match=message):
        run(changed(configuration("full", "text", tmp_path), setting))


@pytest.mark.parametrize(("metric", "step"), [("accuracy", 4), ("log_loss", 2), ("loss", None)])
def test_the_metric_that_chooses_the_step(tmp_path, monkeypatch, metric, step):
    found, states = iter([0.2, 0.9, 0.5]), kept_states(monkeypatch)
    monkeypatch.setattr(loop, "compute_metrics", lambda *args: dict.fromkeys(("accuracy", "log_loss"), next(found)))
    config = configuration("full", "text", tmp_path, max_steps=6, evaluations=3)
    made = run(changed(config, f"training.metric_for_best_model={metric}", "strategy.head_init=random"))
    inspections = [e for e in json.loads((made.folder / "history.json").read_text()) if "eval_loss" in e]
    step = step or min(inspections, key=lambda entry: entry["eval_loss"])["step"]
    assert [number for number, state in states.items() if same(weights(made.folder), state)] == [step]


def test_a_metric_of_another_task_cannot_choose_the_step(tmp_path):
    config = changed(configuration("full", "text", tmp_path), "training.metric_for_best_model=r2")
    with pytest.raises(
        UserError, match="training.metric_for_best_model=r2 is none of a single_label task. Choose from"
    ):
        run(config)


def test_what_a_tracker_writes_beside_the_checkpoints_is_kept(tmp_path, monkeypatch):
    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            place = Path(args.output_dir) / "runs" / "now"
            place.mkdir(parents=True, exist_ok=True)
            with (place / "events").open("a") as file:
                print(state.global_step, file=file)
            (Path(args.output_dir) / "emissions.csv").write_text("0")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    config = configuration("full", "text", tmp_path, max_steps=4)
    folder = run(changed(config, "training.report_to=tensorboard")).folder
    assert (folder / "tracking" / "runs" / "now" / "events").read_text().split()[-1] == "4"
    assert (folder / "tracking" / "emissions.csv").exists() and not (folder / "checkpoints").exists()


@pytest.mark.parametrize(("extra", "message"), [
    ("optim: adamx", "training.extra={'optim': 'adamx'} is refused: adamx is not a valid OptimizerNames"),
    ("save_steps: 3", "training.extra={'save_steps': 3} is refused: --load_best_model_at_end requires"),
    ("optim: lomo", r"The optimizer \(OptimizerNames.LOMO, training.extra\) is refused: .*lomo"),
    ("adam_beta1: -1.0", r"The optimizer \(.*, training.extra\) is refused: Invalid beta parameter"),
])  # fmt: skip
def test_arguments_that_transformers_refuses(tmp_path, extra, message):
    with pytest.raises(UserError, match=message):
        run(changed(configuration("full", "text", tmp_path, max_steps=2), f"training.extra={{{extra}}}"))


def train_command(config, folder):
    path = Path(folder) / "config.yaml"
    path.write_text(config.to_yaml())
    return ["-m", "hftransfer", "train", str(path)]


@pytest.mark.parametrize("strategy", [
    "gradual", pytest.param("frozen", marks=pytest.mark.slow), pytest.param("lora", marks=pytest.mark.slow),
    pytest.param("full", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, all_penalties, strategy):
    config = configuration(strategy, "text", tmp_path, max_steps=60, evaluations=12)
    whole = weights(run(changed(config, f"output={tmp_path / 'whole'}")).folder)
    process = start(config, tmp_path / "cache")
    checkpoints = Path(f"{config.output}.incomplete") / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("checkpoint-*/trainer_state.json")), process)
    process.kill()
    process.join()
    assert not Path(config.output).exists()
    with pytest.raises(UserError, match="holds an interrupted run: continue it with --resume, or remove it."):
        run(config)
    assert same(whole, weights(run(config, resume=True).folder))


def test_augmentation_follows_the_seed_and_the_place_in_the_training(tmp_path):
    """A resumed run, whatever was drawn before, and each process see the same views; other places and seeds do not."""
    from hftransfer.modalities import AugmentationConfig, kind_of
    from hftransfer.models.loading import ModelConfig, load_checkpoint
    from hftransfer.tasks import SingleLabel
    from hftransfer.training.examples import Collator, Examples, Rows

    task, kind = SingleLabel(("blue", "red")), kind_of("image")
    files = sorted(map(str, tiny.image_folder(tmp_path / "images", task.names, per_class=2).rglob("*.png")))
    checkpoint = load_checkpoint(ModelConfig(name=str(tiny.VISION_FAMILIES["vit"](tmp_path / "vit"))), kind, task)
    modality = kind.bind(checkpoint.processor, AugmentationConfig(level="light"))
    rows = np.array([0, 1, 0, 1])
    examples = Examples(files, np.array([0, 0, 1, 1]), modality, task, rows, rows)
    training = Rows(examples, rows, training=True)

    def view(place, seed=0, before=0):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        batch = Collator(examples, seed)([training[place], training[place + 1]])["pixel_values"]
        assert torch.equal(state, torch.get_rng_state())
        return batch

    first = view(0)
    assert torch.equal(first, view(0, before=7))
    assert not torch.equal(first, view(2)) and not torch.equal(first, view(0, seed=1))


def test_a_run_leaves_the_process_as_it_was(tmp_path):
    """Environment, garbage collector, threads, signal handlers and torch's functions belong to the caller."""
    state = lambda: (  # noqa: E731
        dict(os.environ), gc.get_threshold(), torch.get_num_threads(), signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM), torch.nn.functional.dropout, torch.nn.functional.conv2d,
        torch.nn.functional.scaled_dot_product_attention,
    )  # fmt: skip
    before = state()
    torch.set_num_threads(before[2] + 1)
    try:
        run(configuration("full", "text", tmp_path))
        assert torch.get_num_threads() == before[2] + 1
    finally:
        torch.set_num_threads(before[2])
    assert state() == before


def launched(config, folder):
    """What two processes of `accelerate launch` log."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *train_command(config, folder)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def forked(config, folder):
    """What two processes of the test's own log: quicker to start."""
    processes = two_processes(config, folder / "cache")
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return Path(f"{config.output}.0.log").read_text()


@pytest.mark.parametrize("start_two", [forked, pytest.param(launched, marks=pytest.mark.slow)])
def test_two_processes_give_what_one_gives(tmp_path, start_two):
    one = configuration("full", "image-multi", tmp_path, evaluations=1, per_device_train_batch_size=8)
    one = changed(one, "augmentation.level=none")
    two = changed(one, "training.per_device_train_batch_size=4", f"output={tmp_path / 'two'}")
    expected = run(one).folder
    if torch.cuda.is_available():
        pytest.skip("two processes need two GPUs here")
    assert "Process 1 of 2" in start_two(two, tmp_path)
    assert same(weights(expected), weights(tmp_path / "two"), 1e-4)
    tables = [pd.read_parquet(folder / "predictions.parquet") for folder in (expected, tmp_path / "two")]
    assert tables[1]["id"].is_unique and set(tables[0]["id"]) == set(tables[1]["id"])


@pytest.mark.slow  # tests/runtime/test_devices.py has the words, without a launcher
def test_fewer_processes_than_asked_for_is_an_error(tmp_path):
    config = configuration("probe", "text", tmp_path)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = run_python([*launch, *train_command(config, tmp_path)])
    assert done.returncode != 0
    assert "asked for several processes but started only this one" in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr.split("Error:")[0]
