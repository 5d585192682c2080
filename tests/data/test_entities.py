"""Words with tags and texts with spans, in every usual form, become texts and entities in characters."""

import json
import logging

import pandas as pd
import pytest

from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig, load_data, load_inputs
from hftransfer.data.read import read_rows
from hftransfer.data.tags import entities_of, scheme_of

ADA = "Ada Lovelace met Charles in London ."
EXPECTED = [(0, 12, "PER"), (17, 24, "PER"), (28, 34, "LOC")]
SCHEMES = {
    "IOB2": "B-PER I-PER O B-PER O B-LOC O",
    "IOB1": "I-PER I-PER O I-PER O I-LOC O",
    "BIOES": "B-PER E-PER O S-PER O S-LOC O",
    "BILOU": "B-PER L-PER O U-PER O U-LOC O",
    "IO": "PER PER O PER O LOC O",
}


def spans_of(label) -> list[tuple]:
    return [(entity["start"], entity["end"], entity["label"]) for entity in label]


def rows_of(path, **named):
    return read_rows(DataConfig(train=str(path), **named))


def as_conll(*sentences: str, between: str = "") -> str:
    return "\n".join(
        "\n".join(f"{word}{between}\t{tag}" for word, tag in zip(ADA.split(), tags.split(), strict=True)) + "\n"
        for tags in sentences
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_of_tags_is_told_and_read(tmp_path, caplog, scheme):
    caplog.set_level(logging.INFO)
    (tmp_path / "train.conll").write_text(as_conll(SCHEMES[scheme], SCHEMES[scheme]))
    read = rows_of(tmp_path / "train.conll")
    assert read.task.type == "tokens" and read.task.names == ("LOC", "PER")
    assert read.frame["input"].tolist() == [ADA, ADA]
    assert spans_of(read.frame["label"][0]) == EXPECTED
    assert f"({scheme})" in caplog.text


def test_neighbours_of_one_type_are_told_apart_where_the_scheme_can():
    for tags in ("B-X B-X O", "I-X B-X O", "S-X S-X O", "U-X U-X O"):
        assert entities_of(tags.split()) == [(0, 1, "X"), (1, 2, "X")]
    assert entities_of("X X O".split(), prefixed=False) == [(0, 2, "X")]
    assert entities_of("B-creative-work I-creative-work".split()) == [(0, 2, "creative-work")]
    assert entities_of("B-X I-Y".split()) == [(0, 1, "X"), (1, 2, "Y")]


def test_schemes_that_look_alike():
    assert scheme_of([["I-X", "B-X", "O"]]) == ("IOB1", 0)  # B stands only between two of a type
    assert scheme_of([["B-X", "O", "I-X"]]) == ("IOB2", 1)  # mostly right, one I continues nothing
    assert scheme_of([["E-mail", "O", "name"]]) == ("IO", 0)


def test_broken_tags_are_counted_in_a_warning(tmp_path, caplog):
    (tmp_path / "train.conll").write_text(as_conll("B-PER I-PER O B-PER O I-LOC O"))
    read = rows_of(tmp_path / "train.conll")
    assert spans_of(read.frame["label"][0]) == EXPECTED and "1 I tags continue no entity" in caplog.text


def test_conll_with_documents_numbers_comments_and_columns_between(tmp_path):
    lines = [
        "-DOCSTART- -X- O O",
        "",
        "# id 1",
        "1 Ada NNP B-PER",
        "2 #ran VB O",
        "",
        "-DOCSTART- -X- O O",
        "",
        "1 in IN O",
        "2 Rome NNP B-LOC",
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    read = rows_of(tmp_path / "train.txt")
    assert read.frame["input"].tolist() == ["Ada #ran", "in Rome"]
    assert [spans_of(label) for label in read.frame["label"]] == [[(0, 3, "PER")], [(3, 7, "LOC")]]
    grouped = read_rows(DataConfig(train=str(tmp_path / "train.txt"), split={"group": "doc"}))
    assert grouped.frame["group"].nunique() == 2


def test_a_line_with_other_columns_is_named(tmp_path):
    (tmp_path / "train.conll").write_text("Ada\tB-PER\nran\n")
    with pytest.raises(
        UserError, match="train.conll, line 2: expected 2 columns as in the lines before, found 1: 'ran'"
    ):
        rows_of(tmp_path / "train.conll")


def test_plain_text_files_are_no_conll(tmp_path):
    from hftransfer.data.tables import is_table

    (tmp_path / "a.txt").write_text("two words\nand more\n\nof this O\n")
    assert not is_table(tmp_path / "a.txt") and not is_table(tmp_path / "missing.txt")


FORMS = {
    "tokens and tags": {"tokens": ADA.split(), "tags": SCHEMES["IOB2"].split()},
    "words and labels": {"words": ADA.split(), "labels": SCHEMES["IOB2"].split()},
    "doccano": {"text": ADA, "label": [list(span) for span in EXPECTED]},
    "prodigy": {"text": ADA, "spans": [{"start": s, "end": e, "label": n, "token_start": 0} for s, e, n in EXPECTED]},
    "spacy": {"text": ADA, "entities": [list(span) for span in EXPECTED]},
    "label studio": {
        "text": ADA, "label": [{"start": s, "end": e, "text": ADA[s:e], "labels": [n]} for s, e, n in EXPECTED],
    },
    "pipeline": {"text": ADA, "entities": [{"start": s, "end": e, "entity_group": n, "score": 0.9} for s, e, n in EXPECTED]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_json_needs_no_option(tmp_path, form):
    empty = {name: [] if isinstance(value, list) else "Nothing here" for name, value in FORMS[form].items()}
    if "text" not in empty:
        empty = {name: ["Nothing", "here"] if name in ("tokens", "words") else ["O", "O"] for name in FORMS[form]}
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, [FORMS[form], empty])))
    read = rows_of(tmp_path / "train.jsonl")
    assert read.task.type == "tokens"
    assert read.frame["input"].tolist() == [ADA, "Nothing here"]
    assert [spans_of(label) for label in read.frame["label"]] == [EXPECTED, []]


def test_spacy_2_pairs(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([[ADA, {"entities": EXPECTED}]] * 2))
    assert spans_of(rows_of(tmp_path / "train.json").frame["label"][0]) == EXPECTED


@pytest.mark.parametrize("saved", ["folder", "parquet"])
def test_datasets_with_class_labels_prefer_entities_to_parts_of_speech(tmp_path, saved):
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    features = datasets.Features({
        "id": datasets.Value("string"), "tokens": datasets.List(datasets.Value("string")),
        "pos_tags": datasets.List(datasets.ClassLabel(names=["NN", "VB"])),
        "ner_tags": datasets.List(datasets.ClassLabel(names=names)),
    })  # fmt: skip
    tags = [names.index(tag) for tag in SCHEMES["IOB2"].split()]
    rows = {"id": ["a", "b"], "tokens": [ADA.split()] * 2, "pos_tags": [[0] * 7] * 2, "ner_tags": [tags] * 2}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    target = tmp_path / ("data" if saved == "folder" else "train.parquet")
    (dataset.save_to_disk if saved == "folder" else dataset.to_parquet)(str(target))
    read = rows_of(target)
    assert read.columns[0].label == ("ner_tags",) and read.frame["id"].tolist() == ["a", "b"]
    assert spans_of(read.frame["label"][0]) == EXPECTED


def test_utf16_offsets_are_converted(tmp_path, caplog):
    text = "😀 Ada in London"
    spans = [
        {"start": 3, "end": 6, "label": "PER", "text": "Ada"},
        {"start": 10, "end": 16, "label": "LOC", "text": "London"},
    ]
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": text, "spans": spans}))
    (label,) = rows_of(tmp_path / "train.jsonl").frame["label"]
    assert [text[e["start"] : e["end"]] for e in label] == ["Ada", "London"] and "UTF-16" in caplog.text


@pytest.mark.parametrize(
    ("span", "said"),
    [
        ({"start": 0, "end": 99, "label": "PER"}, "the span 0 to 99 .PER. .* the text has 10 characters"),
        ({"start": 1, "end": 3, "label": "PER", "text": "Ada"}, "is 'da', where 'Ada' is written beside it"),
        ({"start": 3, "end": 3, "label": "PER"}, "the span 3 to 3"),
    ],
)
def test_spans_outside_of_their_text_are_refused(tmp_path, span, said):
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "Ada is in.", "spans": [span]}))
    with pytest.raises(UserError, match=said):
        rows_of(tmp_path / "train.jsonl")


