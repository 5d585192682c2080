"""Advice: the choice on made-up answers, the search on a made-up experiments, and both ways in on tiny networks."""

import json
import runpy
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from hftransfer.cli.commands import main
from hftransfer.config import RunConfig, parse_overrides, with_overrides
from hftransfer.core.errors import UserError
from hftransfer.core.files import finite
from hftransfer.evaluation.resampling import corrected_t_interval
from hftransfer.features.sources import FeatureSource
from hftransfer.modalities import kind_of
from hftransfer.planning.strategies import baselines, candidates
from hftransfer.planning.strategies.candidates import Clock
from hftransfer.planning.strategies.command import advise
from hftransfer.planning.strategies.decision import Difference, Evaluator, HeldOutPredictions
from hftransfer.planning.strategies.experiments import Curve, Fold, Trial
from hftransfer.planning.strategies.kept import Kept, put_in_place
from hftransfer.planning.strategies.prior import Gain, updated
from hftransfer.planning.strategies.search import TIMED_STEPS, Search
from hftransfer.planning.strategies.wording import advice, as_dict, evidence
from hftransfer.strategies import AutoStrategy
from hftransfer.strategies.auto import seconds_of
from hftransfer.tasks import Regression, SingleLabel
from hftransfer.train import run
from tests.behaviour.test_cli import call
from tests.support import tiny
from tests.support.runs import configuration, data_of

pytestmark = pytest.mark.usefixtures("unchecked")

TASK = SingleLabel(("a", "b"))
TARGETS = np.arange(200) % 2


def predictions(name, right, rows=200, deployable=True):
    """Answers to the first `rows` rows, of which the first `right` are right."""
    said = np.where(np.arange(rows) < right, TARGETS[:rows], 1 - TARGETS[:rows])
    changes = {"strategy.type": name} if deployable else None
    return HeldOutPredictions(name, np.arange(rows), np.eye(2)[said] * 0.8 + 0.1, folds=5, seconds=1.0, changes=changes)


@pytest.fixture
def evaluator():
    return Evaluator(TASK, TARGETS)


# --- the budget -------------------------------------------------------------------------------------------------------


def test_a_budget_is_a_time_in_seconds_minutes_or_hours():
    assert [seconds_of(text) for text in ("90s", "10m", "1h", "1.5h", 45, "45")] == [90, 600, 3600, 5400, 45, 45]


@pytest.mark.parametrize("wrong", ["ten minutes", "10 days", "0m", "-5m", ""])
def test_a_wrong_budget_is_named(wrong):
    with pytest.raises(UserError) as error:
        with_overrides({"data": "d", "model": "m", "strategy": "auto"}, {"strategy.budget": wrong})
    expected = "expected a time such as 90s, 10m, 1h, or a number of seconds"
    assert str(error.value) == f"strategy.budget: {expected}, found {wrong!r}."


def test_auto_is_a_choice_of_the_configuration():
    config = with_overrides({"data": "d", "model": "m"}, {"strategy.type": "auto", "strategy.prefer": "accuracy"})
    assert config.strategy == AutoStrategy(prefer="accuracy") and config.strategy.seconds == 600
    assert "AutoStrategy" in json.dumps(RunConfig.model_json_schema())
    with pytest.raises(UserError, match="Unknown strategy 'autto'. Did you mean 'auto'?"):
        with_overrides({"data": "d", "model": "m"}, {"strategy.type": "autto"})


# --- the choice -------------------------------------------------------------------------------------------------------


def test_the_simplest_of_those_that_cannot_be_separated_is_chosen(evaluator):
    close = [predictions("probe", 170), predictions("lora", 172), predictions("full", 174)]
    assert evaluator.simplest(close).name == "probe"
    apart = [predictions("probe", 150), predictions("lora", 180), predictions("full", 182)]
    assert evaluator.simplest(apart).name == "lora"


def test_rungs_are_compared_on_the_rows_that_both_have(evaluator):
    """The first 40 rows are easy: a candidate that was asked these alone is not better for it."""
    probe, few = predictions("probe", 150), predictions("full", 40, rows=40)
    assert evaluator.score(few).value > evaluator.score(probe).value
    assert evaluator.difference(few, probe).value == 0 and evaluator.difference(few, probe).rows == 40
    assert evaluator.best([probe, few]).name == "probe"


