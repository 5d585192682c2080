"""Intervals: they hold the truth as often as they say, and the fast resampling is the plain one."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import average_precision_score, roc_auc_score

from hftransfer.core.errors import UserError
from hftransfer.evaluation import EvaluationConfig, bootstrap, evaluate_predictions
from hftransfer.evaluation.calibration import brier
from hftransfer.evaluation.intervals import Draws, measure, measure_auroc, per_class, wilson
from hftransfer.evaluation.metrics import MeanLoss, compute_metrics
from hftransfer.evaluation.resampling import corrected_t_interval, spread
from hftransfer.tasks import MultiLabel, Regression, SingleLabel

SINGLE = SingleLabel(("a", "b", "c", "d"))
MULTI = MultiLabel(("x", "y", "z"))
VALUES = Regression(("height", "weight"))


def single_label(rows, rng, signal=2.0):
    targets = rng.choice(4, size=rows, p=[0.4, 0.3, 0.2, 0.1])
    logits = rng.normal(size=(rows, 4))
    logits[np.arange(rows), targets] += signal
    return SINGLE, targets, SINGLE.probabilities(1.5 * logits)


def multi_label(rows, rng):
    targets = (rng.random((rows, 3)) < [0.5, 0.3, 0.2]).astype(np.float32)
    return MULTI, targets, MULTI.probabilities(rng.normal(size=targets.shape) + 3 * targets - 1.5)


def regression(rows, rng):
    targets = rng.normal(size=(rows, 2)) * [1, 3]
    return VALUES, targets, targets + rng.normal(size=targets.shape) * [1, 2]


WORLDS = [single_label, multi_label, regression]


@pytest.mark.parametrize("world", WORLDS)
def test_equal_weights_give_the_metrics_themselves(world):
    task, targets, scores = world(200, np.random.default_rng(0))
    found = bootstrap.statistics(task, targets, scores)(np.ones((1, 200), np.float32))
    assert {name: value[0] for name, value in found.items()} == pytest.approx(compute_metrics(task, targets, scores))


@pytest.mark.parametrize("world", WORLDS)
def test_weights_stand_for_repeated_rows(world):
    rng = np.random.default_rng(1)
    task, targets, scores = world(150, rng)
    counts = rng.integers(0, 3, size=150)
    rows = np.repeat(np.arange(150), counts)
    repeated = compute_metrics(task, targets[rows], scores[rows])
    found = bootstrap.statistics(task, targets, scores)(counts[None].astype(np.float32))
    for name, value in repeated.items():
        ranked = name in ("auroc", "mean_average_precision")  # of first order in the weights only
        assert found[name][0] == pytest.approx(value, abs=0.01 if ranked else 1e-5), name


def test_ties_rank_as_in_scikit_learn():
    rng = np.random.default_rng(2)
    positive, score = rng.random(300) < 0.3, np.round(rng.random(300), 1)
    assert bootstrap.auroc_influence(positive, score)[0] == pytest.approx(roc_auc_score(positive, score))
    assert bootstrap.precision_influence(positive, score)[0] == pytest.approx(average_precision_score(positive, score))


@pytest.mark.parametrize("kind", ["auroc_influence", "precision_influence"])
def test_influence_is_the_derivative_in_each_rows_weight(kind):
    metric = {"auroc_influence": roc_auc_score, "precision_influence": average_precision_score}[kind]
    rng = np.random.default_rng(3)
    positive, score = rng.random(40) < 0.4, np.round(rng.random(40), 1)
    terms = getattr(bootstrap, kind)(positive, score)[1] / 40
    for row in range(40):
        weights = np.ones((2, 40))
        weights[:, row] += [1e-4, -1e-4]
        up, down = (metric(positive, score, sample_weight=w) for w in weights)
        assert terms[row] == pytest.approx((up - down) / 2e-4, abs=1e-5)


def test_the_spread_agrees_with_scipys_bootstrap():
    rng = np.random.default_rng(4)
    positive = np.arange(300) < 100
    score = rng.normal(size=300) + 1.5 * positive

    def area(ones, zeros):
        return (ones[:, None] > zeros).mean()

    reference = scipy_bootstrap((score[positive], score[~positive]), area, vectorized=False, n_resamples=999, rng=0)
    found = measure_auroc(positive, score)
    low, high = reference.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


@pytest.mark.parametrize(("hits", "rows"), [(0, 1), (1, 1), (0, 12), (5, 12), (12, 12), (999, 1000)])
def test_wilson_is_that_of_scipy(hits, rows):
    found = stats.binomtest(hits, rows).proportion_ci(0.9, method="wilson")
    assert wilson(hits, rows, 0.9) == pytest.approx((found.low, found.high), abs=1e-14)


def test_wilson_of_ninety_in_a_hundred():
    assert wilson(90, 100) == pytest.approx((0.826, 0.945), abs=5e-4)


def coverage(world, rows, repeats, resamples=150, groups=None):
    """How often each metric's interval holds the value that 200,000 rows have."""
    truth = compute_metrics(*world(200_000, np.random.default_rng(9)))
    held = dict.fromkeys(truth, 0)
    for repeat in range(repeats):
        sample = world(rows, np.random.default_rng(repeat))
        for name, found in measure(*sample, groups, seed=repeat, resamples=resamples).items():
            held[name] += found.low <= truth[name] <= found.high
    return {name: count / repeats for name, count in held.items()}


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_intervals_hold_the_truth_in_93_to_97_percent(world):
    found = coverage(world, rows=200, repeats=2000)
    assert all(0.93 <= share <= 0.97 for share in found.values()), found


