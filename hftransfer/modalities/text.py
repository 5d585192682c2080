"""Texts and pairs of texts, tokenised once and padded to the longest of a batch."""

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hftransfer.core.hashing import content_key

log = logging.getLogger(__name__)

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


class Text:
    name = "text"
    pipeline_task = "text-classification"
    inspects_cheaply = True
    processor_type = "AutoTokenizer"
    augmentation = None

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.max_length = tokenizer.model_max_length
        self.truncated_share = 0.0

    def encode(self, frame: pd.DataFrame) -> list[dict[str, list[int]]]:
        most = readable(self.max_length)
        columns = [[text[:most] for text in frame[name]] for name in ("input", "input_pair") if name in frame]
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

    def collate(self, items: Sequence[dict[str, list[int]]], training: bool = False) -> dict[str, torch.Tensor]:
        names = set(self.tokenizer.model_input_names)
        return dict(
            self.tokenizer.pad([{k: v for k, v in item.items() if k in names} for item in items], return_tensors="pt")
        )

    def plain_batch(self, tokenizer: Any, frame: pd.DataFrame) -> dict[str, torch.Tensor]:
        """Return raw texts as a plain `tokenizer` reads them, padded into one batch."""
        columns = [frame[name].tolist() for name in ("input", "input_pair") if name in frame]
        return dict(tokenizer(*columns, truncation=True, padding=True, return_tensors="pt"))

    def recorded(self, value: str) -> str:
        return value

    def mix(self, batch: dict[str, torch.Tensor], labels: torch.Tensor, classes: int) -> torch.Tensor:
        return labels

    def settings(self) -> dict[str, Any]:
        return {
            "tokenizer": type(self.tokenizer).__name__,
            "vocabulary": _content(self.tokenizer),
            "max_length": self.max_length,
            "split_special_tokens": self.tokenizer.split_special_tokens,
        }

    def skeleton(self, items: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return self.collate(items)  # ids and masks are small, and masks are read by every block