def test_the_difference_is_that_of_the_paired_table(evaluator):
    found = evaluator.difference(predictions("lora", 180), predictions("probe", 160))
    assert found.value == pytest.approx(0.1) and 0 < found.low < 0.1 < found.high


def test_a_smaller_error_is_better_in_regression():
    task = Regression(("y",))
    targets = np.linspace(0, 1, 100)[:, None]
    far, near = (
        HeldOutPredictions(n, np.arange(100), targets + e, changes={"x": 1}) for n, e in (("probe", 0.3), ("full", 0.1))
    )
    near = HeldOutPredictions(
        "full", np.arange(100), near.scores + np.sin(np.arange(100))[:, None] / 50, changes={"x": 1}
    )
    evaluator = Evaluator(task, targets)
    assert evaluator.difference(near, far).is_better and evaluator.difference(far, near).is_worse
    assert evaluator.simplest([far, near]).name == "full" and evaluator.could_be_beaten(near)


def test_the_difference_from_fold_to_fold_has_the_corrected_interval(evaluator):
    lora, probe = predictions("lora", 180), predictions("probe", 160)
    folds = [np.arange(start, 200, 5) for start in range(5)]
    folds[0], folds[1] = np.arange(150, 190), np.arange(40)
    gains = [0.5, 0.0, *(evaluator.gain(lora, probe, rows) for rows in folds[2:])]
    found, expected = evaluator.by_folds(lora, probe, folds, 160), corrected_t_interval(gains, 160, 40)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert evaluator.by_folds(lora, probe, folds[:2], 160) is None


def test_four_errors_in_200_rows_are_too_few_to_show_that_anything_is_better(evaluator):
    assert not evaluator.could_be_beaten(predictions("probe", 196))
    assert evaluator.could_be_beaten(predictions("probe", 195))


def test_the_best_readout_is_chosen_by_the_other_folds():
    """Block 2 is better on the first fold alone: there the others, which prefer block 1, decide."""
    folds = [Fold(np.setdiff1d(np.arange(30), rows), rows) for rows in np.arange(30).reshape(3, 10)]
    sure = np.where(np.eye(2)[TARGETS[:30]] > 0, 2.0, -2.0)
    mixed = np.concatenate([3 * sure[:10], -sure[10:]])
    context = SimpleNamespace(targets=TARGETS[:30])
    experiments = SimpleNamespace(
        folds=folds, data=SimpleNamespace(task=TASK), context=context, row_seconds=0.001, head_share=0.01
    )
    experiments.row_seconds_up_to = lambda block: 0.0005
    one, two = FeatureSource(1), FeatureSource(2)
    curve = Curve(experiments, {one: sure, two: mixed}, {one: 0.1, two: 0.9}, folds, 1.0)
    found = curve.predictions("best-layer", [one, two], {})
    assert (found.scores[:10].argmax(1) == TARGETS[:10]).all() and found.scores[0].max() < 0.99
    assert found.row_milliseconds == 0.5 and found.notes == {"feature_source": "head@1"}


# --- the search --------------------------------------------------------------------------------------------------------


class FakeBench:
    """200 rows in five folds; every candidate is right on a set number of rows; a training takes no time but says it does."""

    def __init__(self, right, seconds=0.0):
        self.right, self.seconds, self.asked = right, seconds, []
        self.config = with_overrides({"data": "d", "model": "m"}, {})
        self.data = SimpleNamespace(task=TASK, modality="text", kind=kind_of("text"))
        shuffled = np.random.default_rng(0).permutation(200)
        self.folds = [Fold(np.setdiff1d(shuffled, part), part) for part in np.array_split(shuffled, 5)]
        self.evaluator, self.labels, self.row_seconds = Evaluator(TASK, TARGETS, None, 100), 200, 1e-6
        self.context = SimpleNamespace(fitted=np.arange(200), model=torch.nn.Linear(1, 1))

    blocks, solving, pass_seconds = 1, 0.0, 0.0

    def feature_sources(self, head):
        return (
            [FeatureSource(3)]
            if head.layer == "last"
            else [FeatureSource(block) for block in range(4 - self.blocks, 4)]
        )

    def probes(self, wanted):
        losses = {feature_source: 1 / feature_source.block for feature_source in wanted}
        made = lambda name, allowed, changes: predictions(name, self.right[name], deployable=bool(changes))  # noqa: E731
        return SimpleNamespace(predictions=made, losses=losses, solving=self.solving * len(losses))

    def majority(self):
        return predictions("majority", 100, deployable=False)

    def raw_input(self):
        return predictions("raw", self.right.get("raw", 120), deployable=False)

    def random_features(self):
        made = predictions("random", self.right.get("random", 120), deployable=False)
        return SimpleNamespace(predictions=lambda *_: made, losses={FeatureSource(3): 1.0})

    def steps(self, config):
        return config.training.max_steps or 100

    def train(self, config, fold):
        self.asked.append((config.strategy.type, config.training.max_steps, config.training.learning_rate))
        right = fold.held_out < self.right[config.strategy.type]
        said = np.where(right, TARGETS[fold.held_out], 1 - TARGETS[fold.held_out])
        steps, rate = self.steps(config), config.training.learning_rate or 0.0
        seconds = self.seconds * steps / 100
        return Trial(np.eye(2)[said] * 0.8 + 0.1, seconds, seconds, steps, 0.5, rate)


