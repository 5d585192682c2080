"""Divisions: stratified, repeatable, groups whole, nearly unmoved by new rows, and reusable as a file."""

import logging

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig, SplitConfig, load_data
from hftransfer.data.groups import join_copies
from hftransfer.data.splits import divide, take_examples
from hftransfer.tasks import Task, make_task

SHARES = {"test": 0.2, "validation": 0.15}


def rows(labels, groups=None) -> pd.DataFrame:
    labels = list(labels)
    return pd.DataFrame(
        {
            "id": [f"id{number}" for number in range(len(labels))],
            "group": groups if groups is not None else [None] * len(labels),
            "label": pd.Series(labels, dtype=object),
        }
    ).astype({"group": object})


def task(type_, *names) -> Task:
    return make_task(type_, names)


def save(tmp_path, frame, name="data.csv") -> str:
    frame.to_csv(tmp_path / name, index=False)
    return str(tmp_path / name)


def reviews(count: int, start: int = 0) -> pd.DataFrame:
    numbers = range(start, start + count)
    return pd.DataFrame({"text": [f"a review of thing {n}" for n in numbers], "label": ["ab"[n % 2] for n in numbers]})


def test_single_label_shares_hold_in_every_class():
    labels = ["a"] * 200 + ["b"] * 100 + ["c"] * 40
    split = pd.Series(divide(rows(labels), task("single_label", "a", "b", "c"), SHARES, 0))
    table = pd.crosstab(pd.Series(labels), split)
    assert table["test"].to_dict() == {"a": 40, "b": 20, "c": 8}
    assert table["validation"].to_dict() == {"a": 30, "b": 15, "c": 6}


@pytest.mark.parametrize(
    ("size", "expected"), [(2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (20, (13, 4, 3))]
)
def test_small_classes_keep_one_for_training_first_then_one_for_each_part(size, expected):
    split = list(divide(rows(["a"] * size + ["b"] * 50), task("single_label", "a", "b"), SHARES, 0)[:size])
    assert tuple(split.count(name) for name in ("train", "test", "validation")) == expected


def test_seed_changes_the_split_and_nothing_else_does():
    frame, kind = rows(["a", "b"] * 50), task("single_label", "a", "b")
    first = divide(frame, kind, SHARES, 0)
    assert (first == divide(frame, kind, SHARES, 0)).all()
    assert (first != divide(frame, kind, SHARES, 1)).any()
    order = np.random.default_rng(0).permutation(100)
    assert (divide(frame.iloc[order], kind, SHARES, 0) == first[order]).all()


def test_appended_rows_move_only_ids_at_the_borders():
    kind = task("single_label", "a", "b")
    before = divide(rows(["a", "b"] * 200), kind, SHARES, 0)
    after = divide(rows(["a", "b"] * 210), kind, SHARES, 0)[:400]
    # Ten new rows in each of two classes, two borders in each: a fresh division would move 200 of 400.
    assert (before != after).sum() <= 16


def test_regression_parts_cover_the_range():
    values = np.random.default_rng(0).exponential(size=400)
    split = divide(rows(values), task("regression", "y"), SHARES, 0)
    assert abs((split == "test").sum() - 80) <= 5
    deciles = np.quantile(values, np.linspace(0, 1, 11)[1:-1])
    counts = np.bincount(np.digitize(values[split == "test"], deciles), minlength=10)
    assert counts.min() >= 7 and counts.max() <= 9


def test_multi_label_shares_hold_for_every_label():
    rng = np.random.default_rng(0)
    names = "abcdef"
    chances = [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]
    labels = [[n for n, p in zip(names, chances, strict=True) if rng.random() < p] for _ in range(1000)]
    split = divide(rows(labels), task("multi_label", *names), SHARES, 0)
    targets = task("multi_label", *names).encode_all(labels)
    for part, share in SHARES.items():
        held = targets[split == part].sum(0) / targets.sum(0)
        assert np.abs(held - share).max() < 0.05, (part, held)
        assert abs((split == part).mean() - share) < 0.02


def test_groups_stay_whole_and_classes_balanced():
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 120, 900))
    labels = [("a", "b", "c")[g % 3 if g % 7 else 0] for g in groups]
    split = divide(rows(labels, [f"g{g}" for g in groups]), task("single_label", "a", "b", "c"), SHARES, 0)
    assert (pd.Series(split).groupby(groups).nunique() == 1).all()
    table = pd.crosstab(pd.Series(labels), pd.Series(split), normalize="index")
    assert np.abs(table["test"] - 0.2).max() < 0.04 and np.abs(table["validation"] - 0.15).max() < 0.04


