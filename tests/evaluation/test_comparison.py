"""Comparing runs: paired, corrected, and no winner that the rows cannot show."""

import io
import json
import shutil
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from hftransfer.core.errors import UserError
from hftransfer.evaluation.comparison import adjust_pairs, as_table, compare, compare_parts, equal_pairs, mid_p
from hftransfer.runs.reader import Part, RecordedRun
from hftransfer.tasks import Regression, SingleLabel
from tests.support.run_folders import MULTI, VALUES, make_run


def decide_by_hand(run, right):
    """Overwrite a run's test scores so that row i is answered right where `right` says so."""
    path = run / "predictions.parquet"
    table = pd.read_parquet(path)
    task, rows = RecordedRun.open(run).task, (table["split"] == "test").to_numpy()
    truth = task.encode_all(table.loc[rows, "label"].tolist())
    scores = np.full((rows.sum(), task.head_size), 0.05)
    scores[np.arange(rows.sum()), np.where(right, truth, (truth + 1) % task.head_size)] = 0.85
    for column, name in enumerate(task.names):
        table.loc[rows, f"score:{name}"] = scores[:, column]
    table.to_parquet(path, index=False)
    return run


def two_runs(tmp_path, rows, gained, lost, **settings):
    """Two runs that answer 80 % right, but for `gained` rows that only b and `lost` rows that only a has right."""
    a, b = (make_run(tmp_path / name, rows=rows, **settings) for name in "ab")
    base = np.arange(rows) < 0.8 * rows
    first, second = base.copy(), base.copy()
    second[-gained:] |= gained > 0
    second[:lost] = False
    return decide_by_hand(a, first), decide_by_hand(b, second)


def test_mcnemar_on_counts_set_by_hand(tmp_path):
    found = compare(two_runs(tmp_path, 200, gained=15, lost=3))
    (pair,) = found.pairs
    assert (len(pair.gained), len(pair.lost)) == (15, 3)
    assert pair.difference == pytest.approx(12 / 200)
    assert pair.p_value == pair.p_holm == pytest.approx(stats.binomtest(15, 18).pvalue - stats.binom.pmf(15, 18, 0.5))
    assert pair.low > 0 and pair.separated and pair.rows_needed is None
    assert found.runs[0].name == "b" and found.level_with_best == ["b"]
    assert found.verdict == "b is best: accuracy separates it from every other run on 200 test rows."


def test_a_difference_that_is_noise_has_no_winner(tmp_path):
    found = compare(two_runs(tmp_path, 200, gained=8, lost=4))
    (pair,) = found.pairs
    assert not pair.separated and pair.low < 0 < pair.high
    assert found.level_with_best == ["b", "a"]
    assert found.verdict.startswith("No winner: 200 test rows do not separate b and a by accuracy. The nearest")


def test_rows_needed_agree_with_the_published_formula(tmp_path):
    """10 % discordance and 2 points of difference need 1,958 rows for 80 % power."""
    (pair,) = compare(two_runs(tmp_path, 500, gained=30, lost=20)).pairs
    assert pair.rows_needed == pytest.approx(1958, rel=0.02)


def test_rows_needed_give_the_power_they_promise(tmp_path):
    (pair,) = compare(two_runs(tmp_path, 200, gained=15, lost=9)).pairs
    rng, shown = np.random.default_rng(0), 0
    for _ in range(400):
        gained, lost, _ = rng.multinomial(pair.rows_needed, [15 / 200, 9 / 200, 176 / 200])
        shown += stats.binomtest(gained, gained + lost).pvalue < 0.05
    assert 0.72 <= shown / 400 <= 0.88


def test_equal_runs_are_level_and_no_number_of_rows_is_promised(tmp_path):
    (pair,) = compare(two_runs(tmp_path, 100, gained=0, lost=0)).pairs
    assert pair.p_value == 1 and pair.rows_needed is None and not pair.separated
    assert pair.low < 0 < pair.high  # that no row changed is not certainty


def test_adjusted_p_values_by_hand():
    """Of three runs, either all three pairs are equal or one: the factors are 3, 1, 1."""
    assert adjust_pairs([0.01, 0.04, 0.03], 3) == pytest.approx([0.03, 0.04, 0.03])
    assert adjust_pairs([0.5], 2) == pytest.approx([0.5])
    assert adjust_pairs([0.9, 0.5, 0.6], 3) == pytest.approx([1.0, 1.0, 1.0])


def test_the_numbers_of_equal_pairs_are_those_of_the_paper():
    """Shaffer 1986, table 1."""
    assert equal_pairs(3) == {0, 1, 3}
    assert equal_pairs(4) == {0, 1, 2, 3, 6}
    assert equal_pairs(5) == {0, 1, 2, 3, 4, 6, 10}