def climbed(right, seconds=0.0, budget=1000, keep=None, prefer="simplicity", overhead=0.0):
    search = Search(FakeBench(right, seconds), AutoStrategy(prefer=prefer), Clock(budget), keep, overhead)
    search.run()
    return search


ALIKE = {"probe": 150, "frozen": 151, "lora": 152, "full": 149, "scratch": 100}
LORA = {"probe": 140, "frozen": 143, "lora": 180, "full": 181, "scratch": 100}


def test_every_rung_is_tried_and_the_probe_kept_where_nothing_is_better():
    search = climbed(ALIKE)
    assert search.chosen == "probe" and set(search.skipped) == {"scratch"}
    assert search.skipped["scratch"] == "pretrained features are better than random ones here"
    assert search.measured["lora"].folds == 5
    assert advice(search).endswith("not distinguishable from the probe (LoRA the best of them, +1.0 (-0.7 to 2.7) points, "
                                  "on 200 rows): take the probe (--prefer accuracy takes LoRA).")  # fmt: skip


def test_a_rung_that_is_better_takes_its_place_and_is_said_with_its_interval():
    kept = []
    search = climbed(LORA, keep=kept.append)
    assert search.chosen == search.kept == "lora" and [made["strategy.type"] for made in kept] == ["lora"]
    said = advice(search)
    assert said.startswith("LoRA is +20.0 (14.") and " points over the probe for " in said
    assert "full is not distinguishable from LoRA" in said and said.endswith(
        "take LoRA (--prefer accuracy takes full)."
    )
    assert any(
        "From fold to fold, each trained on other rows, LoRA gains +20.0 (" in found for found in evidence(search)
    )
    assert any(
        said.startswith("Expect about +19.") and "the choice among 3 candidates and other" in said
        for said in evidence(search)
    )
    assert search.changes == {"strategy.type": "lora"}


def test_the_gain_of_the_best_of_several_is_shrunk_and_its_interval_wider(evaluator):
    plain = evaluator.difference(predictions("lora", 170), predictions("probe", 160))
    alone, of_four = plain.corrected(1, 0.0), plain.corrected(4, 0.25)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high))
    assert of_four.low < plain.low < of_four.value < alone.value < plain.value < plain.high < of_four.high
    assert (of_four.high - of_four.low) / (plain.high - plain.low) == pytest.approx(2.4977 / 1.96 * 1.25**0.5, 1e-3)


def test_luck_among_equal_candidates_is_rarely_announced_as_certain():
    """One of four equal candidates beats the probe on its own 95 % interval more often than on the corrected one."""
    random, plain, corrected = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        gain = (random.standard_normal(4) + random.standard_normal()).max() / np.sqrt(2)
        best = Difference(gain, gain - 1.96, gain + 1.96, 200)
        plain, corrected = plain + best.is_better, corrected + best.corrected(4, 0.0).is_better
    assert corrected / 2000 <= 0.025 < plain / 2000


@pytest.mark.parametrize("groups", [None, np.repeat([str(number) for number in range(8)], 5)])
def test_the_penalty_of_the_linear_model_on_pixels_is_chosen_on_whole_groups(groups, monkeypatch):
    asked = []
    made = baselines.make_folds
    monkeypatch.setattr(baselines, "make_folds", lambda *how: asked.append(how[2]) or made(*how))
    pixels = np.random.default_rng(0).random((40, 12), dtype=np.float32)
    baselines.raw_numbers(TASK, pixels, TARGETS[:40], np.arange(30), groups, 0)
    assert asked[0] is None if groups is None else asked[0].tolist() == groups[:30].tolist()


