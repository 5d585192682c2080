"""Curves that are planted are found again, what is worth nothing is said to be, and what is chosen is in doubt and new."""

import json

import numpy as np
import pytest

from hftransfer.evaluation.intervals import Measured
from hftransfer.planning.labels import choice, power_law
from hftransfer.planning.labels.curve import Curve, Problem, arrange, measure_curve, size_grid, solved
from hftransfer.planning.labels.forecast import forecast, round_number, worth
from hftransfer.tasks import MultiLabel, Regression, SingleLabel, make_task

SIZES = np.array([20, 40, 80, 160, 320])
THREE = SingleLabel(("easy", "left", "right"))


# --- power laws ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "floor, scale, exponent", [(0.1, 2.0, 0.7), (0.0, 1.0, 0.5), (0.3, 0.0, 1.0), (0.05, 40.0, 1.6)]
)
def test_a_law_without_noise_is_found_again(floor, scale, exponent):
    errors = floor + scale * SIZES**-exponent
    law = power_law.fit(SIZES, errors[None], np.ones(5))
    assert law.at(640)[0] == pytest.approx(floor + scale * 640**-exponent, abs=2e-3)
    assert np.allclose([law.at(size)[0] for size in SIZES], errors, atol=3e-3)


def test_no_resample_promises_a_loss():
    """Resampled errors can be negative: the law of such a row still neither falls below zero nor rises."""
    errors = np.array([[-0.2, -0.1, -0.1, 0.0, 0.0], [0.1, -0.3, -0.3, -0.3, -0.3], [-0.1, -0.1, 0.1, 0.2, 0.3]])
    laws = power_law.fit(SIZES, errors, np.ones(5))
    assert (laws.floor >= 0).all() and (laws.at(320) >= laws.at(640)).all() and (laws.at(640) >= 0).all()


def test_the_fit_is_the_best_that_stays_in_bounds():
    """Against a search over floor and scale on a grid, with errors that ask for negative ones."""
    rng = np.random.default_rng(0)
    for trend in (-0.1, 0.0, 0.3):
        errors = 0.2 + trend * (SIZES / 320.0) ** -0.3 + 0.02 * rng.normal(size=5)
        weights = rng.uniform(0.5, 2, 5)
        law = power_law.fit(SIZES, errors[None], weights)
        assert law.floor[0] >= 0 and law.scale[0] >= 0
        loss = (weights * (law.floor[0] + law.scale[0] * SIZES ** -law.exponent[0] - errors) ** 2).sum()
        for exponent in power_law.EXPONENTS[::4]:
            floors, scales = np.meshgrid(np.linspace(0, 0.6, 61), np.linspace(0, 0.6, 61) * 320**exponent)
            tried = floors[..., None] + scales[..., None] * SIZES**-exponent
            assert loss <= (weights * (tried - errors) ** 2).sum(-1).min() + 1e-9


def noisy_curve(seed, floor=0.08, scale=1.5, exponent=0.6, orders=5, resamples=200, rows=300):
    """A curve as `measure_curve` gives it: noise of the orders, and noise of held-out rows that all sizes share."""
    rng = np.random.default_rng(seed)
    errors = floor + scale * SIZES**-exponent
    subsamples = 0.3 * rng.normal(size=(5, orders)) * np.sqrt(errors[:, None] / SIZES[:, None])
    shared = np.sqrt(errors.mean() / rows) * rng.normal(size=1 + resamples)
    shared[1:] += shared[0]
    values = 1 - (errors[:, None, None] + subsamples[..., None] + shared)
    return Curve("accuracy", SIZES, values, SIZES / 3200)


def test_forecasts_hold_the_truth_as_often_as_they_say():
    truth = 1 - (0.08 + 1.5 * 640**-0.6)
    gain = 1.5 * (320**-0.6 - 640**-0.6)
    held = {"value": 0, "gain": 0}
    for seed in range(60):
        curve = noisy_curve(seed)
        laws = curve.laws()
        value, found = curve.at(640, laws), curve.gain(320, laws)
        held["value"] += value.low <= truth <= value.high
        held["gain"] += found.low <= gain <= found.high
    assert held["value"] >= 52 and held["gain"] >= 52  # of 60; 95 % are promised


def test_words():
    assert worth(Measured(0.03, 0.015, 0.045, 5), "accuracy", 0.005) == "about +3.0 (1.5 to 4.5) points of accuracy"
    assert worth(Measured(0.001, 0.0, 0.004, 5), "accuracy", 0.005) == "about 0 (0.0 to 0.4) points of accuracy"
    assert (
        worth(Measured(0.02, 0.0, 0.06, 5), "accuracy", 0.005)
        == "the curve cannot tell (0.0 to 6.0) points of accuracy"
    )
    assert worth(Measured(0.2, 0.1, 0.3, 5), "rmse", 0.005) == "rmse lower by 0.2 (0.1 to 0.3)"
    assert [round_number(value) for value in (0.4, 7, 87, 230, 1999)] == [1, 7, 80, 200, 1000]


# --- curves from features --------------------------------------------------------------------------------------------


def problem(rows=360, held=300, seed=0):
    """`easy` lies far off; `left` and `right` overlap, in twenty dimensions that only many examples settle."""
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(rows + held) % 3)
    features = rng.normal(size=(rows + held, 20))
    features[:, 0] += np.array([12.0, -0.9, 0.9])[targets]
    return Problem(THREE, features, targets, np.arange(rows), np.arange(rows, rows + held))


