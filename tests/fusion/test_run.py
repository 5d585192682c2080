"""A run on several inputs: what it reports, what its folder answers, and what its parts are."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file

import hftransfer
from hftransfer.core.errors import UserError
from hftransfer.evaluation import EvaluationConfig
from hftransfer.evaluation.contributions import combinations_of, sentences
from hftransfer.prediction.evaluate import evaluate
from hftransfer.runs.reader import RecordedRun
from hftransfer.train import run
from tests.fusion.conftest import configuration
from tests.support import several


@pytest.fixture(scope="module")
def predictor(fused):
    return hftransfer.load(fused)


@pytest.fixture(scope="module")
def recorded(fused):
    table = pd.read_parquet(fused / "predictions.parquet")
    return table[table["split"] == "test"].reset_index(drop=True)


def found_in(contributions, *names):
    return next(each.value for each in contributions.combinations if set(each.inputs) == set(names))


def test_each_input_adds_what_is_known_of_it(fused):
    """The label is colour and topic: one of them alone guesses half; the price tells the colour; the brand tells nothing."""
    found = RecordedRun.open(fused).metrics.contributions
    assert len(found.combinations) == 15 and found.how == "test examples"
    assert found_in(found, "brand") < 0.4
    assert all(found_in(found, name) < 0.7 for name in ("photo", "caption", "price"))
    assert found_in(found, "caption", "price") > 0.8
    gains = {gain.input: gain for gain in found.gains if len(gain.to) == 3}
    assert gains["caption"].low > 0.1
    assert gains["brand"].low < 0 < gains["brand"].high
    one = next(gain for gain in found.gains if gain.input == "photo" and gain.to == ("caption", "brand"))
    assert one.difference == pytest.approx(
        found_in(found, "photo", "caption", "brand") - found_in(found, "caption", "brand")
    )
    assert one.low < one.difference < one.high
    assert any(
        line.startswith("caption adds ") and line.endswith("to photo, price and brand.") for line in sentences(found)
    )


def test_all_inputs_are_what_the_run_is_measured_by(fused):
    run = RecordedRun.open(fused)
    all_of_them = found_in(run.metrics.contributions, *several.KINDS)
    assert all_of_them == pytest.approx(run.metrics.test["accuracy"]["value"])


def test_the_folder_gives_the_recorded_answers(fused, listings, predictor, recorded):
    found = predictor.predict(str(listings))
    ids = pd.read_parquet(fused / "splits.parquet")["id"].tolist()
    found = found.set_axis(ids).loc[recorded["id"]]
    columns = [name for name in recorded if name.startswith("logit:")]
    np.testing.assert_allclose(found[columns].to_numpy(), recorded[columns].to_numpy(), atol=2e-3)
    assert found["prediction"].tolist() == recorded["prediction"].tolist()


def test_the_run_checks_its_folder_before_it_is_complete(fused):
    found = RecordedRun.open(fused).record.self_check
    assert found["examples"] == 16 and found["max_difference"] <= found["tolerance"]


def test_a_folder_that_answers_otherwise_is_not_complete(listings, monkeypatch, unchecked):
    from hftransfer.probe.fused import FusedHead

    write = FusedHead.write
    monkeypatch.setattr(FusedHead, "write", lambda head, folder: write(replace(head, weight=1.1 * head.weight), folder))
    config = configuration(listings.parent, listings, {"photo": "image", "price": "number"})
    output = listings.parent / "otherwise"
    with pytest.raises(UserError, match="The saved folder is not the evaluated model"):
        run(config.model_copy(update={"output": str(output)}))
    assert not output.exists()


def test_other_data_are_evaluated_without_the_training_examples(fused, listings, recorded):
    found = evaluate(fused, str(listings), {}, EvaluationConfig(resamples=100))
    counts = RecordedRun.open(fused).record.data.counts
    assert found["metrics"]["accuracy"]["n"] == counts["test"] + counts["validation"]


def test_missing_inputs_get_the_training_mean_and_a_mark(fused, predictor):
    record = RecordedRun.open(fused).record
    assert {each.name: sum(each.missing.values()) for each in record.inputs} == dict.fromkeys(several.KINDS, 8)
    layout = predictor.head.layout
    assert all(block.marked for block in layout.blocks)
    frame = predictor.frame([{"caption": "the goal", "price": 5.0, "brand": "acme"}])
    features = layout.matrix(predictor.values(frame))[0]
    photo = features[layout.slices["photo"]]
    assert photo[-1] == 1 and features[layout.slices["caption"]][-1] == 0
    np.testing.assert_allclose(photo[:-1], predictor.head.mean[layout.slices["photo"]][:-1], rtol=1e-4, atol=1e-6)


def test_an_example_without_any_input_has_an_error_and_no_answer(predictor):
    found = predictor.predict([{"price": 5.0}, {}])
    assert found["error"].tolist()[1] == "all inputs are missing" and found["prediction"].notna().tolist() == [
        True,
        False,
    ]


def test_a_picture_that_cannot_be_read_is_an_error(predictor, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    found = predictor.predict([{"price": 5.0}, {"photo": str(tmp_path / "broken.png"), "price": 5.0}])
    assert found["error"].tolist()[1].startswith("photo: ")


def test_a_category_that_training_did_not_have_is_no_category(predictor, caplog):
    layout = predictor.head.layout
    features = layout.matrix(predictor.values(predictor.frame([{"brand": "never seen", "price": 5.0}])))[0]
    assert not features[layout.slices["brand"]].any()
    assert "never seen" in caplog.text


def test_inputs_from_python_are_tables_pictures_and_values(predictor, listings):
    row = pd.read_csv(listings).iloc[0]
    with Image.open(listings.parent / row["photo"]) as image:
        mapping = row[list(several.KINDS)].to_dict() | {"photo": image.copy()}
    table = pd.DataFrame([mapping | {"photo": str(listings.parent / row["photo"])}])
    np.testing.assert_allclose(
        predictor.predict([mapping]).filter(like="logit:"), predictor.predict(table).filter(like="logit:"), atol=1e-4
    )
    with pytest.raises(UserError, match="colour"):
        predictor.predict([{"colour": "red"}])
    with pytest.raises(UserError, match="no column 'brand'"):
        predictor.predict(table.drop(columns="brand"))


@pytest.mark.parametrize(("name", "task"), [("photo", "image-classification"), ("caption", "text-classification")])
def test_each_model_is_plain_and_is_the_probe_of_its_input(fused, name, task):
    from transformers import pipeline

    folder = fused / "models" / name
    rows = pd.read_parquet(folder / "predictions.parquet").query("split == 'test'").head(4)
    inputs = pd.read_parquet(folder / "splits.parquet").set_index("id").loc[rows["id"], "input"].tolist()
    plain = pipeline(task, str(folder / "model"), top_k=4)
    for found, (_, row) in zip(plain(inputs), rows.iterrows(), strict=True):
        assert {each["label"]: each["score"] for each in found} == pytest.approx(
            {label: row[f"score:{label}"] for label in (each["label"] for each in found)}, abs=2e-3
        )


@pytest.mark.parametrize("name", ["photo", "caption"])
def test_frozen_tensors_are_those_of_the_checkpoint(fused, listings, name):
    before = load_file(listings.parent / name / "model.safetensors")
    after = load_file(fused / "models" / name / "model" / "model.safetensors")
    plain = {key.removeprefix("timm_model."): value for key, value in after.items()}
    known = {key.removeprefix("timm_model."): value for key, value in before.items()}
    # The head is solved, and the pooler hands the mean of the tokens on.
    backbone = [key for key in known if not any(part in key for part in ("fc.", "classifier", "pooler"))]
    assert len(backbone) > 10 and all(np.array_equal(known[key], plain[key]) for key in backbone)
    assert not any(
        group.trainable for group in RecordedRun.open(fused).freeze_check.layer_groups if "head" not in group.name
    )


@pytest.mark.parametrize("command", ["push", "export", "review", "--explain"])
def test_what_several_inputs_do_not_have_yet_is_refused_in_one_sentence(fused, command):
    recorded = RecordedRun.open(fused)
    with pytest.raises(
        UserError, match=rf"{command} does not take several inputs \(photo, caption, price, brand\) yet"
    ):
        recorded.require(command)


def test_a_strategy_that_trains_is_refused(listings):
    config = configuration(listings.parent, listings, several.KINDS)
    config = config.model_copy(update={"output": str(listings.parent / "full")})
    from hftransfer.strategies import FullStrategy

    with pytest.raises(UserError, match="strategy full does not take several inputs"):
        run(config.model_copy(update={"strategy": FullStrategy()}))


def test_an_input_that_no_example_has_is_refused(listings):
    table = listings.parent / "without.csv"
    pd.read_csv(listings).assign(caption=None).to_csv(table, index=False)
    config = configuration(listings.parent, table, several.KINDS)
    with pytest.raises(UserError, match="Fewer than two training examples have the input caption"):
        run(config.model_copy(update={"output": str(listings.parent / "without")}))


def test_numbers_are_predicted_in_their_units(listings, unchecked):
    """The label is a number, of which the price tells a known part and the colour of the picture the rest."""
    frame = pd.read_csv(listings)
    frame["price"] = np.random.default_rng(0).normal(50, 1, len(frame))
    frame["label"] = 1000 + 200 * frame["price"] + 200 * frame["label"].str.startswith("red")
    table = listings.parent / "numbers.csv"
    frame.to_csv(table, index=False)
    done = run(configuration(listings.parent, table, {"photo": "image", "price": "number"}, "regression"))
    found = RecordedRun.open(done.folder).metrics.contributions
    assert found_in(found, "price") == pytest.approx(100, rel=0.2)  # the spread of what the colour tells
    assert found_in(found, "photo", "price") < 0.8 * found_in(found, "price") < found_in(found, "photo")
    assert found.metric == "rmse" and all("improves the RMSE of" in line for line in sentences(found))
    answers = done.predictor.predict(str(table))
    assert np.corrcoef(answers["score:label"], frame["label"])[0, 1] > 0.9


def test_several_labels_are_told_by_several_inputs(listings, unchecked):
    frame = pd.read_csv(listings)
    frame["label"] = [
        f"{label}|cheap" if price < 10 else label for label, price in zip(frame["label"], frame["price"], strict=True)
    ]
    table = listings.parent / "labels.csv"
    frame.to_csv(table, index=False)
    config = configuration(
        listings.parent, table, {"caption": "text", "photo": "image", "price": "number"}, "multi_label"
    )
    done = run(config.model_copy(update={"data": config.data.model_copy(update={"separator": "|"})}))
    assert done.metrics["test"]["micro_f1"]["value"] > 0.6
    assert done.metrics["contributions"]["metric"] == "micro_f1"


def test_many_inputs_are_measured_alone_left_out_and_together():
    names = tuple("abcdef")
    assert len(combinations_of(names[:4])) == 15
    assert sorted(map(len, combinations_of(names))) == [1] * 6 + [5] * 6 + [6]


def test_the_weights_are_plain_numbers(fused):
    about = json.loads((fused / "fusion.json").read_text())
    weights = load_file(fused / "fusion.safetensors")
    assert [each["name"] for each in about["inputs"]] == list(several.KINDS)
    assert weights["weight"].shape == (4, about["inputs"][-1]["columns"][1])
    assert about["inputs"][3]["categories"] == ["acme", "bolt", "core"]


def test_each_input_has_a_checkpoint_with_options_of_its_own():
    from hftransfer.config import parse_overrides, with_overrides

    typed = [
        "data.input={photo: image, caption: text}",
        "model.photo=timm/x",
        "model.photo.image_size=64",
        "model.caption=b",
    ]
    config = with_overrides({"data": {"train": "x"}}, parse_overrides(typed))
    assert config.model.inputs["photo"].name == "timm/x" and config.model.inputs["photo"].image_size == 64
    assert config.model.inputs["caption"].name == "b" and config.model.name == "auto"
    with pytest.raises(UserError, match="Unknown field model.fhoto"):
        with_overrides({"data": {"train": "x"}}, parse_overrides([typed[0], "model.fhoto=x"]))


def test_one_checkpoint_for_two_inputs_is_refused(listings):
    config = configuration(listings.parent, listings, several.KINDS)
    model = config.model.model_copy(update={"inputs": {}, "name": "somewhere"})
    with pytest.raises(
        UserError, match=r"several inputs \(photo, caption\): name a checkpoint for each, model.photo=…"
    ):
        run(config.model_copy(update={"model": model, "output": str(listings.parent / "one")}))


def test_a_run_of_pictures_says_which_columns_it_leaves_aside(listings, caplog):
    from hftransfer.data import DataConfig, load_data

    with caplog.at_level("INFO"):
        load_data(DataConfig(train=str(listings), label="label", on_error="skip"))
    assert "not read are 'caption', 'price', 'brand'" in caplog.text
    assert "data.input={photo: image, caption: text, price: number, brand: category}" in caplog.text