def test_the_simpler_of_two_that_are_better_is_taken_though_it_alone_would_not_show_it():
    search = Search(FakeBench(LORA), AutoStrategy(prefer="simplicity"), Clock(1000))
    found = [predictions("probe", 56), predictions("frozen", 60, rows=80), predictions("lora", 64, rows=80)]
    search.measured = {candidate.name: candidate for candidate in found}
    said = advice(search)
    assert search.chosen == "frozen" and said.startswith("LoRA is +10.0 (2.8 to 16.7) points over the probe for ")
    assert said.endswith("frozen (+5.0 (-0.4 to 10.2) points) is simpler and not distinguishable from it: take frozen "
                         "(--prefer accuracy takes LoRA).")  # fmt: skip


def test_of_the_two_heads_the_one_of_the_higher_estimate_is_taken():
    """They cost alike: neither is simpler. More than that needs rows that tell it."""
    search = climbed(ALIKE)
    search.measured |= {"probe": predictions("probe", 150), "best-layer": predictions("best-layer", 153)}
    assert [candidate.name for candidate in search.deployable[:3]] == ["best-layer", "probe", "frozen"]
    assert search.chosen == "best-layer"
    assert advice(search) == (
        "The best-layer probe is +1.5 (-0.5 to 3.4) points over the probe, which these rows cannot tell from nothing, for 0 s more; "
        "frozen, LoRA and full are not distinguishable from the best-layer probe: take the best-layer probe "
        "(--prefer accuracy takes frozen)."
    )
    search.measured["best-layer"] = predictions("best-layer", 150)
    assert search.chosen == "probe"


def test_accuracy_is_preferred_where_it_is_asked_for():
    search = climbed(ALIKE, prefer="accuracy")
    assert search.chosen == "lora"
    assert "which these rows cannot tell from nothing" in advice(search) and advice(search).endswith(
        "take LoRA (--prefer simplicity takes the probe)."
    )


def test_a_rung_that_does_not_fit_the_budget_is_left_out_with_a_line():
    search = climbed(LORA | {"random": 140}, seconds=500, budget=60)
    assert search.chosen == "probe" and set(search.skipped) == {"frozen", "lora", "full", "scratch"}
    assert search.skipped["lora"].startswith("it needs about 500 s, ") and search.skipped["lora"].endswith(
        "budget are left"
    )
    assert [steps for _, steps, _ in search.experiments.asked] == [TIMED_STEPS] * 4
    assert search.ended == "the budget is spent"
    assert advice(search) == (
        "There was no time for frozen, LoRA, full and scratch: take the probe (--prefer accuracy takes full)."
    )


def test_the_final_training_is_in_the_budget():
    """40 s a fold fit into 60 s; with the folder's training on all rows they do not."""
    assert "lora" in climbed(LORA, seconds=40, budget=60).measured
    assert "lora" not in climbed(LORA, seconds=40, budget=60, keep=lambda changes: None).measured


def test_nothing_is_tried_where_the_rows_could_not_show_that_it_is_better():
    search = climbed(LORA | {"probe": 198, "random": 197})
    assert set(search.skipped) == {"frozen", "lora", "full", "scratch"} and not search.experiments.asked
    assert "even a faultless candidate could not be told from the probe on these 200 rows" in search.skipped["full"]


def test_where_accuracy_is_preferred_all_is_tried_that_could_be_better():
    """Two errors in 200 rows: nothing can be told from the probe, but one that makes none is taken."""
    search = climbed(LORA | {"probe": 198, "random": 197, "lora": 200}, prefer="accuracy")
    assert search.chosen == "lora" and "full" in search.measured
    search = climbed(LORA | {"probe": 200, "random": 197}, prefer="accuracy")
    assert "even a faultless candidate could not be better than the probe on these 200 rows" in search.skipped["full"]
    assert not search.experiments.asked
    assert any("the task is so easy" in sentence for sentence in evidence(search))


