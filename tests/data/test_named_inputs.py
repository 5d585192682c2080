"""Several columns that are one text: which they are, what stands in the text, and what cannot be read."""

import logging

import pandas as pd
import pytest

import hftransfer
from hftransfer.config import checked, parse_overrides
from hftransfer.core.errors import UserError
from hftransfer.data import load_data
from hftransfer.data.config import DataConfig
from hftransfer.data.named_inputs import NamedInputs, kind_of_column
from hftransfer.runs.reader import RecordedRun
from tests.support.runs import configuration, train

KINDS = {"caption": "text", "price": "number", "brand": "category"}


def listings(count=40):
    return pd.DataFrame(
        {
            "caption": [f"a lamp for the table number {row}" for row in range(count)],
            "price": [1.5 + row % 2 * 100 for row in range(count)],
            "brand": [("acme", "globex")[row // 2 % 2] for row in range(count)],
            "label": [("cheap", "dear")[row % 2] for row in range(count)],
        }
    )


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "listings.csv"
    listings().to_csv(path, index=False)
    return str(path)


def read(table, **config):
    return load_data(DataConfig(train=table, **config))


@pytest.mark.parametrize("wanted", [KINDS, list(KINDS)])
def test_values_stand_before_the_text_whether_their_kinds_are_named_or_found(table, wanted):
    data = read(table, input=wanted)
    assert data.frame["input"].iloc[1] == "price: 101.5 | brand: acme | caption: a lamp for the table number 1"
    assert (data.modality, data.kinds) == ("text", KINDS)


def test_the_command_line_takes_a_mapping():
    (wanted,) = parse_overrides(["data.input={caption: text, price: number}"]).values()
    assert wanted == {"caption": "text", "price": "number"}


def test_a_name_on_the_command_line_stays_what_was_typed():
    assert parse_overrides(["data.input=no"]) == {"data.input": "no"}


def test_one_named_input_is_a_plain_one(table):
    data = read(table, input={"caption": "text"})
    assert data.frame["input"].iloc[0] == "a lamp for the table number 0" and data.kinds is None


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2.5, None], "number"), (["1", "2"], "number"), (["acme", "globex"], "category"), ([True, False], "category"),
     (["a lamp for the table", "a red chair of wood"], "text"), (["a.png", "b.png"], "image")],
)  # fmt: skip
def test_the_kind_of_a_column_is_found(values, kind):
    assert kind_of_column(pd.Series(values, dtype=object)) == kind


@pytest.mark.parametrize(
    ("value", "written"), [(12.0, "12"), (0.000123456, "0.0001235"), (1234567, "1235000"), ("3.50", "3.5"), (-2, "-2")]
)
def test_numbers_have_four_digits(value, written):
    assert NamedInputs({"price": "number"}).text({"price": value}) == f"price: {written}"


def test_what_is_missing_is_left_out_and_counted(caplog):
    caplog.set_level(logging.INFO)
    frame = listings(3).assign(price=[None, 2, float("nan")], brand=["", "acme", "acme"])
    texts = NamedInputs(KINDS).texts(frame, "listings.csv")
    assert texts[0] == "caption: a lamp for the table number 0"
    assert "listings.csv: missing inputs, of 3 rows: price 2, brand 1." in caplog.text


def test_a_value_that_is_no_number_is_named(table):
    frame = listings().astype(object)
    frame.loc[2, "price"] = "cheap"
    frame.to_csv(table, index=False)
    with pytest.raises(UserError, match=r"column 'price' holds 'cheap' in row 3, which is no number \(1 such rows\)"):
        read(table, input=KINDS)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"caption": "words"}, "expected one of text, image, audio, number, category as the kind of caption"),
        ({"caption": "text", "prise": "number"}, "no column 'prise'. Did you mean 'price'?"),
        ({"caption": "text", "label": "category"}, "cannot be input and label at once"),
    ],
)
def test_a_wrong_mapping_is_one_sentence(table, wanted, said):
    with pytest.raises(UserError) as error:
        load_data(checked({"data": {"train": table, "label": "label", "input": wanted}}).data)
    assert said in str(error.value)


