"""Texts and pairs of texts, tokenised once and padded to the longest of a batch."""

import inspect
import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hftransfer.core.hashing import content_key
from hftransfer.modalities.base import INPUTS, ModalityKind
from hftransfer.modalities.duplicates import similar_texts
from hftransfer.modalities.inspection import Inspection

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Scripts without spaces between words: Thai to Burmese, Khmer, Japanese and Chinese.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
# 64 grey values are a picture of 8 x 8; base64 of JPEG, PNG, GIF and WebP begins with these letters.
PICTURES = {
    "pixel values": re.compile(r"\s*\[?\s*(?:\d{1,3}[\s,;]+){63}\d{1,3}(?:[\s,;]+\d{1,3})*\s*\]?\s*$"),
    "base64": re.compile(r"\s*(?:data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR)"),
}
CHARACTERS_PER_TOKEN = 100  # far more than any tokenizer needs


def readable(tokens: int) -> int:
    """How many characters of a text are worth tokenising where `tokens` are read: a gigabyte would fill the memory."""
    return CHARACTERS_PER_TOKEN * tokens


def _content(tokenizer: Any) -> str:
    """Return a hash of all that a tokenizer does; one written in Python (ESM's, CANINE's) is known by its files."""
    if hasattr(tokenizer, "backend_tokenizer"):
        return content_key(tokenizer.backend_tokenizer.to_str())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return content_key(
            *(part for file in sorted(Path(folder).iterdir()) for part in (file.name, file.read_bytes()))
        )


def _ensure_mask(model: Any, tokenizer: Any) -> None:
    """Let the tokenizer give a mask to a model that reads one: without it a text's padding counts as text.

    The setting is saved with the tokenizer, so that `pipeline` reads texts alike.
    """
    names = list(tokenizer.model_input_names)
    if "attention_mask" not in names and "attention_mask" in inspect.signature(model.forward).parameters:
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = [*names, "attention_mask"]
        log.info("the tokenizer gave no attention mask, which %s reads: now it does", type(model).__name__)


class TextKind(ModalityKind):
    name = noun = "text"
    plural = "texts"
    pairs = True
    suffixes = frozenset({".txt"})
    column_names = frozenset(
        "text sentence content document review comment tweet message question title body abstract sequence utterance "
        "query".split()
    )
    auto_class_name = "AutoModelForSequenceClassification"
    processor_class = "AutoTokenizer"
    pipeline_task = "text-classification"
    example_checkpoints = "bert-base-uncased"
    default_checkpoints = ("starter/minilm", "sentence-transformers/all-MiniLM-L6-v2")  # the same weights
    model_settings = ("max_length", "split_special_tokens")
    prior_gains = {
        "best-layer": (0.095, 0.103), "frozen": (0.065, 0.070), "lora": (0.035, 0.111), "full": (0.081, 0.085),
        "frozen, best layer": (0.015, 0.024), "full, best layer": (0.007, 0.018),
    }  # fmt: skip
    content = "words"
    raw_model = "bag of words"
    api_names = ("text", "second_text")
    fault_finding = "text-empty"

    def recognises(self, sample: Sequence[Any]) -> bool:
        """Strings of three words or twenty characters on average that are neither numbers, addresses nor file names.

        In scripts without spaces every character counts as a word.
        """
        if not all(isinstance(value, str) for value in sample):
            return False
        if all(re.fullmatch(r"https?://\S+|\S+\.[A-Za-z]\w{1,4}", value.strip()) for value in sample):
            return False
        words = sum(len(value.split()) + len(UNSPACED.findall(value)) for value in sample) / len(sample)
        unspaced = any(UNSPACED.search(value) for value in sample)
        if unspaced and len(set(sample)) <= len(sample) / 2:  # a few characters that repeat: names of classes
            return False
        return words >= 3 or sum(map(len, sample)) / len(sample) >= 20

    def foreign(self, sample: Sequence[Any]) -> str | None:
        """Pictures written as numbers of pixels (FER2013) or in base64."""
        texts = [value for value in sample if isinstance(value, str)]
        found = (kind for kind, pattern in PICTURES.items() if texts and all(map(pattern.match, texts)))
        return next((f"pictures written as {kind}, not words" for kind in found), None)

    def near_duplicates(self, frame: pd.DataFrame, inspections: Sequence[Inspection]) -> np.ndarray:
        return similar_texts(pair_texts(frame))

    def check_processor(self, processor: Any, model: Any, name: str) -> None:
        from hftransfer.models.tokenizers import check_vocabulary

        check_vocabulary(processor, model, name)

    def adjust(self, model: Any, processor: Any, config: Any, name: str) -> tuple[Any, Any]:
        from hftransfer.models import tokenizers

        tokenizers.limit_length(model, processor, config.max_length)
        tokenizers.ensure_padding(model, processor, name)
        _ensure_mask(model, processor)
        tokenizers.split_special_tokens(model, processor, config.split_special_tokens)
        return model, processor

    def for_task(self, task: Any) -> ModalityKind:
        from hftransfer.modalities.words import WordsKind  # which is a kind of text

        return WordsKind() if task.by_word else super().for_task(task)

    def takes(self, task: Any) -> bool:
        return not task.by_pixel

    def bind(self, processor: Any, augmentation: Any = None) -> "Text":
        return Text(processor, self)

    def pipeline_options(self, outputs: int) -> dict[str, Any]:
        return {"top_k": None, "truncation": True}

    def usage(self, pair: bool) -> str:
        return '{"text": "the first text", "text_pair": "the second"}' if pair else '"a text"'