def test_the_expected_gain_is_the_mean_of_prior_and_measured_by_their_precision():
    found = Difference(0.10, 0.10 - 1.96 * 0.04, 0.10 + 1.96 * 0.04, 50)
    gain = updated(Gain(0.02, 0.03), found, 0.0, 0.0)
    assert (gain.mean, gain.sd) == pytest.approx(
        ((0.10 / 16 + 0.02 / 9) / (1 / 16 + 1 / 9), 0.01 / (1 / 16 + 1 / 9) ** 0.5)
    )
    assert updated(Gain(0.02, 0.03), found, 0.25, 0.015).mean < gain.mean  # more noise: nearer to the prior
    assert updated(None, found, 0.0, 0.0).mean == 0.10
    certain = Difference(0.0, 0.0, 0.0, 5)
    assert updated(Gain(0.02, 0.03), certain, 0.0, 0.0).mean == 0.0


def test_the_prior_gains_are_those_of_the_stored_results():
    """`scripts/prior.py` computes them from docs/data/strategies.jsonl."""
    prior = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "prior.py"))
    lines = [json.loads(line) for line in prior["RESULTS"].read_text().splitlines()]
    for modality, expected in prior["table"]([line for line in lines if not line["elsewhere"]]).items():
        known = kind_of(modality).prior_gains
        assert {name: gain for name, gain in known.items() if "," not in name} == expected
    lines = [json.loads(line) for line in prior["WEIGHTS"].read_text().splitlines()]
    known = kind_of("text").prior_gains
    assert {name: gain for name, gain in known.items() if "," in name} == prior["from_best_layer"](lines)


def test_prior_results_choose_where_there_is_no_time_to_measure():
    """50 s a fold, 63 s for the final training: one of the two fits into 100 s."""
    kept = []

    def keep(changes):
        kept.append(changes)
        search.clock.budget -= 63  # what the training takes

    search = Search(FakeBench(LORA, 50), AutoStrategy(), Clock(100), keep)
    search.run()
    assert search.kept == search.chosen == "full" and not {*candidates.TRAINED} & search.measured.keys()
    assert [made["strategy.type"] for made in kept] == ["full"]
    said = as_dict(search)
    assert said["advice"].startswith(
        "Full is expected to gain +8.1 points over the probe by prior results, not measured here; "
    )
    assert said["expected"]["full"] == {"mean": 0.081, "sd": 0.085, "measured": False}


def test_what_is_measured_to_be_worse_than_the_probe_is_never_chosen():
    """Prior results expect 8 points of `full`; here it is 10 worse."""
    search = climbed({"probe": 180, "frozen": 179, "lora": 170, "full": 160, "scratch": 100}, prefer="accuracy")
    assert search.expected["frozen"].measured and search.chosen == "probe"


def test_a_long_training_is_shortened_to_what_the_budget_holds_but_not_below_half():
    """100 steps take 100 s and the final training 125 s; 80 s hold 57 of them, 40 s not half."""
    kept = []
    climbed(LORA, seconds=100, budget=80, keep=kept.append, prefer="accuracy")
    assert kept[0]["strategy.type"] == "full" and 50 <= kept[0]["training.max_steps"] <= 64
    search = climbed(LORA, seconds=100, budget=40, keep=kept.append, prefer="accuracy")
    assert search.chosen == "probe" and len(kept) == 1


def test_trainings_begin_at_the_best_layer_where_that_is_better():
    experiments = FakeBench(ALIKE | {"best-layer": 170, "frozen": 180, "full": 172})
    experiments.blocks = 3
    search = Search(experiments, AutoStrategy(), Clock(1000))
    search.run()
    assert search.chosen == "frozen"
    assert search.changes == {"strategy.type": "frozen", "strategy.head_init": "probe", "head.layer": "best"}
    start, gain = search.expected["best-layer"].mean, kind_of("text").prior_gains["frozen, best layer"][0]
    assert search.prior("frozen").mean == pytest.approx(start + gain)


def test_scratch_is_tried_where_pretraining_gives_nothing():
    search = climbed(ALIKE | {"random": 150})
    assert "scratch" in search.measured
    assert any(sentence.startswith("Pretraining gives +0.0 (") for sentence in evidence(search))


@pytest.mark.parametrize("keep, needed", [(None, 100 + 3 * 10), (lambda changes: None, 2 * (100 + 3 * 10) + 5)])
def test_the_best_layer_is_left_out_where_its_heads_do_not_fit_into_the_budget(keep, needed):
    measured = {}
    for budget in (needed - 1, needed + 10):
        experiments = FakeBench(ALIKE | {"best-layer": 160})
        experiments.blocks, experiments.solving, experiments.pass_seconds = 3, 10.0, 100.0
        search = Search(experiments, AutoStrategy(prefer="simplicity"), Clock(budget), keep, 5.0)
        search.run()
        measured[budget - needed] = set(search.measured), search.skipped.get("best-layer"), len(search.curve.losses)
    names, reason, feature_sources = measured[-1]
    assert "best-layer" not in names and feature_sources == 1 and reason.startswith(f"it needs about {needed} s, ")
    names, reason, feature_sources = measured[10]
    assert "best-layer" in names and feature_sources == 3 and reason is None


