"""Texts word by word: the words of the pipeline, windows without loss, and labels at first tokens."""

import random
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from transformers import AutoTokenizer

from hftransfer.core.errors import UserError
from hftransfer.features.passes import ComputeConfig, predict_logits
from hftransfer.modalities import kind_of
from hftransfer.modalities.words import WordsKind
from hftransfer.models.heads import final_linear
from hftransfer.tasks import SingleLabel, Tokens
from tests.support import tiny

TASK = Tokens(("sport", "money"))
FAMILIES = ["bert", "roberta", "albert", "deberta-v2", "gpt2"]
TEXTS = [
    "goal, match",
    "The bank's profit (today)",
    "été  in the   market.",
    "😀 team 😀team",
    "x",
    "law-party/vote\tband",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoints")
    return lambda family: place / family if (place / family).exists() else tiny.TEXT_FAMILIES[family](place / family)


def bound(folder):
    return WordsKind().bind(AutoTokenizer.from_pretrained(folder))


def encoded(modality, *texts):
    return modality.encode(pd.DataFrame({"input": list(texts)}))


def long_text(words: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(tiny.WORDS[rng.randrange(4)]) for _ in range(words))


def test_texts_alone_have_words():
    assert kind_of("text").for_task(SingleLabel(("a", "b"))) is kind_of("text")
    assert kind_of("text").for_task(TASK).auto_class_name == "AutoModelForTokenClassification"
    with pytest.raises(UserError, match="classifies the words of texts, and the data are images"):
        kind_of("image").for_task(TASK)


@pytest.mark.parametrize("family", FAMILIES)
def test_words_are_those_of_the_pipeline(checkpoint, family):
    """A model that calls every token B-money: the pipeline then gives each word as an entity of its own."""
    folder = checkpoint(family)
    modality = bound(folder)
    model = _answering(folder, TASK.tags.index("B-money"))
    ask = transformers.pipeline(
        "token-classification", model, tokenizer=modality.tokenizer, aggregation_strategy="first"
    )
    for text, item in zip(TEXTS, encoded(modality, *TEXTS), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [(e["start"], e["end"]) for e in ask(text)]
        blanks = [len(text[start:end]) - len(text[start:end].lstrip()) for start, end in found]
        trimmed = [(s + blank * (s + blank < e), e) for (s, e), blank in zip(found, blanks, strict=True)]
        assert trimmed == [tuple(place) for place in item["words"].tolist()]


def _answering(folder, output):
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        folder, id2label=TASK.id2label, ignore_mismatched_sizes=True
    ).eval()
    linear = final_linear(model)
    linear.weight.data.zero_()
    if linear.bias is None:
        linear.bias = torch.nn.Parameter(torch.zeros(TASK.head_size))
    linear.bias.data.zero_()
    linear.bias.data[output] = 9.0
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_each_word_of_a_long_text_is_read_once_where_most_stands_around_it(checkpoint, family):
    modality, text = bound(checkpoint(family)), long_text(150)
    (item,) = encoded(modality, text)
    pieces = modality.kind.pieces(item)
    assert len(pieces) > 2 and modality.truncated_share == 0
    words = [text[start:end] for start, end in item["words"]]
    # To the pipeline a token "▁" alone is a word: those of sentencepiece have some words more.
    assert words == text.split() if family in ("bert", "roberta", "gpt2") else set(text.split()) <= set(words)
    assert sum(modality.kind.shares(item)) == len(item["words"])
    ids = [piece["input_ids"][place] for piece in pieces for place in piece["read"]]
    (whole,) = modality.tokenizer(text, truncation=False, verbose=False, return_overflowing_tokens=True).encodings
    inside = [place for place, special in enumerate(whole.special_tokens_mask) if not special]
    begins = [place for place in inside if place == inside[0] or modality._begins_word(whole, place, text)]
    assert ids == [whole.ids[place] for place in begins]
    for piece in pieces[1:-1]:
        inside = len(piece["input_ids"])
        assert min(piece["read"].min(), inside - 1 - piece["read"].max()) >= modality.overlap // 2 - 2


def test_labels_stand_at_first_tokens_on_both_sides_of_padding(checkpoint):
    modality = bound(checkpoint("bert"))
    items = encoded(modality, "goal", "the goalkeeper today")
    for side in ("right", "left"):
        modality.tokenizer.padding_side = side
        items = encoded(modality, "goal", "the goalkeeper today")
        batch = modality.collate(items)
        labels = modality.kind.labels(items, [np.array([1]), np.array([0, 3, 0])], batch)
        assert labels.shape == tuple(batch["input_ids"].shape) and (labels != -100).sum() == 4
        read = modality.kind.read(items, batch["input_ids"])
        assert [len(row) for row in read] == [1, 3]
        assert read[0].item() == modality.tokenizer("goal")["input_ids"][1]
        assert labels[1][labels[1] != -100].tolist() == [0, 3, 0]


def test_logits_do_not_depend_on_the_batch_or_its_padding(checkpoint):
    folder = checkpoint("bert")
    modality = bound(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    items = encoded(modality, "goal team", long_text(90), "x", long_text(20, 1))
    compute = ComputeConfig(torch.device("cpu"), batch_size=3)
    together = predict_logits(model, modality, items, compute)
    alone = [predict_logits(model, modality, [item], compute)[0] for item in items]
    assert [row.shape for row in together] == [(len(item["words"]), 7) for item in items]
    assert all(np.allclose(*pair, atol=1e-5) for pair in zip(together, alone, strict=True))


def test_a_tokenizer_without_places_is_refused(checkpoint):
    with pytest.raises(UserError, match="is written in Python and does not say where its tokens stand"):
        WordsKind().check_processor(AutoTokenizer.from_pretrained(checkpoint("esm")), _Sizes(), "esm")


class _Sizes:
    def get_input_embeddings(self):
        raise NotImplementedError