def test_an_order_is_stratified_from_its_beginning_and_holds_every_row_once():
    found = problem()
    order = arrange(found, seed=1)
    assert sorted(order) == list(found.pool) and not np.array_equal(order, arrange(found, seed=2))
    for size in (9, 30, 120):
        expected = np.bincount(found.targets[found.pool]) * size / len(found.pool)
        assert np.abs(np.bincount(found.targets[order[:size]], minlength=3) - expected).max() <= 1
    assert size_grid(found)[0] >= 6 and size_grid(found)[-1] == 360


def test_more_rows_help_and_the_forecast_goes_on_from_there():
    found = problem()
    curve = measure_curve(found, orders=3, sizes=[15, 40, 120, 360])
    means = curve.values[:, :, 0].mean(1)
    assert means[0] < means[-1]
    assert (curve.values[-1] == curve.values[-1][:1]).all()  # all rows are the same rows in every order
    later = curve.at(720, curve.laws())
    assert later.value >= curve.at(360, curve.laws()).value


def test_a_class_at_its_ceiling_is_worth_about_nothing():
    found = problem()
    result = forecast(found, solved(found, found.pool, 0), more=100, orders=3)
    gains = {gain.name: gain for gain in result.classes}
    assert gains["easy"].words.startswith("+100 of easy: about 0 (0.00 to 0.")
    assert "; about 0 (0.0 to 0.0) points of its own recall" in gains["easy"].words
    assert result.rows == 360 and result.held == 300 and [gain.more for gain in result.gains] == [100]
    assert json.loads(json.dumps(result.to_dict()))["beyond"][0]["measured"] is None


def test_no_more_is_promised_than_twice_the_rows():
    found = problem(rows=120)
    result = forecast(found, solved(found, found.pool, 0), more=1000, classes=1, orders=2)
    assert [gain.more for gain in result.gains] == [120] and result.classes[0].more == result.classes[0].rows < 120
    assert "Beyond twice the 120 rows at hand the law is a guess: +120 is shown in place of +1000." in result.remarks
    assert any(remark.startswith("The 1 of 3 classes with the lowest recall") for remark in result.remarks)


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_other_tasks(kind):
    found = problem(rows=150, held=100)
    if kind == "multi_label":
        targets = np.stack([found.targets != 1, found.targets == 2], 1).astype(np.float32)
        task = make_task(kind, ("p", "q"))
    else:
        targets = (found.features[:, :1] + found.features[:, 1:2]).astype(np.float32)
        task = make_task(kind, ("y",)).with_scale(targets)
    other = Problem(task, found.features, targets, found.pool, found.held)
    result = forecast(other, solved(other, other.pool, 0), orders=2)
    assert len(result.classes) == (2 if kind == "multi_label" else 0)
    assert ("Numbers have no classes: the curve is of all rows together." in result.remarks) == (kind == "regression")


# --- what to label next ----------------------------------------------------------------------------------------------


def clusters(sizes, seed=0):
    """Tight groups of features in different directions, and the group of each row."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    return np.eye(len(sizes), 8)[group] * 5 + 0.1 * rng.normal(size=(len(group), 8)), group


def test_the_cluster_in_doubt_is_chosen():
    features, group = clusters([60, 60, 15])
    doubts = np.where(group == 2, 0.9, 0.05)
    chosen = choice.choose(features, doubts, 3)
    assert (group[chosen.rows] == 2).sum() >= 1
    assert group[chosen.rows[0]] == 2  # the one that stands for most doubt comes first


def test_equal_doubts_are_spread_over_the_clusters():
    features, group = clusters([50, 30, 20, 10])
    chosen = choice.choose(features, np.ones(110), 4)
    assert sorted(group[chosen.rows]) == [0, 1, 2, 3]
    assert sorted(chosen.stands_for) == [10, 20, 30, 50]


def test_the_chosen_row_is_the_middle_of_its_cluster():
    features, group = clusters([40, 40])
    features[0] = [3.5, 3.0, 0, 0, 0, 0, 0, 0]  # of the first group, but odd
    assert 0 not in choice.choose(features, np.ones(80), 2).rows


@pytest.mark.parametrize("count", [7, 12, 50])
def test_never_more_than_the_pool_and_never_a_row_twice(count):
    features, _ = clusters([6, 6])
    features[:4] = features[0]  # equal rows leave clusters empty
    doubts = np.random.default_rng(0).random(12)
    chosen = choice.choose(features, doubts, count)
    assert len(set(chosen.rows)) == len(chosen.rows) == min(count, 12) == len(chosen.stands_for)


def test_doubt():
    single = choice.doubt(THREE, np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.4, 0.3, 0.3]]))
    assert single == pytest.approx([1.0, 0.0, 0.9])
    assert (choice.doubt(Regression(("y",)), np.zeros((2, 1))) == 1).all()


def test_doubt_of_several_labels_lies_at_the_number_that_is_expected():
    """Sure of two, of none or of all is no doubt, and what is between is."""
    labels = MultiLabel(("p", "q", "r"))
    sure = choice.doubt(labels, np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert sure == pytest.approx([0, 0, 0])
    unsure = choice.doubt(labels, np.array([[1.0, 0.5, 0.4], [0.3, 0.1, 0.0], [0.9, 0.9, 0.8], [0.5, 0.5, 0.0]]))
    assert unsure == pytest.approx([0.9, 0.3, 0.2, 1.0])
    assert choice.doubt(MultiLabel(("p",)), np.array([[0.1], [0.9], [0.6]])) == pytest.approx([0.1, 0.1, 0.4])