def test_ctrl_c_keeps_what_is_there(caplog):
    kept = []
    search = Search(FakeBench(LORA), AutoStrategy(prefer="simplicity"), Clock(1000), kept.append)
    train, calls = search.experiments.train, []

    def interrupted(config, fold):
        if config.strategy.type == "full":
            raise KeyboardInterrupt
        calls.append(config.strategy.type)
        return train(config, fold)

    search.experiments.train = interrupted
    search.run()
    assert "lora" in calls and search.kept == "probe" and not kept
    assert json.loads(json.dumps(as_dict(search)))["ended"] == "LoRA could not be trained on all rows (interrupted)"
    assert "The output stays the probe: LoRA could not be trained on all rows (interrupted)" in caplog.text


def test_ctrl_c_before_anything_is_measured_ends_the_command():
    search = Search(FakeBench(LORA), AutoStrategy(prefer="simplicity"), Clock(1000))
    search.experiments.probes = lambda wanted: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        search.run()


def test_ctrl_c_of_advice_alone_says_that_it_was_interrupted():
    search = Search(FakeBench(LORA), AutoStrategy(prefer="simplicity"), Clock(1000))
    search.experiments.train = lambda config, fold: (_ for _ in ()).throw(KeyboardInterrupt)
    search.run()
    assert search.ended == "interrupted"


def test_the_rows_that_are_left_of_the_budget_go_to_rungs_that_may_change_the_choice():
    search = climbed({"probe": 150, "frozen": 60, "lora": 152, "full": 149, "scratch": 100})
    assert search.measured["frozen"].folds == 1 and search.measured["lora"].folds == search.measured["full"].folds == 5


def test_the_rung_of_the_highest_estimate_is_measured_further_first():
    search = climbed({"probe": 140, "frozen": 142, "lora": 144, "full": 150, "scratch": 100})
    whole = [name for name, steps, _ in search.experiments.asked if steps is None]
    assert whole[:4] == ["frozen", "lora", "full", "full"]
    search = climbed({"probe": 140, "frozen": 142, "lora": 150, "full": 144, "scratch": 100})
    assert [name for name, steps, _ in search.experiments.asked if steps is None][3] == "lora"


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_whole_and_stays_when_the_new_one_fails(tmp_path):
    config = with_overrides({"data": "d", "model": "m", "strategy": "auto"}, {"output": str(tmp_path / "run")})

    def once(made):
        if made.strategy.type == "full":
            raise KeyboardInterrupt
        made.output_folder.mkdir()
        (made.output_folder / "config.yaml").write_text(made.to_yaml())
        return {"test": made.strategy.type}

    kept = Kept(config, once)
    kept({"strategy.type": "probe"})
    (tmp_path / "run.next.incomplete" / "checkpoints").mkdir(parents=True)
    kept({"strategy.type": "lora", "training.learning_rate": 1e-3})
    with pytest.raises(KeyboardInterrupt):
        kept({"strategy.type": "full"})
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and kept.metrics == {"test": "lora"}
    stored = RunConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert (stored.strategy.type, stored.training.learning_rate, stored.output) == ("lora", 1e-3, str(tmp_path / "run"))


@pytest.mark.parametrize("failing", ["old", "new"])
def test_the_old_folder_stays_where_the_new_one_cannot_take_its_name(tmp_path, monkeypatch, failing):
    old, new = tmp_path / "run", tmp_path / "run.next"
    for folder in (old, new):
        folder.mkdir()
        (folder / "run.json").write_text(folder.name)
    rename = Path.rename

    def refused(path, target):
        if path.name == {"old": "run", "new": "run.next"}[failing]:
            raise PermissionError(13, "The process cannot access the file")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(UserError, match=r"run \(The process cannot access the file\): the earlier one is kept there"):
        put_in_place(new, old)
    assert (old / "run.json").read_text() == "run" and not (tmp_path / "run.old").exists()


# --- tiny networks ----------------------------------------------------------------------------------------------------

FEW = ("strategy.budget=5s", "training.max_steps=2", "training.learning_rate=1e-3", "head.folds=2")