def bounds(repeats, share=0.95):
    """What so many repeats show of intervals that hold this share: all but two in a thousand."""
    return stats.binom.ppf([0.001, 0.999], repeats, share) / repeats


REPEATS = [80, pytest.param(300, marks=pytest.mark.slow)]


@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("world", WORLDS)
def test_intervals_hold_the_truth_as_far_as_some_repeats_can_tell(world, repeats):
    found, (low, high) = coverage(world, 200, repeats), bounds(repeats)
    assert all(low <= share <= high for share in found.values()), found


@pytest.mark.parametrize("repeats", REPEATS)
def test_intervals_hold_the_truth_near_perfection(repeats):
    """Where percentile intervals fail: 96 % right, AUROC 0.997, 100 rows."""
    found, (low, high) = coverage(lambda rows, rng: single_label(rows, rng, signal=3.0), 100, repeats), bounds(repeats)
    assert found.pop("log_loss") > bounds(repeats, 0.93)[0]
    assert all(low <= share <= high for share in found.values()), found


def grouped(rows, rng):
    """Twenty rows of each group share one draw of the noise."""
    targets = rng.normal(size=(rows, 1))
    noise = np.repeat(rng.normal(size=(rows // 20, 1)), 20, axis=0)[:rows]
    return Regression(("value",)), targets, targets + noise + 0.3 * rng.normal(size=(rows, 1))


@pytest.mark.parametrize("repeats", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_groups_are_needed_and_enough_where_rows_depend_on_each_other(repeats):
    groups, (low, high) = [f"video {i // 20}" for i in range(800)], bounds(repeats)
    assert coverage(grouped, 800, repeats)["rmse"] < 0.75
    assert low <= coverage(grouped, 800, repeats, groups=groups)["rmse"] <= high


def test_groups_widen_proportions_too():
    targets = np.repeat(np.arange(4), 50)
    scores = np.eye(4)[np.where(np.arange(200) % 20 < 10, targets, (targets + 1) % 4)] * 0.9 + 0.025
    alone = measure(SINGLE, targets, scores, None)["accuracy"]
    groups = [f"patient {i // 10}" for i in range(200)]
    together = measure(SINGLE, targets, scores, groups=groups)["accuracy"]
    assert together.high - together.low > 2 * (alone.high - alone.low)
    classes = per_class(SINGLE, targets, scores, groups=groups)
    assert classes[0]["recall"].high - classes[0]["recall"].low > 0.5


def test_a_row_without_a_group_stands_for_itself():
    task, targets, scores = single_label(100, np.random.default_rng(0))
    assert measure(task, targets, scores, groups=[None] * 100) == measure(task, targets, scores, None)


def test_one_single_group_is_no_sample_of_groups(caplog):
    task, targets, scores = single_label(100, np.random.default_rng(0))
    found = measure(task, targets, scores, groups=["only"] * 100)
    assert all(np.isnan(metric.low) and np.isnan(metric.high) for metric in found.values())  # not known
    assert "All 100 rows are of one group" in caplog.text


def test_ten_of_ten_is_not_certainty():
    targets = np.arange(10) % 2
    found = measure(SingleLabel(("a", "b")), targets, np.eye(2)[targets] * 0.9 + 0.05, None)
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "auroc", "mcc"):
        assert found[name].value == 1 and found[name].low < 0.75, name


def test_per_class_counts_and_wilson():
    targets = np.array([0] * 20 + [1] * 10 + [2] * 10)
    predicted = np.array([0] * 18 + [1] * 2 + [1] * 10 + [2] * 10)
    found = per_class(SINGLE, targets, np.eye(4)[predicted], None)
    assert [entry["n"] for entry in found] == [20, 10, 10, 0]
    assert found[0]["recall"].value == pytest.approx(0.9) and found[0]["recall"].n == 20
    assert (found[0]["recall"].low, found[0]["recall"].high) == wilson(18, 20)
    assert found[1]["precision"].value == pytest.approx(10 / 12) and found[1]["precision"].n == 12
    assert found[1]["f1"].value == pytest.approx(2 * 10 / 22)
    assert found[3]["recall"] is found[3]["precision"] is found[3]["f1"] is None


def test_per_class_of_labels_and_of_targets():
    task, targets, scores = multi_label(200, np.random.default_rng(0))
    found = per_class(task, targets, scores, None)
    assert [entry["n"] for entry in found] == targets.sum(0).tolist()
    task, targets, scores = regression(200, np.random.default_rng(0))
    found = per_class(task, targets, scores, None)
    assert np.mean([entry["mae"].value for entry in found]) == pytest.approx(
        measure(task, targets, scores, None)["mae"].value
    )


def test_seed_and_resamples_matter_and_the_same_seed_repeats():
    task, targets, scores = regression(100, np.random.default_rng(0))
    first = measure(task, targets, scores, None, seed=0)["r2"]
    assert first == measure(task, targets, scores, None, seed=0)["r2"]
    assert first.low != measure(task, targets, scores, None, seed=1)["r2"].low
    assert first.low != measure(task, targets, scores, None, resamples=500)["r2"].low
    fewer = evaluate_predictions(task, targets, scores, None, EvaluationConfig(resamples=500))["metrics"]["r2"]
    assert fewer["low"] == measure(task, targets, scores, None, resamples=500)["r2"].low


def test_all_metrics_of_a_thousand_rows_take_little_time():
    rng = np.random.default_rng(0)
    task = SingleLabel(tuple(map(str, range(77))))
    targets = rng.integers(77, size=1000)
    scores = task.probabilities(rng.normal(size=(1000, 77)) + 3 * np.eye(77)[targets])
    start = time.process_time()
    evaluate_predictions(task, targets, scores, None, EvaluationConfig())
    assert time.process_time() - start < 2


def test_corrected_t_interval_by_hand():
    found = corrected_t_interval([0.8, 0.9, 0.7, 0.8, 0.8], n_train=80, n_test=20)
    # variance 0.005, times 1/5 + 1/4; t of 4 degrees of freedom 2.776
    assert found.value == pytest.approx(0.8) and found.n == 5
    assert found.high - found.value == pytest.approx(2.776 * np.sqrt(0.005 * 0.45), rel=1e-3)
    alone = spread([0.8, 0.9, 0.7, 0.8, 0.8])
    assert alone.high - alone.value == pytest.approx(2.776 * np.sqrt(0.005 / 5), rel=1e-3)


def test_one_score_has_no_spread():
    with pytest.raises(UserError, match="needs at least 2 scores; found 1. Ask for more folds or seeds."):
        spread([0.9])


@pytest.mark.parametrize("metric", ["log_loss", "brier"])
def test_class_frequencies_are_part_of_the_uncertainty(metric):
    """Classes of unequal loss: with class counts taken as fixed, the spread between the classes would be missing."""
    task, rng = SingleLabel(("a", "b", "c")), np.random.default_rng(0)
    targets = rng.choice(3, size=300, p=[0.6, 0.3, 0.1])
    sure = np.array([0.95, 0.7, 0.3])[targets] + rng.uniform(-0.02, 0.02, 300)
    scores = np.full((300, 3), ((1 - sure) / 2)[:, None])
    scores[np.arange(300), targets] = sure
    terms = -np.log(sure) if metric == "log_loss" else ((scores - np.eye(3)[targets]) ** 2).sum(1)
    found = measure(task, targets, scores, None)[metric] if metric == "log_loss" else brier(task, targets, scores, None)
    expected = 2 * stats.t.ppf(0.975, 299) * terms.std(ddof=1) / np.sqrt(300) / terms.mean()
    assert np.log(found.high / found.low) == pytest.approx(expected, rel=0.08)


def test_a_mean_loss_that_hangs_on_few_examples_has_a_wide_interval():
    """The fewer examples make the loss, the fewer degrees of freedom its error has; of one example nothing is known."""
    task, targets, widths = SingleLabel(("a", "b")), np.arange(200) % 2, []
    for wrong in (1, 3, 60):
        scores = np.where(np.eye(2)[targets] > 0, 0.9999, 0.0001)
        scores[:wrong] = scores[:wrong, ::-1]
        found = brier(task, targets, scores, None)
        terms = ((scores - np.eye(2)[targets]) ** 2).sum(1)
        plain = 2 * stats.t.ppf(0.975, 199) * terms.std(ddof=1) / np.sqrt(200) / terms.mean()
        widths.append(np.log(found.high / found.low) / plain)
    assert np.isnan(widths[0])
    for width, wrong in zip(widths[1:], (3, 60), strict=True):
        step = stats.t.ppf(0.975, wrong - 1) / np.sqrt(wrong) * np.sqrt((1 - wrong / 200) * 200 / 199)
        asymmetry = np.sqrt(1 + step**2 / 16)
        assert width == pytest.approx(stats.t.ppf(0.975, wrong - 1) / stats.t.ppf(0.975, 199) * asymmetry, rel=0.1)


def test_the_upper_end_of_a_mean_loss_is_the_farther_one():
    """The logarithms of mean and end differ by x with x² = step² (1 + x / 2)."""
    loss = MeanLoss(np.random.default_rng(0).exponential(size=40))
    low, high = Draws(40).loss_interval(loss)
    up, down = np.log(high / loss.terms.mean()), np.log(low / loss.terms.mean())
    step = np.sqrt(-up * down)
    assert up + down == pytest.approx(step**2 / 2) and down < 0 < up
    assert MeanLoss(loss.terms, worst=1.1).worst == Draws(40).loss_interval(MeanLoss(loss.terms, worst=1.1))[1]
    root = Draws(40).loss_interval(MeanLoss(loss.terms, root=True))
    assert root == pytest.approx(np.sqrt(loss.terms.mean() * np.array([low, high])))


def test_losses_that_do_not_vary_have_no_interval():
    """No width is not certainty: 30 equal losses say nothing of the losses that the sample does not have."""
    constant = measure(Regression(("y",)), np.arange(30.0)[:, None], np.arange(30.0)[:, None] + 0.5, None)
    assert all(np.isnan(constant[name].low) and np.isnan(constant[name].high) for name in ("mae", "rmse"))


def test_the_f1_of_one_label_does_not_count_examples_that_it_does_not_concern():
    """Five positives among 100, all found: as much is known as of five of five (Lam, Gopal & Qian 2023)."""
    task, targets = MultiLabel(("x",)), (np.arange(100) < 5).astype(np.float32)[:, None]
    low = wilson(5, 5)[0]
    found = measure(task, targets, 0.9 * targets + 0.05, None)["micro_f1"]
    assert found.low == pytest.approx(2 * low / (1 + low))
    assert per_class(task, targets, 0.9 * targets + 0.05, None)[0]["f1"].low == pytest.approx(found.low)
    missed = np.where(np.arange(100) == 0, 0.1, 0.9 * targets[:, 0] + 0.05)[:, None]  # four of five
    low, high = wilson(4, 5)
    found = measure(task, targets, missed, None)["micro_f1"]
    assert (found.low, found.high) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


def test_the_bias_of_average_precision_is_that_of_the_jackknife():
    rng = np.random.default_rng(5)
    positive, score = np.arange(30) < 8, np.round(rng.normal(size=30), 1)
    whole = average_precision_score(positive, score)
    without = [average_precision_score(np.delete(positive, row), np.delete(score, row)) for row in range(30)]
    assert bootstrap.precision_bias(positive, score) == pytest.approx(29 * (np.mean(without) - whole))


def test_a_perfect_label_of_few_positives_is_not_certain():
    actual = (np.arange(100) < 10).astype(float)[:, None]
    low, high = bootstrap.precision_interval(actual, actual)
    assert 0.5 < low < 0.8 and 0.99 < high <= 1
    assert np.isnan(bootstrap.precision_interval(actual * (np.arange(100) < 4)[:, None], actual)).all()


@pytest.mark.parametrize("kind", ["pearson", "spearman", "r2"])
def test_influences_are_derivatives_in_the_weight_of_an_example(kind):
    task, targets, scores = regression(40, np.random.default_rng(3))
    terms = bootstrap.influences(task, targets, scores)[kind] / 40 / 2  # the mean of two targets
    weights = np.ones((80, 40))
    weights[np.arange(40), np.arange(40)] += 1e-4
    weights[40 + np.arange(40), np.arange(40)] -= 1e-4
    found = bootstrap.statistics(task, targets, scores)(weights)[kind]
    if kind == "spearman":  # held ranks: the same order of size and the same examples
        assert np.corrcoef(terms, found[:40] - found[40:])[0, 1] > 0.8
    else:
        assert terms == pytest.approx((found[:40] - found[40:]) / 2e-4, abs=1e-6)


def test_one_example_that_moves_all_leaves_one_degree_of_freedom():
    draws = Draws(50)
    assert draws.freedom(np.eye(50)[0] - 1 / 50) < 1.2
    normal = np.random.default_rng(0).normal(size=50)
    assert 30 < draws.freedom(normal - normal.mean()) <= 49
    together = Draws(50, ["a"] * 40 + [f"g{number}" for number in range(10)])
    assert together.freedom(np.ones(50)) < 1.5  # one large group


@pytest.mark.parametrize("groups", [4, 5])
def test_losses_of_few_groups_are_not_known(groups):
    """Intervals of three groups hold the truth in 92 %; shares keep theirs, which is wide."""
    random, names = np.random.default_rng(0), [f"g{number % groups}" for number in range(60)]
    values = random.normal(size=(60, 1))
    found = measure(Regression(("y",)), values, values + random.normal(size=(60, 1)), names, resamples=100)
    assert [np.isfinite(found[name].low) for name in ("mae", "rmse")] == [groups >= 5] * 2
    classes = SingleLabel(("a", "b"))
    found = measure(classes, np.arange(60) % 2, random.dirichlet([1, 1], 60), names, resamples=100)
    assert np.isfinite(found["log_loss"].low) == (groups >= 5) and np.isfinite(found["accuracy"].low)


def test_an_interval_beyond_all_numbers_is_not_known():
    """Found by the property test of tables: the end of R2 overflowed where one example is nearly all of the loss."""
    draws = SimpleNamespace(grouped=False)
    ends = Draws.interval(draws, "r2", -3.0, 1e6, 2)
    assert np.isnan(ends).all()
    low, high = Draws.interval(draws, "r2", 0.5, 0.1, 50)
    assert -1 < low < 0.5 < high < 1