def pair_texts(frame: pd.DataFrame) -> list[str]:
    """Return the text of each row, both halves of a pair in one."""
    return list(frame["input"] + "\n" + frame["input_pair"] if "input_pair" in frame else frame["input"])


class Text:
    """A tokenizer at work (see `Modality`)."""

    augmentation = None
    mixes_lengths = True

    def __init__(self, tokenizer: Any, kind: ModalityKind):
        self.tokenizer, self.kind = tokenizer, kind
        self.max_length = tokenizer.model_max_length
        self.truncated_share = 0.0

    def encode(self, frame: pd.DataFrame) -> list[dict[str, list[int]]]:
        most = readable(self.max_length)
        columns = [[text[:most] for text in frame[name]] for name in INPUTS if name in frame]
        self._report_special(columns)
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length, padding=False)
        self._report_cut(self._cut(columns, encoded))
        return [dict(zip(encoded.keys(), values, strict=True)) for values in zip(*encoded.values(), strict=True)]

    def _cut(self, columns: list[list[str]], encoded: Any) -> list[bool]:
        """Whether each text lost its end. Tokenizers written in Python (ESM's) keep no record of it: they run again."""
        if encoded.encodings is not None:
            return [bool(encoding.overflowing) for encoding in encoded.encodings]
        whole = self.tokenizer(*columns, truncation=False, padding=False, verbose=False)["input_ids"]
        return [len(ids) > self.max_length for ids in whole]

    def _report_special(self, columns: list[list[str]]) -> None:
        """Log how many texts hold the name of a special token, and how it is read."""
        names = [name for name in self.tokenizer.all_special_tokens if len(name) > 1]
        if not names:
            return
        found = re.compile("|".join(map(re.escape, names)))
        held = [match[0] for row in zip(*columns, strict=True) if (match := found.search("\n".join(row)))]
        if held:
            split = self.tokenizer.split_special_tokens
            log.warning(
                "%d texts hold names of special tokens such as %r: they are read as %s (model.split_special_tokens).",
                len(held), held[0], "plain text" if split else "those tokens",
            )  # fmt: skip

    def _report_cut(self, cut: list[bool]) -> None:
        """Say which share of the texts lost its end (transformers truncates without a word)."""
        self.truncated_share = sum(cut) / max(len(cut), 1)
        if any(cut):
            log.warning(
                "%.1f %% of the texts (%d of %d) are cut at %d tokens; model.max_length sets the limit.",
                100 * self.truncated_share, sum(cut), len(cut), self.max_length,
            )  # fmt: skip

    def lengths(self, items: Sequence[dict[str, list[int]]]) -> list[int]:
        return [len(item["input_ids"]) for item in items]

    def collate(self, items: Sequence[dict[str, list[int]]], training: bool = False) -> dict[str, "torch.Tensor"]:
        names = set(self.tokenizer.model_input_names)
        return dict(
            self.tokenizer.pad([{k: v for k, v in item.items() if k in names} for item in items], return_tensors="pt")
        )

    def plain_batch(self, tokenizer: Any, frame: pd.DataFrame) -> dict[str, "torch.Tensor"]:
        """Return raw texts as a plain `tokenizer` reads them, padded into one batch."""
        columns = [frame[name].tolist() for name in INPUTS if name in frame]
        return dict(tokenizer(*columns, truncation=True, padding=True, return_tensors="pt"))

    def recorded(self, value: str) -> str:
        return value

    def settings(self) -> dict[str, Any]:
        return {
            "tokenizer": type(self.tokenizer).__name__,
            "vocabulary": _content(self.tokenizer),
            "max_length": self.max_length,
            "split_special_tokens": self.tokenizer.split_special_tokens,
        }

    def skeleton(self, items: Sequence[dict[str, list[int]]]) -> dict[str, "torch.Tensor"]:
        return self.collate(items)  # ids and masks are small, and masks are read by every block