def auto(kind, folder, *overrides):
    values = configuration("probe", kind, folder).model_dump(mode="json")
    return with_overrides(values, {"strategy.type": "auto"} | parse_overrides([*FEW, *overrides]))


@pytest.mark.parametrize(
    "kind",
    ["text-regression", *(pytest.param(k, marks=pytest.mark.slow) for k in ("image", "text-multi", "pair"))],
)
def test_every_kind_of_task_is_measured_on_rows_outside_of_the_test_part(tmp_path, kind):
    config = auto(kind, tmp_path, "strategy.budget=15s")
    search = advise(config)
    found = json.loads(json.dumps(as_dict(search)))
    names = [candidate["name"] for candidate in found["candidates"]]
    assert names[:2] == ["majority", "raw"] and "probe" in names and "random" in names
    assert "test" not in set(search.experiments.data.frame["split"]) and not config.output_folder.exists()
    assert found["rows"] == len(search.experiments.context.fitted) and found["advice"].endswith(".")
    tried = {candidate["name"]: candidate for candidate in found["candidates"]} | found["skipped"]
    assert {"frozen", "lora", "full", "scratch"} <= set(tried)
    for candidate in found["candidates"]:
        assert candidate["score"]["low"] <= candidate["score"]["value"] <= candidate["score"]["high"]
        assert (
            candidate["name"] == "probe"
            or candidate["over_probe"]["low"] <= candidate["over_probe"]["value"] <= candidate["over_probe"]["high"]
        )


def test_the_probe_is_measured_by_the_folds_of_its_own_run(tmp_path, tiny_run):
    """What advice says of the probe is what the run folder of the probe says of its cross-validated rows."""
    search = advise(auto("text", tmp_path, "head.pooling=head", "strategy.budget=1s"))
    changes = {"head.pooling": "head", "head.folds": 2, "output": str(tmp_path / "probe")}
    config = with_overrides(finished_config(tiny_run("probe", "text")), changes)
    stored = pd.read_parquet(run(config).folder / "oof.parquet")
    right = (stored["prediction"] == stored["label"]).mean()
    assert search.evaluator.score(search.measured["probe"]).value == pytest.approx(right)


def finished_config(folder):
    return RunConfig.from_yaml(folder / "config.yaml").model_dump(mode="json")


def test_a_validation_part_that_was_given_is_held_out_whole(tmp_path):
    table = tiny.text_table(tmp_path / "more.csv", rows=45, seed=5)
    search = advise(auto("text", tmp_path, f"data.validation={table}", "strategy.budget=1s"))
    assert len(search.experiments.folds) == 1 and len(search.measured["probe"].rows) == 45
    assert set(search.experiments.data.frame["split"][search.measured["probe"].rows]) == {"validation"}


def test_auto_leaves_one_whole_run_folder_that_names_what_was_chosen(tmp_path, pages):
    from transformers import pipeline

    config = auto("text", tmp_path, f"output={tmp_path / 'run'}")
    begin = time.perf_counter()
    finished = run(config)
    assert time.perf_counter() - begin < 60
    found = json.loads((finished.folder / "advice.json").read_text())
    stored = RunConfig.from_yaml(finished.folder / "config.yaml")
    assert stored.strategy.type == found["changes"]["strategy.type"] != "auto"
    assert stored.output == str(finished.folder) and finished.metrics["test"]["accuracy"]["n"] == 12
    expected = {
        "config.yaml",
        "run.json",
        "metrics.json",
        "receipt.json",
        "report.html",
        "README.md",
        "model",
        "advice.json",
    }
    assert expected <= {path.name for path in finished.folder.iterdir()}
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(("run.", ".run"))]
    answer = pipeline("text-classification", str(finished.folder / "model"))("goal match team")
    assert answer[0]["label"].startswith("topic")
    again = run(stored.model_copy(update={"output": str(tmp_path / "again")}))
    assert finite(again.metrics["test"]) == finite(finished.metrics["test"])


