"""The model card says what the run folder holds, nothing more, and marks what only a person knows."""

import json

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

from hftransfer.core.errors import UserError
from hftransfer.core.files import write_json
from hftransfer.data import LabelledData
from hftransfer.evaluation.kinds import titled
from hftransfer.pipeline import outputs
from hftransfer.publish.card import BLANK, blanks, card_facts, render_card, table_cell, write_card
from hftransfer.runs.reader import RecordedRun
from hftransfer.strategies import STRATEGIES
from hftransfer.tasks import SingleLabel
from tests.support.run_folders import MULTI, SINGLE, VALUES, make_run

SHA = "0123456789abcdef0123456789abcdef01234567"


def card_of(folder, **options) -> str:
    return render_card(RecordedRun.open(folder), **options)


def change(file, **values) -> None:
    write_json(file, json.loads(file.read_text()) | values)


def rows_of(card: str, heading: str) -> dict[str, list[str]]:
    """The table that begins with `heading`: first cell -> the others."""
    table = card.split(f"| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize("task", [SINGLE, MULTI, VALUES])
@pytest.mark.parametrize("modality", ["text", "image"])
def test_every_kind_has_a_card_whose_numbers_are_the_run_s(task, modality, tmp_path):
    folder = make_run(tmp_path / "run", task, modality, rows=60)
    card = write_card(folder, "me/model").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())["test"]
    table = rows_of(card, "metric")
    assert set(table) == {titled(name) for name in metrics}
    for name, found in metrics.items():
        value, span, rows = table[titled(name)]
        assert float(value) == pytest.approx(found["value"], abs=6e-4) and int(rows) == found["n"]
        assert [float(end) for end in span.split(" to ")] == pytest.approx([found["low"], found["high"]], abs=6e-4)
    assert f'pipeline("{modality}-classification", "me/model")' in card
    assert "{{" not in card and "None" not in card.replace("top_k=None", "") and "\n\n\n" not in card


def test_hub_reads_its_metadata(tmp_path):
    folder = make_run(tmp_path / "topics", rows=60, strategy="lora")
    about = json.loads((folder / "run.json").read_text())
    change(folder / "run.json", checkpoint=about["checkpoint"] | {"source": f"google-bert/bert-base-uncased@{SHA}"})
    data = ModelCard(card_of(folder)).data
    assert data.library_name == "transformers" and data.pipeline_tag == "text-classification"
    assert data.base_model == "google-bert/bert-base-uncased" and "lora" in data.tags
    accuracy = json.loads((folder / "metrics.json").read_text())["test"]["accuracy"]
    result = next(found for found in data.eval_results if found.metric_type == "accuracy")
    assert result.metric_value == pytest.approx(accuracy["value"], abs=1e-6) and result.dataset_split == "test"
    assert f"{accuracy['low']:.3f} to {accuracy['high']:.3f}" in result.metric_name


def test_local_base_is_no_base_model_of_the_hub(tmp_path):
    folder = make_run(tmp_path / "run", rows=40)
    about = json.loads((folder / "run.json").read_text())
    change(folder / "run.json", checkpoint=about["checkpoint"] | {"source": "/home/somebody/models/bert"})
    (folder / "config.yaml").write_text("data: {train: /home/somebody/data.csv}\nmodel: {name: ~/models/bert}\n")
    card = card_of(folder)
    assert ModelCard(card).data.base_model is None and "Made from `bert`" in card
    assert "somebody" not in card and "train: data.csv" in card


def test_confusion_matrix_counts_the_predictions(tmp_path):
    folder = make_run(tmp_path / "run", signal=1.5)
    part = RecordedRun.open(folder).part("test")
    table = rows_of(card_of(folder), "true \\ predicted")
    guesses = part.scores.argmax(1)
    for index, name in enumerate(SINGLE.names):
        expected = [int(((part.targets == index) & (guesses == other)).sum()) for other in range(4)]
        assert [int(cell) for cell in table[name]] == expected
    (true, guess, rows), *_ = card_facts(RecordedRun.open(folder))["mistakes"]
    assert f"Most frequent mistakes: {true} taken for {guess} ({rows})" in card_of(folder)


def test_matrix_of_many_classes_is_left_out(tmp_path):
    many = SingleLabel(tuple(f"class{index}" for index in range(13)))
    assert "true \\ predicted" not in card_of(make_run(tmp_path / "run", many, rows=60))


def test_weak_class_is_named_and_equal_ones_are_not(tmp_path):
    folder = make_run(tmp_path / "run", rows=60)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "Known weak points" not in card_of(folder)
    worst = metrics["per_class"]["test"][2]
    worst["f1"] = {"value": 0.2, "low": 0.1, "high": 0.35, "n": 20}
    write_json(folder / "metrics.json", metrics)
    assert f"**Known weak points.** {worst['name']}: F1 0.200 (0.100 to 0.350)." in card_of(folder)


def test_run_without_test_part_says_what_its_numbers_are(tmp_path):
    folder = make_run(tmp_path / "run", rows=60)
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["test"], metrics["per_class"]["test"]
    write_json(folder / "metrics.json", metrics)
    card = card_of(folder)
    assert "On the validation part: this part chose the best checkpoint: expect it to flatter." in card
    assert "which neither trained nor chose anything" not in card


def test_blanks_are_marked_and_listed(tmp_path):
    card = card_of(make_run(tmp_path / "run", rows=40))
    found = blanks(card)
    assert len(found) == card.count(BLANK) == 6
    assert {"Intended use", "Source and licence of the data"} <= set(found)
    assert len(blanks(card.replace(f"Intended use: {BLANK}", "Intended use: sorting mail"))) == 5