@pytest.mark.parametrize("runs", [2, 3, 5, 7])
def test_adjusted_p_values_are_never_above_those_of_holm_nor_below_their_own(runs):
    rng = np.random.default_rng(runs)
    for _ in range(50):
        found = rng.random(runs * (runs - 1) // 2) ** 4
        order = np.argsort(found)
        holm = np.minimum(np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1)), 1)
        adjusted = np.array(adjust_pairs(found, runs))[order]
        assert (adjusted <= holm + 1e-12).all() and (adjusted >= found[order]).all() and (np.diff(adjusted) >= 0).all()


@pytest.mark.parametrize("better", [0, 0.15])
def test_false_differences_stay_at_the_level_whether_or_not_one_run_is_better(better):
    rng, alarms, draws = np.random.default_rng(1), 0, 600
    pairs = list(combinations(range(4), 2))
    for _ in range(draws):
        right = rng.random((4, 150)) < 0.75 + better * np.eye(4)[0][:, None]
        found = [mid_p(int((right[j] & ~right[i]).sum()), int((right[i] & ~right[j]).sum())) for i, j in pairs]
        adjusted = adjust_pairs(found, 4)
        alarms += any(p < 0.05 for (i, _), p in zip(pairs, adjusted, strict=True) if i > 0 or not better)
    assert alarms / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


def test_more_runs_make_each_pair_harder_to_separate(tmp_path):
    """All three can be equal, so the smallest p-value counts three times."""
    a, b = two_runs(tmp_path, 200, gained=9, lost=2)
    like_a = decide_by_hand(make_run(tmp_path / "c", rows=200), np.arange(200) < 160)
    alone, together = compare([a, b]).pairs[0], compare([a, b, like_a]).pairs[0]
    assert alone.separated and not together.separated
    assert together.p_holm == pytest.approx(3 * alone.p_value) and alone.p_value == together.p_value


def test_two_runs_that_differ_leave_one_pair_that_can_be_equal(tmp_path):
    """b differs from c, so a equals at most one of them. Holm's factor 2 for the pair a, b would not separate it."""
    a, b = two_runs(tmp_path, 200, gained=9, lost=2)
    c = decide_by_hand(make_run(tmp_path / "c", rows=200), np.arange(200) < 158)
    found = {(pair.first, pair.second): pair for pair in compare([a, b, c]).pairs}
    of_holm = sorted(pair.p_value for pair in found.values())[1] * 2
    assert of_holm == pytest.approx(2 * found["a", "b"].p_value) and of_holm > 0.05
    assert found["a", "b"].separated and found["a", "b"].p_holm < of_holm


def test_chance_separates_one_comparison_in_twenty(tmp_path):
    """Equally good runs: the false alarms of the test stay at or under its level."""
    from hftransfer.evaluation.comparison import _Pairs
    from hftransfer.runs.reader import Part

    task, rng, alarms = Regression(("value",)), np.random.default_rng(0), 0
    frame = pd.DataFrame({"id": [str(i) for i in range(80)], "group": None})
    for _ in range(200):
        truth = rng.normal(size=(80, 1))
        parts = [Part(frame, truth, truth + rng.normal(size=(80, 1))) for _ in "ab"]
        values = [float(np.sqrt(((p.scores - truth) ** 2).mean())) for p in parts]
        alarms += _Pairs(task, parts, ["a", "b"], "rmse", values, 200).all()[0].separated
    assert alarms <= 20


@pytest.mark.parametrize("task", [MULTI, VALUES], ids=lambda task: task.type)
def test_other_tasks_by_the_paired_bootstrap(tmp_path, task):
    good, bad = make_run(tmp_path / "good", task, signal=3), make_run(tmp_path / "bad", task, signal=1, model_seed=2)
    found = compare([bad, good])
    assert found.runs[0].name == "good" and found.level_with_best == ["good"]
    again = make_run(tmp_path / "again", task, signal=3, model_seed=3)
    assert compare([good, again]).level_with_best != ["good"]


def test_the_pairing_sees_more_than_two_separate_intervals(tmp_path):
    found = compare(two_runs(tmp_path, 200, gained=15, lost=3))
    best, other = (run.metrics["accuracy"] for run in found.runs)
    assert best.low < other.high and found.pairs[0].separated


def test_any_metric_of_the_task_can_decide(tmp_path):
    runs = [make_run(tmp_path / "a", signal=3), make_run(tmp_path / "b", signal=2, model_seed=2)]
    assert compare(runs, metric="log_loss").runs[0].name == "a"
    with pytest.raises(UserError, match=r"'acuracy' is not measured for single_label tasks. Did you mean 'accuracy'\?"):
        compare(runs, metric="acuracy")