def test_blanks_and_overlaps_are_said_aloud(tmp_path, caplog):
    spans = [[0, 4, "PER"], [0, 12, "PER"], [17, 25, "PER"]]
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": ADA, "label": spans}))
    (label,) = rows_of(tmp_path / "train.jsonl").frame["label"]
    assert spans_of(label) == [(0, 12, "PER"), (17, 24, "PER")]
    assert "1 spans overlap" in caplog.text and "spans lose the blanks" in caplog.text


def test_tags_that_are_none_of_entities_are_refused(tmp_path):
    table = tmp_path / "train.jsonl"
    table.write_text(json.dumps({"tokens": ["a", "b"], "tags": [1, 2]}))
    with pytest.raises(UserError, match="are numbers without names"):
        rows_of(table)
    table.write_text(json.dumps({"tokens": ["a", "b"], "tags": ["NN", "VB"]}))
    with pytest.raises(UserError, match="have no O for words of no entity"):
        rows_of(table)
    table.write_text(json.dumps({"text": "a b c", "label": "x"}))
    with pytest.raises(UserError, match="data.task=tokens needs a tag for each word"):
        rows_of(table, task="tokens")
    table.write_text(json.dumps(FORMS["doccano"]))
    with pytest.raises(UserError, match="holds entities in texts, which data.task=multi_label does not take"):
        rows_of(table, task="multi_label")