def test_certificate_is_shown(tmp_path):
    folder = make_run(tmp_path / "run", rows=40)
    assert "Same answer everywhere" not in card_of(folder)
    stage = {"name": "pipeline", "max_difference": 2e-7, "disagreements": [], "seconds_per_input": 0.012, "bytes": 4e6}
    stages = [stage, stage | {"name": "onnx-int8", "disagreements": ["row-1"]}]
    write_json(folder / "certificate.json", {"rows": 16, "stages": stages})
    table = rows_of(card_of(folder), "form")
    assert table["pipeline"] == ["2.0e-07", "16 of 16", "12", "4.0"] and table["onnx-int8"][1] == "15 of 16"


def test_what_a_person_filled_in_stays(tmp_path):
    folder = make_run(tmp_path / "run", rows=40)
    page = write_card(folder)
    page.write_text(page.read_text().replace(f"Intended use: {BLANK}", "Intended use: sorting letters: by topic"))
    card = card_of(folder, repo_id="me/model")
    assert "- Intended use: sorting letters: by topic\n" in card and len(blanks(card)) == 5
    assert write_card(folder).read_text().count(BLANK) == 5


@pytest.mark.parametrize(
    ("data", "config", "words"),
    [
        ({"given": []}, {}, "The validation and test rows were drawn at random, stratified (seed 0)."),
        (
            {"given": ["train", "test"]},
            {"seed": 3, "group": "author"},
            "The test rows came as such with the data. The validation rows were drawn at random, stratified, groups kept together (seed 3).",
        ),
        ({"given": []}, {"file": "splits.parquet"}, "The parts are those of an earlier run's split file."),
        ({"copies": 0, "leaked": 0}, {}, "No row is an exact copy of another."),
        (
            {"copies": 3, "leaked": 1},
            {},
            "3 rows are exact copies of another row; 1 of the held-out rows stands in the training part as well.",
        ),
        (
            {"copies": 3, "leaked": 0},
            {},
            "3 rows are exact copies of another row; none of the held-out rows stand in the training part as well.",
        ),
        (
            {"fitted": ["train", "validation"]},
            {},
            "The head was fitted on the training and the validation rows together.",
        ),
    ],
)
def test_how_the_data_were_divided(data, config, words, tmp_path):
    folder = make_run(tmp_path / "run", rows=40)
    assert words not in card_of(folder)
    change(folder / "run.json", data=json.loads((folder / "run.json").read_text())["data"] | data)
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"train": "x.csv", "split": config}}))
    assert words in card_of(folder)


def test_copies_are_counted():
    digests = ["a", "a", "b", "a", "c", "d"]
    splits = ["train", "train", "train", "test", "test", "validation"]
    data = LabelledData(pd.DataFrame({"digest": digests, "split": splits}), "text", SINGLE, "")
    assert outputs._copies(data) == {"copies": 2, "leaked": 1}


def test_cut_texts_are_no_matter_of_images(tmp_path):
    assert "5 % of the texts were cut" in card_of(make_run(tmp_path / "texts", rows=40, truncated=0.05))
    assert "of the texts were cut" not in card_of(
        make_run(tmp_path / "images", modality="image", rows=40, truncated=0.0)
    )


def test_the_configuration_of_the_card_pushes_nowhere(tmp_path):
    folder = make_run(tmp_path / "run", rows=40)
    (folder / "config.yaml").write_text("data: {train: x.csv}\npush_to_hub: {repo_id: me/model}\n")
    assert "push_to_hub" not in card_of(folder)


def test_labels_cannot_break_the_page(tmp_path):
    nasty = SingleLabel(("a|b", "<script>x</script>", "[click](http://x)", "two\nlines"))
    card = card_of(make_run(tmp_path / "run", nasty, rows=60))
    body = card.split("---\n", 2)[2].split("```yaml")[0]
    assert "<script>" not in body and "[click]" not in body
    lines = [line for line in body.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines) and len(rows_of(card, "class")) == 4
    assert table_cell("a|b\n<c>") == r"a\|b \<c\>"


def test_config_in_the_card_is_valid_yaml(tmp_path):
    folder = make_run(tmp_path / "run", rows=40)
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert yaml.safe_load(card_of(folder).split("```yaml\n")[1].split("```")[0]) == stored


@pytest.mark.parametrize(
    ("trainable", "words"),
    [
        ((0, 0, 0, 300), "12.5 % of the parameters were trained: those of classifier."),
        ((0, 700, 700, 300), "70.8 % of the parameters were trained, from layer.0 to classifier."),
    ],
)
def test_what_was_trained_is_read_from_the_receipt(trainable, words, tmp_path):
    assert words in card_of(make_run(tmp_path / "run", rows=40, trainable=trainable))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_names_its_paper(strategy, tmp_path):
    assert "arXiv:" in card_of(make_run(tmp_path / "run", rows=40, strategy=strategy)).split("## How to use")[0]


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="There is no run at"):
        write_card(tmp_path / "nothing")


def test_a_class_that_was_never_predicted_has_a_dash_for_its_precision(tmp_path):
    folder = make_run(tmp_path / "run", rows=60)
    metrics = json.loads((folder / "metrics.json").read_text())
    never = metrics["per_class"]["test"][0]
    change(
        folder / "metrics.json", per_class=metrics["per_class"] | {"test": [never | {"precision": None, "f1": None}]}
    )
    _, precision, recall, f1, _ = rows_of(card_of(folder), "class")[table_cell(never["name"])]
    assert (precision, f1) == ("–", "–") and recall != "–"