def test_rows_without_group_are_their_own():
    groups = ["g"] * 10 + [None] * 90
    split = divide(rows(["a", "b"] * 50, groups), task("single_label", "a", "b"), SHARES, 0)
    assert len(set(split[:10])) == 1 and set(split[10:]) == {"train", "test", "validation"}


def test_the_only_group_of_a_class_goes_to_training(tmp_path, caplog):
    frame = reviews(100).assign(author=[f"p{n % 10}" for n in range(100)])
    rare = pd.DataFrame({"text": [f"rare text number {n}" for n in range(6)], "label": "c", "author": "solo"})
    path = save(tmp_path, pd.concat([frame, rare]))
    data = load_data(DataConfig(train=path, label="label", input="text", split=SplitConfig(group="author")))
    assert set(data.frame["split"][data.frame["label"] == "c"]) == {"train"}
    assert data.frame.groupby("group")["split"].nunique().max() == 1
    assert "The test part holds no example of: c." in caplog.text


def test_group_column_changes_the_division(tmp_path):
    path = save(tmp_path, reviews(100).assign(author=[f"p{n // 10}" for n in range(100)]))
    plain = load_data(DataConfig(train=path, label="label", input="text")).frame
    assert plain.assign(author=[f"p{n // 10}" for n in range(100)]).groupby("author")["split"].nunique().max() > 1


