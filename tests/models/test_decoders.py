"""Decoders as sequence classifiers: padding, the head `score` under LoRA, and the saved model in plain transformers."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hftransfer.config import checked
from hftransfer.models.heads import head_of
from hftransfer.prediction.predictor import load
from hftransfer.train import run
from tests.support import tiny

DECODERS = ("llama", "qwen2", "qwen3", "gemma", "mistral")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A LoRA run of a family, made once."""
    folder, known = tmp_path_factory.mktemp("decoders"), {}
    table = tiny.text_table(folder / "texts.csv", rows=40)

    def make(family):
        if family not in known:
            values = {
                "data": str(table), "model": str(tiny.TEXT_FAMILIES[family](folder / family)),
                "strategy": {"type": "lora", "head_init": "random"}, "output": str(folder / f"run-{family}"),
                "training": {"max_steps": 3, "per_device_train_batch_size": 8, "evaluations": 1, "bf16": False},
                "evaluation": {"resamples": 100, "explanations": False, "folds": 0},
            }  # fmt: skip
            known[family] = run(checked(values)).folder
        return table, known[family]

    return make


@pytest.mark.parametrize("family", DECODERS)
def test_the_saved_model_answers_alone_and_padded(family, made):
    """One text beside a longer one: the answer is read at its last token, whichever side is padded."""
    table, folder = made(family)
    texts = pd.read_csv(table)["text"].tolist()[:6]
    texts[0] = texts[0].split()[0]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    assert torch.allclose(together, alone, atol=1e-4) and together.std(0).max() > 1e-4
    found = load(folder, use_cpu=True).predict(texts)
    assert np.allclose(found[[f"logit:topic{n}" for n in range(3)]].to_numpy(), alone.numpy(), atol=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_lora_adapts_the_blocks_and_saves_the_head_that_was_trained(family, made):
    _, folder = made(family)
    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert adapter["modules_to_save"] == ["score"]
    assert adapter["target_modules"] and not [path for path in adapter["target_modules"] if "score" in path]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    assert head_of(model) == ("score",) and not [name for name, _ in model.named_modules() if "lora" in name]