def test_lists_of_labels_beside_texts_stay_labels(tmp_path):
    rows = [{"text": f"some longer text {n}", "labels": ["a", "b"][: 1 + n % 2]} for n in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert rows_of(tmp_path / "train.jsonl").task.type == "multi_label"


def test_texts_of_few_types_are_divided_and_missing_types_left_out(tmp_path):
    rows = [
        {"text": f"{n} Ada", "entities": [[len(str(n)) + 1, len(str(n)) + 4, "PER" if n % 2 else "ORG"]]}
        for n in range(40)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_data(DataConfig(train=str(tmp_path / "train.jsonl")))
    for split in ("train", "validation", "test"):
        part = data.part(split)
        assert {entity["label"] for label in part["label"] for entity in label} == {"PER", "ORG"}


def test_inputs_of_predict_may_be_words(tmp_path):
    (tmp_path / "new.conll").write_text(as_conll(SCHEMES["IOB2"]))
    assert load_inputs([str(tmp_path / "new.conll")], "text")["input"].tolist() == [ADA]
    (tmp_path / "new.jsonl").write_text(json.dumps({"tokens": ADA.split()}))
    assert load_inputs([str(tmp_path / "new.jsonl")], "text")["input"].tolist() == [ADA]


def test_a_frame_from_python(tmp_path):
    frame = pd.DataFrame({"tokens": [ADA.split()] * 2, "tags": [SCHEMES["BILOU"].split()] * 2})
    read = read_rows(DataConfig(), frame)
    assert spans_of(read.frame["label"][0]) == EXPECTED


# --- Label Studio and patches -----------------------------------------------------------------------------------------


def label_studio_task(number: int, *annotations: dict) -> dict:
    return {"id": number, "data": {"text": ADA, "source": "a"}, "annotations": list(annotations), "predictions": []}


def annotation(*spans: tuple[int, int, str], **named) -> dict:
    marked = [{"type": "labels", "value": {"start": start, "end": end, "text": ADA[start:end], "labels": [label]}}
              for start, end, label in spans]  # fmt: skip
    return {"result": [*marked, {"type": "relation", "from_id": "a"}]} | named


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_the_full_export_of_label_studio(tmp_path, suffix):
    tasks = [
        label_studio_task(1, annotation(*EXPECTED)),
        label_studio_task(2, annotation((0, 3, "PER")), annotation(*EXPECTED)),
        label_studio_task(3, annotation(*EXPECTED), annotation((0, 3, "PER"), was_cancelled=True)),
        label_studio_task(4, annotation(*EXPECTED, ground_truth=True), annotation((0, 3, "PER"))),
        label_studio_task(5, annotation()),
    ]
    lines = json.dumps(tasks) if suffix == "json" else "\n".join(map(json.dumps, tasks))
    (tmp_path / f"export.{suffix}").write_text(lines)
    read = rows_of(tmp_path / f"export.{suffix}")
    assert read.task.type == "tokens" and read.frame["input"].tolist() == [ADA] * 5
    assert [spans_of(label) for label in read.frame["label"]] == [EXPECTED] * 4 + [[]]
    assert read.frame["id"].tolist() == ["1", "2", "3", "4", "5"]


def patched(tmp_path, label) -> tuple:
    rows = [{"text": f"{ADA} {number}", "label": [[0, 12, "PER"], [28, 34, "LOC"]]} for number in range(12)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = load_data(DataConfig(train=str(tmp_path / "data.jsonl"))).frame
    row = before[before["split"] == "train"].iloc[0]
    decision = {"id": row["id"], "digest": row["digest"], "action": "relabel", "label": label}
    (tmp_path / "p.jsonl").write_text(json.dumps(decision))
    data = load_data(DataConfig(train=str(tmp_path / "data.jsonl"), patch=str(tmp_path / "p.jsonl")))
    return data, data.frame.set_index("id").loc[row["id"], "label"]


def entity(start: int, end: int, label: str) -> dict:
    return {"start": start, "end": end, "label": label}


def test_a_patch_replaces_the_entities_of_a_text(tmp_path):
    wanted = [entity(0, 3, "PER"), entity(28, 34, "LOC")]  # as many of each type as before
    data, label = patched(tmp_path, wanted[::-1])
    assert label == wanted and data.patch["relabelled"] == {"train": 1}
    assert patched(tmp_path, [])[1] == []
    same, _ = patched(tmp_path, [entity(0, 12, "PER"), entity(28, 34, "LOC")])
    assert same.patch["relabelled"] == {}


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([entity(0, 99, "PER")], "leaves its text of"),
        ([entity(0, 12, "PER"), entity(4, 12, "LOC")], "overlaps the one before it"),
        ([entity(0, 12, "PRE")], "Unknown label 'PRE'"),
        ("PER", "expected a list of entities with start, end and label"),
    ],
)
def test_a_patch_of_impossible_entities_is_refused(tmp_path, label, said):
    with pytest.raises(UserError, match=said):
        patched(tmp_path, label)


def documents(count: int) -> list[dict]:
    return [
        {"text": f"{ADA} {number}", "label": [[0, 12, "PER"]], "document": f"d{number % count}"} for number in range(60)
    ]


def test_sentences_of_one_document_stay_on_one_side(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, documents(12))))
    frame = load_data(DataConfig(train=str(tmp_path / "data.jsonl"), split={"copies": "apart"})).frame
    assert frame["group"].nunique() == 12 and (frame.groupby("group")["split"].nunique() == 1).all()
    assert set(frame["split"]) == {"train", "validation", "test"}
    assert "sentences of one document ('document', 12 documents) stay on one side" in caplog.text


def test_few_documents_are_no_groups(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, documents(3))))
    read = rows_of(tmp_path / "data.jsonl", input="text")
    assert read.frame["group"].isna().all() and "3 documents are too few to divide" in caplog.text


def test_documents_of_two_files_are_different_ones(tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, documents(12))))
    read = rows_of(tmp_path / "train.jsonl", test=str(tmp_path / "test.jsonl"))
    assert read.frame.groupby("group")["split"].nunique().eq(1).all() and read.frame["group"].nunique() == 24