def test_test_is_cut_from_train_when_only_validation_is_given(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train, validation = save(tmp_path, reviews(100)), save(tmp_path, reviews(20, 100), "v.csv")
    data = load_data(DataConfig(train=train, validation=validation))
    assert data.frame["split"].value_counts().to_dict() == {"train": 80, "test": 20, "validation": 20}
    assert "Splits given by the data: train, validation; cut from its training rows: test (0.2)." in caplog.text


def test_shares_are_followed_and_may_be_zero(tmp_path):
    path = save(tmp_path, reviews(100))
    counts = load_data(DataConfig(train=path, split=SplitConfig(test=0.5, validation=0))).frame["split"].value_counts()
    assert counts.to_dict() == {"train": 50, "test": 50}
    with pytest.raises(ValidationError, match="must leave a share for training"):
        SplitConfig(test=0.6, validation=0.4)


@pytest.mark.parametrize("as_folder", [True, False])
def test_split_file_keeps_every_id_where_it_was(tmp_path, as_folder):
    first = load_data(DataConfig(train=save(tmp_path, reviews(100)), split=SplitConfig(seed=3)))
    first.frame[["id", "split", "group"]].to_parquet(tmp_path / "splits.parquet")
    reference = str(tmp_path if as_folder else tmp_path / "splits.parquet")
    shuffled = save(tmp_path, reviews(100).sample(frac=1, random_state=0), "shuffled.csv")
    again = load_data(DataConfig(train=shuffled, split=SplitConfig(file=reference)))
    assert again.frame.set_index("id")["split"].to_dict() == first.frame.set_index("id")["split"].to_dict()


def test_rows_that_the_split_file_does_not_know(tmp_path):
    first = load_data(DataConfig(train=save(tmp_path, reviews(100))))
    first.frame[["id", "split"]].to_parquet(tmp_path / "s.parquet")
    longer = save(tmp_path, reviews(110), "longer.csv")
    with pytest.raises(UserError) as caught:
        load_data(DataConfig(train=longer, split=SplitConfig(file=str(tmp_path / "s.parquet"))))
    assert "s.parquet does not know 10 of 110 rows, such as '" in str(caught.value)
    assert "Let them join the training part with data.split.new_rows=train, or divide anew" in str(caught.value)
    config = SplitConfig(file=str(tmp_path / "s.parquet"), new_rows="train")
    joined = load_data(DataConfig(train=longer, split=config)).frame
    assert set(joined["split"][100:]) == {"train"}
    assert list(joined["split"][:100]) == list(first.frame["split"])


def test_split_files_that_cannot_be_used(tmp_path):
    path = save(tmp_path, reviews(100))

    def fails(match, file):
        with pytest.raises(UserError, match=match):
            load_data(DataConfig(train=path, split=SplitConfig(file=str(file))))

    fails("split.file: There is no file or folder .*nowhere.parquet", tmp_path / "nowhere.parquet")
    pd.DataFrame({"id": ["x"], "split": ["train"]}).to_parquet(tmp_path / "other.parquet")
    fails("knows none of the 100 rows: it belongs to other data", tmp_path / "other.parquet")
    pd.DataFrame({"id": ["x"], "part": ["train"]}).to_parquet(tmp_path / "columns.parquet")
    fails("is no table with the columns id and split", tmp_path / "columns.parquet")
    pd.DataFrame({"id": ["x"], "split": ["left"]}).to_parquet(tmp_path / "words.parquet")
    fails(r"found \['left'\]", tmp_path / "words.parquet")


def test_shares_that_leave_nothing_to_train_on(tmp_path):
    frame = reviews(20).assign(label=["a|b", "b"] * 10)
    shares = SplitConfig(test=0.84, validation=0.15)
    with pytest.raises(UserError, match="Nothing is left to train on: data.split.test=0.84 and data.split.validation=0.15 "
                       "take all 20 rows. Make them smaller."):  # fmt: skip
        load_data(DataConfig(train=save(tmp_path, frame), task="multi_label", separator="|", split=shares))


def test_train_examples_is_a_stratified_part_of_the_training_rows(tmp_path):
    frame = pd.concat([reviews(200), reviews(100, 200).assign(label="a")])
    path = save(tmp_path, frame)
    whole = load_data(DataConfig(train=path)).frame
    small = load_data(DataConfig(train=path, train_examples=30))
    assert small.part("train")["label"].value_counts().to_dict() == {"a": 20, "b": 10}
    assert set(small.part("train")["id"]) <= set(whole["id"][whole["split"] == "train"])
    assert list(small.part("test")["id"]) == list(whole["id"][whole["split"] == "test"])
    other = load_data(DataConfig(train=path, train_examples=30, split=SplitConfig(seed=1)))
    assert set(other.part("train")["id"]) != set(small.part("train")["id"])
    assert len(load_data(DataConfig(train=path, train_examples=999)).frame) == 300


def test_train_examples_hold_every_class_and_grow_in_place():
    labels = ["a"] * 90 + ["b"] * 9 + ["c"]
    frame, kind = rows(labels), task("single_label", "a", "b", "c")
    assert set(frame.loc[take_examples(frame, kind, 3, 0), "label"]) == {"a", "b", "c"}
    with pytest.raises(UserError, match="at least 3 are needed"):
        take_examples(frame, kind, 2, 0)
    numbers = rows([str(n) for n in range(60)])
    assert (
        len(take_examples(numbers, task("regression", "y"), 5, 0)) == 5
    )  # numbers have no classes to hold one of each
    multi = rows([["a"], ["a", "b"], ["a"], ["c"], ["a"], ["d", "a"]] * 5)
    kept = take_examples(multi, task("multi_label", *"abcd"), 4, 0)
    assert {name for label in multi.loc[kept, "label"] for name in label} == set("abcd")


def pool(count: int, seed: int = 0) -> list[str]:
    """Texts that are nothing alike."""
    rng = np.random.default_rng(seed)
    return [" ".join("".join(rng.choice(list("abcdefghijklmnopqrst"), 6)) for _ in range(12)) for _ in range(count)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("seed", range(3))
def test_equal_and_nearly_equal_inputs_stay_on_one_side(tmp_path, seed, suffix):
    texts = pool(200)
    texts += [*texts[:40], *(text.upper() + "!" for text in texts[40:80])]
    frame = pd.DataFrame({"text": texts, "label": ["ab"[n % 2] for n in range(280)]})
    path = tmp_path / f"data.{suffix}"
    path.write_text(frame.to_csv(index=False) if suffix == "csv" else frame.to_json(orient="records", lines=True))
    data = load_data(DataConfig(train=str(path), split=SplitConfig(seed=seed))).frame
    assert (data.groupby("group")["split"].nunique() == 1).all() and data["group"].nunique() == 80
    assert (data["split"] == "test").sum() == pytest.approx(56, abs=2)
    assert (data["split"] == "validation").sum() == pytest.approx(42, abs=2)
    table = pd.crosstab(data["label"], data["split"])
    assert (table.loc["a"] - table.loc["b"]).abs().max() <= 3
    apart = load_data(DataConfig(train=str(path), split=SplitConfig(seed=seed, copies="apart"))).frame
    assert apart["group"].isna().all()


def test_copies_are_said_once_and_given_splits_are_left_as_they_are(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    texts = pool(60)
    frame = pd.DataFrame({"text": texts + texts[:6], "label": ["ab"[n % 2] for n in range(66)]})
    load_data(DataConfig(train=save(tmp_path, frame)))
    assert caplog.text.count("Copies stay on one side of our splits: 12 equal and 12 nearly equal inputs") == 1
    given = frame.assign(split=["train"] * 60 + ["test"] * 6)
    data = load_data(DataConfig(train=save(tmp_path, given), split=SplitConfig(validation=0))).frame
    assert list(data["split"]) == list(given["split"])


def copies(sizes, labels):
    """A frame of groups of the given sizes and labels."""
    names = [f"g{n}" for n, size in enumerate(sizes) for _ in range(size)]
    return rows([label for label, size in zip(labels, sizes, strict=True) for _ in range(size)], names)


@pytest.mark.parametrize("seed", range(5))
def test_a_group_of_copies_larger_than_a_part_is_for_training(seed):
    frame = copies([30, *[1] * 70], ["a", *"ab" * 35])
    split = divide(frame, task("single_label", "a", "b"), SHARES, seed, strict=True)
    assert set(split[:30]) == {"train"} and 15 <= (split == "test").sum() <= 25


@pytest.mark.parametrize("sizes", [[2], [3], [2, 2], [1, 2], [5, 5], [2, 2, 2]])
def test_every_class_of_copies_keeps_a_group_for_training(sizes):
    frame = copies([*sizes, *[1] * 40], [*"a" * len(sizes), *"b" * 40])
    for seed in range(5):
        split = divide(frame, task("single_label", "a", "b"), SHARES, seed, strict=True)
        assert (split[: sum(sizes)] == "train").any()


def test_copies_join_given_groups_unless_all_become_one():
    frame = rows(["a"] * 100, [f"p{n // 2}" for n in range(100)])
    none = np.empty((0, 2), int)
    joined = join_copies(frame, {"equal": np.array([[0, 9]]), "nearly equal": none})
    assert joined[0] == joined[1] == joined[8] == joined[9] and joined.nunique() == 49
    chain = np.array([[n, n + 1] for n in range(99)])
    assert list(join_copies(frame, {"equal": chain, "nearly equal": none})) == list(frame["group"])


def test_near_copies_that_are_one_template_are_divided_but_equal_ones_are_not(caplog):
    frame = rows(["a"] * 100)
    chain = np.array([[n, n + 1] for n in range(59)])
    joined = join_copies(frame, {"equal": np.array([[0, 1], [0, 2]]), "nearly equal": chain})
    assert joined.notna().sum() == 3 and joined[:3].nunique() == 1
    assert "60 inputs are nearly equal to more than 5 others: they are taken for one template" in caplog.text


def test_a_split_file_restores_the_groups(tmp_path):
    """Groups of group=auto were lost in runs that repeat a division: folds and intervals took copies as independent."""
    texts = pool(60)
    frame = pd.DataFrame({"text": texts + texts[:6], "label": ["ab"[n % 2] for n in range(66)]})
    path = save(tmp_path, frame)
    first = load_data(DataConfig(train=path, split=SplitConfig(group="auto"))).frame
    first.to_parquet(tmp_path / "splits.parquet")
    for split in (SplitConfig(file=str(tmp_path)), SplitConfig(file=str(tmp_path), group="auto")):
        again = load_data(DataConfig(train=path, split=split)).frame
        assert list(again["group"].dropna()) == list(first["group"].dropna()) and again["group"].notna().sum() == 12
