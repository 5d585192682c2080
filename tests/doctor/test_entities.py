"""Each fault of entities gives its finding, and texts without it give none."""

import json

from hftransfer.data import DataConfig
from hftransfer.doctor import Finding, examine
from hftransfer.doctor.entities import check_entities, labels_by_context
from hftransfer.doctor.examination import gather_facts

CITIES = ["Paris", "London", "Oslo", "Rome", "Cairo", "Quito", "Lima", "Delhi", "Seoul", "Tunis", "Accra", "Minsk"]
PEOPLE = ["Ada", "Alan", "Grace", "Edsger", "Barbara", "Donald", "Frances", "Ken", "Radia", "Tim", "Vint", "Hedy"]


def sentences(count: int = 48) -> list[dict]:
    """Sentences of different words: someone meets someone else in a city."""
    rows = []
    for number in range(count):
        words = [PEOPLE[number % 12], f"went{number}", "to", CITIES[number % 12], f"at{number}", "noon"]
        rows.append({"tokens": words, "tags": ["B-PER", "O", "O", "B-LOC", "O", "O"]})
    return rows


def found(tmp_path, rows: list[dict], **named) -> dict[str, Finding]:
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    findings = examine(DataConfig(train=str(tmp_path / "data.jsonl"), **named))
    return {each.id: each for each in findings if each.id.startswith(("entity-", "label-", "leak"))}


def test_sound_entities_give_no_finding(tmp_path):
    assert found(tmp_path, sentences()) == {}


def test_tags_that_continue_nothing(tmp_path):
    rows = sentences()
    rows[0]["tags"][3] = "I-LOC"
    (repaired,) = found(tmp_path, rows)["entity-repaired"].rows
    assert repaired == "1 I tags continue no entity of their type: each begins one"


def test_spans_that_overlap(tmp_path):
    spans = [[0, 3, "PER"], [0, 8, "PER"]]
    rows = [{"text": f"Ada King number {place}", "label": spans if place else spans[1:]} for place in range(24)]
    assert "23 spans overlap a longer one" in found(tmp_path, rows)["entity-repaired"].message


def test_names_with_two_types(tmp_path):
    rows = sentences()
    for row in (rows[3], rows[15]):  # two of the four places of Rome
        row["tags"][3] = "B-PER"
    assert "entity-types" not in found(tmp_path, rows)  # four places are few
    rows.append({"tokens": ["Nobody", "saw", "Rome", "again"], "tags": ["O", "O", "B-LOC", "O"]})
    assert found(tmp_path, rows)["entity-types"].rows == ("'Rome': LOC (3), PER (2)",)


def test_equal_words_in_equal_contexts(tmp_path):
    rows = sentences()
    rows.append({"tokens": ["They", "came", "to", "Oslo", "at2", "once"], "tags": ["O"] * 6})
    contradiction = found(tmp_path, rows)["entity-contradiction"]
    assert contradiction.rows == ("'to Oslo at2': 'Oslo' is LOC (1), no entity (1)",)


def test_words_inside_of_another_entity_are_no_contradiction():
    texts = {
        "in New York now": [{"start": 3, "end": 11, "label": "LOC"}],
        "the New York Times": [{"start": 4, "end": 18, "label": "ORG"}],
        "x in New York now": [{"start": 5, "end": 13, "label": "LOC"}],
    }
    contexts = labels_by_context(texts)
    assert contexts["in", ("New", "York"), "now"] == {"LOC": 2}
    assert all(len(labels) <= 1 for labels in contexts.values())


def test_types_that_a_part_lacks(tmp_path):
    rows = [row | {"split": "train" if number < 36 else "test"} for number, row in enumerate(sentences())]
    assert found(tmp_path, rows) == {}
    for row in rows[36:]:
        row["tags"] = ["B-PER", *["O"] * 5]
    assert found(tmp_path, rows)["entity-type-missing"].message == "Parts lack a type: test: LOC."


def test_the_same_sentence_in_two_parts(tmp_path):
    rows = [row | {"split": "train" if number < 36 else "test"} for number, row in enumerate(sentences())]
    rows[40] |= {name: rows[4][name] for name in ("tokens", "tags")}
    assert "1 of 12 test rows" in found(tmp_path, rows)["leak"].message


def test_rare_types_and_equal_sentences_with_other_entities(tmp_path):
    rows = sentences()
    rows[0]["tags"][5] = "B-TIME"
    rows.append({"tokens": rows[1]["tokens"], "tags": ["O"] * 6})
    faults = found(tmp_path, rows)
    assert faults["label-rare"].rows == ("TIME: 1",)
    assert faults["label-conflict"].message.endswith("different labels: 1.")


def test_entities_longer_than_a_window(tmp_path):
    class Tokenizer:
        model_max_length = 16

        def tokenize(self, text: str) -> list[str]:
            return text.split()

    rows = sentences()
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(check_entities(gather_facts(DataConfig(train=str(tmp_path / "data.jsonl"))), Tokenizer())) == []
    rows.append({"tokens": ["word"] * 20, "tags": ["B-LOC", *["I-LOC"] * 19]})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (long,) = check_entities(gather_facts(DataConfig(train=str(tmp_path / "data.jsonl"))), Tokenizer())
    assert long.message == "Entities longer than the 16 tokens of a window: 1."