def test_groups_make_the_test_careful(tmp_path):
    alone = compare(two_runs(tmp_path / "rows", 200, gained=15, lost=3)).pairs[0]
    groups = [f"patient {i // 20}" for i in range(700)]
    together = compare(two_runs(tmp_path / "groups", 200, gained=15, lost=3, groups=groups)).pairs[0]
    assert together.p_value > alone.p_value


def test_the_order_of_rows_does_not_matter(tmp_path):
    runs = two_runs(tmp_path, 200, gained=15, lost=3)
    before = compare(runs)
    table = pd.read_parquet(runs[1] / "predictions.parquet")
    table.sample(frac=1, random_state=0).to_parquet(runs[1] / "predictions.parquet", index=False)
    assert compare(runs) == before


def test_costs_are_read_from_the_folders(tmp_path):
    found = compare(two_runs(tmp_path, 100, gained=5, lost=1, trainable=(0, 0, 0, 300)))
    run = found.runs[0]
    assert (run.seconds, run.model_bytes, run.strategy) == (14.5, 4000, "full")
    assert run.trainable_share == pytest.approx(300 / 2400)


def test_different_rows_are_refused_in_words(tmp_path):
    a, b = make_run(tmp_path / "a", rows=100), make_run(tmp_path / "b", rows=120)
    with pytest.raises(
        UserError, match="only on the same test rows: .*a has 100, .*b has 120, and 50 are in both. Train"
    ):
        compare([a, b])


def test_other_labels_are_refused_in_words(tmp_path):
    a, b = make_run(tmp_path / "a", rows=100, seed=0), make_run(tmp_path / "b", rows=100, seed=1)
    with pytest.raises(UserError, match="test rows have another label in .*b than in .*a, such as 'row-0[0-9]+'"):
        compare([a, b])


def test_other_tasks_and_no_runs_are_refused_in_words(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", MULTI)
    with pytest.raises(UserError, match="same task can be compared: .*a has single_label with 4 outputs"):
        compare([a, b])
    with pytest.raises(UserError, match="A comparison needs at least 2 runs; found 1."):
        compare([a])
    with pytest.raises(UserError, match="There is no run at"):
        compare([a, tmp_path / "none"])


def test_the_table_shows_the_verdict_and_json_is_plain(tmp_path):
    a, b = two_runs(tmp_path, 200, gained=8, lost=4)
    found = compare([a, b])
    out = io.StringIO()
    Console(file=out, width=160).print(as_table(found))
    text = out.getvalue()
    assert "No winner" in text and "│ a       │    +0.0200 │" in text and "Right in b only: 8 (" in text
    assert found.pairs_of_best == compare([b, a]).pairs_of_best  # whichever was named first
    assert json.loads(json.dumps(found.to_dict()))["level_with_best"] == ["b", "a"]


def test_on_eighty_columns_names_and_numbers_stay_whole(tmp_path):
    a, b = two_runs(tmp_path, 100, gained=5, lost=1)
    shutil.copytree(b, long := tmp_path / "clothes-gradual-unfreezing-again")
    Console(file=(out := io.StringIO()), width=80).print(as_table(compare([a, long])))
    runs = out.getvalue().split("accuracy of")[0]
    assert "…" not in runs and max(map(len, runs.splitlines())) <= 80
    assert {"0.800", "0.840", "seconds", "trained", "clothes-gradua"} <= set(runs.split())


def test_two_folders_of_one_name_are_told_apart(tmp_path):
    a, b = two_runs(tmp_path, 100, gained=5, lost=1)
    shutil.copytree(a, tmp_path / "other" / "a")
    names = [run.name for run in compare([a, tmp_path / "other" / "a"]).runs]
    assert len(set(names)) == 2


def test_class_frequencies_are_part_of_the_uncertainty_of_a_difference():
    """One run is better on one class by as much as it is worse on the other: the class counts decide which one wins."""
    task, targets, random = SingleLabel(("a", "b")), np.arange(100) % 2, np.random.default_rng(0)
    frame = pd.DataFrame({"id": [str(row) for row in range(100)], "group": None})

    def part(sure: tuple[float, float]) -> Part:
        right = np.array(sure)[targets] + random.uniform(-1e-3, 1e-3, 100)
        scores = np.where(np.eye(2)[targets] > 0, right[:, None], 1 - right[:, None])
        return Part(frame, targets, scores)

    (pair,) = compare_parts(task, [part((0.9, 0.6)), part((0.6, 0.9))], ["one", "two"], "log_loss")
    expected = 2 * stats.t.ppf(0.975, 99) * np.log(1.5) / np.sqrt(99)
    assert pair.high - pair.low == pytest.approx(expected, rel=0.08)