def test_a_run_of_texts_says_which_columns_it_leaves_aside(table, caplog):
    caplog.set_level(logging.INFO)
    read(table)
    assert "not read are 'price', 'brand'; data.input={caption: text, price: number, brand: category} reads them" in (
        caplog.text
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    listings().to_csv(folder / "listings.csv", index=False)
    config = configuration("probe", "text", folder)
    config = config.model_copy(update={"data": DataConfig(train=str(folder / "listings.csv"), input=list(KINDS))})
    train(config)
    return config.output_folder


def test_the_run_knows_its_columns_and_answers_tables_mappings_and_texts(run, tmp_path):
    assert RecordedRun(run).named_inputs == KINDS
    predictor = hftransfer.load(run)
    new = listings(4).drop(columns="label").rename(columns={"price": "Price"})
    new.to_csv(tmp_path / "new.csv", index=False)
    by_table = predictor.predict(str(tmp_path / "new.csv"))
    by_mapping = predictor.predict(listings(4).drop(columns="label").to_dict("records"))
    by_text = predictor.predict(NamedInputs(KINDS).texts(listings(4), "here"))
    logits = [column for column in by_table if column.startswith("logit:")]
    for other in (by_mapping, by_text):
        pd.testing.assert_frame_equal(by_table[logits], other[logits])


def test_the_run_is_evaluated_on_a_table_with_the_same_columns(run, tmp_path):
    from hftransfer.evaluation import EvaluationConfig
    from hftransfer.prediction.evaluate import evaluate

    fresh = listings(40).assign(price=lambda frame: frame["price"] + 0.25)
    fresh.to_csv(tmp_path / "fresh.csv", index=False)
    found = evaluate(run, str(tmp_path / "fresh.csv"), {}, EvaluationConfig())
    predicted = hftransfer.load(run).predict(NamedInputs(KINDS).texts(fresh, "here"))["prediction"]
    assert found["metrics"]["accuracy"]["value"] == pytest.approx((predicted == fresh["label"]).mean()), found.keys()


def test_a_table_without_one_of_the_columns_is_refused(run, tmp_path):
    listings(4).drop(columns=["label", "brand"]).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(UserError, match="no column 'brand'"):
        hftransfer.load(run).predict(str(tmp_path / "new.csv"))


def test_a_mapping_with_another_name_is_refused(run):
    with pytest.raises(UserError, match="The model reads caption, price, brand; 'prize' is none of these"):
        hftransfer.load(run).predict([{"caption": "a lamp", "prize": 3}])


def test_the_demo_has_a_field_for_each_column(run):
    from hftransfer.apps.demo import build_demo
    from hftransfer.apps.serving import serve

    app = build_demo(str(run), examples=False)
    labels = [block.label for block in app.blocks.values() if type(block).__name__ == "Textbox"]
    assert labels[:3] == list(KINDS)
    frame, _ = serve(run, examples=False).frame("a lamp", "3.50", "")
    assert frame["input"].tolist() == ["price: 3.5 | caption: a lamp"]


def test_a_field_for_a_number_takes_no_word(run):
    from hftransfer.apps.serving import serve

    with pytest.raises(UserError, match="Expected a number as price, found 'much'"):
        serve(run, examples=False).frame("a lamp", "much", "acme")


def test_next_reads_the_columns_of_the_run(run, tmp_path):
    from hftransfer.planning.labels.pool import next_to_label

    fresh = listings(12).assign(caption=[f"a chair for the garden {row}" for row in range(12)])
    fresh.drop(columns="label").to_csv(tmp_path / "pool.csv", index=False)
    found = next_to_label(str(tmp_path / "pool.csv"), 3, str(run), None)
    assert found["input"].str.startswith("price: ").all()