def test_ctrl_c_in_the_search_leaves_a_whole_run_that_says_so(tmp_path, pages, monkeypatch, capsys):
    def interrupted(experiments, config, fold):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("hftransfer.planning.strategies.experiments.Experiments.train", interrupted)
    monkeypatch.setattr("hftransfer.train.repeat", lambda *_: pytest.fail("nothing further begins after Ctrl-C"))
    config = auto("text", tmp_path, f"output={tmp_path / 'run'}")
    (tmp_path / "auto.yaml").write_text(config.to_yaml())
    monkeypatch.setattr("sys.argv", ["hftransfer", "train", str(tmp_path / "auto.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130 and "Ended early: SIGINT" in capsys.readouterr().err
    folder = tmp_path / "run"
    found = json.loads((folder / "advice.json").read_text())
    stored = RunConfig.from_yaml(folder / "config.yaml")
    assert found["ended"] == "interrupted"
    assert stored.head.layer == {"probe": "last", "best-layer": "best"}[found["chosen"]]
    assert (folder / "run.json").is_file() and (folder / "report.html").is_file()


def test_what_auto_cannot_do_is_said(tmp_path, monkeypatch):
    config = auto("text", tmp_path)
    with pytest.raises(
        UserError, match="strategy auto is not resumed: its output is a whole run from the first minute on"
    ):
        run(config, resume=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="strategy auto runs in one process: leave it out of a launch"):
        run(config)


def test_the_command_prints_a_table_or_json(monkeypatch, capsys, tmp_path):
    model = tiny.TEXT_FAMILIES["bert"](tmp_path / "bert")
    table = tiny.text_table(tmp_path / "texts.csv", rows=60)
    few = ["training.max_steps=2", "training.learning_rate=1e-3", "head.folds=2"]
    arguments = ["advise", table, "--model", model, "--budget", "1s", *few]
    code, out, err = call(monkeypatch, capsys, *arguments, "--json")
    assert code == 0, err
    assert json.loads(out)["budget"] == 1
    code, out, err = call(monkeypatch, capsys, *arguments, "--output", tmp_path / "kept", "--prefer", "accuracy")
    assert code == 0, err
    assert "s x folds" in out and "take the" in out.replace("\n", " ")
    assert json.loads((tmp_path / "kept" / "advice.json").read_text())["prefer"] == "accuracy"
    code, _, err = call(monkeypatch, capsys, "advise", table, "--model", model, "--budget", "soon")
    assert code == 2 and "strategy.budget: expected a time such as 90s, 10m, 1h" in err


def test_a_configuration_of_another_strategy_is_advised_on_with_the_budget_of_the_line(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "hftransfer.planning.strategies.command.advise", lambda config: seen.append(config.strategy) or 1 / 0
    )
    for name, strategy in (("lora", {"type": "lora", "r": 4}), ("auto", {"type": "auto", "budget": "3m"})):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"data": "d", "model": "m", "strategy": strategy}))
    for arguments in (["lora.yaml", "--budget", "20s"], ["auto.yaml"], ["auto.yaml", "strategy.prefer=accuracy"]):
        monkeypatch.setattr("sys.argv", ["hftransfer", "advise", str(tmp_path / arguments[0]), *arguments[1:]])
        with pytest.raises(ZeroDivisionError):
            main()
    assert seen == [AutoStrategy(budget="20s"), AutoStrategy(budget="3m"), AutoStrategy(budget="3m", prefer="accuracy")]


def opposites(path, rows=240):
    """Two words each; the label says whether they are of one topic: no sum of word vectors tells it."""
    rng = np.random.default_rng(0)
    topics = rng.integers(2, size=(rows, 2))
    texts = [" ".join(rng.choice(tiny.WORDS[topic]) for topic in pair) for pair in topics]
    labels = np.where(topics[:, 0] == topics[:, 1], "same", "other")
    pd.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_training_is_chosen_where_frozen_features_do_not_suffice(tmp_path):
    model = tiny.TEXT_FAMILIES["bert"](tmp_path / "bert")
    values = {"data": str(opposites(tmp_path / "two.csv")), "model": str(model), "strategy": "auto"}
    settings = (
        "strategy.budget=5m",
        "training.learning_rate=2e-3",
        "training.max_steps=150",
        "head.pooling=head",
        "head.layer=1",
        "head.folds=2",
    )
    search = advise(with_overrides(values, parse_overrides(settings)))
    assert search.chosen in ("frozen", "lora", "full", "scratch"), advice(search)
    assert search.against(search.chosen, "probe").is_better


def test_a_head_is_chosen_where_frozen_features_suffice(tmp_path):
    search = advise(auto("text", tmp_path, "strategy.budget=20s"))  # time to measure the rivals
    assert search.chosen in candidates.HEADS and data_of("text", tmp_path)["task"] == "single_label"
