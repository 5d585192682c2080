"""Texts read word by word: each text in windows that the network can take, each word by its first token.

A word is what `transformers.pipeline("token-classification", aggregation_strategy="first")` takes for one, so that its
answers are those that are trained and measured here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.modalities.base import ASSUMED_GAINS
from hftransfer.modalities.text import Text, TextKind

if TYPE_CHECKING:
    import torch

IGNORED = -100  # the label of tokens that have none, as in transformers


class WordsKind(TextKind):
    """Texts whose words are classified. An item is the first window of a text; the others stand in `further`."""

    pairs = False
    by_word = True
    auto_class_name = "AutoModelForTokenClassification"
    pipeline_task = "token-classification"
    prior_gains, prior_measured = ASSUMED_GAINS, False
    raw_model = None  # a bag of words says nothing of single words

    def check_processor(self, processor: Any, model: Any, name: str) -> None:
        super().check_processor(processor, model, name)
        if not hasattr(processor, "backend_tokenizer"):
            raise UserError(
                f"The tokenizer of {name} is written in Python and does not say where its tokens stand in a text. "
                "Take a checkpoint with a fast tokenizer, such as bert-base-cased."
            )

    def bind(self, processor: Any, augmentation: Any = None) -> "Words":
        return Words(processor, self)

    def pipeline_options(self, outputs: int) -> dict[str, Any]:
        return {"aggregation_strategy": "first"}

    def pieces(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        return [item, *item["further"]]

    def places(self, item: dict[str, Any]) -> np.ndarray:
        return item["words"]

    def read(self, pieces: Sequence[dict[str, Any]], values: "torch.Tensor") -> list["torch.Tensor"]:
        """Return the rows (w, …) of the words that each window is read for, of what it has for each token (B, T, …)."""
        return [row[_columns(piece, len(row))] for piece, row in zip(pieces, values, strict=True)]

    def shares(self, item: dict[str, Any]) -> list[int]:
        return [len(piece["read"]) for piece in self.pieces(item)]

    def labels(self, pieces: Sequence[dict[str, Any]], targets: Sequence[np.ndarray], batch: Any) -> np.ndarray:
        """Return the tag of each token (B, T): that of its word for the first token of a word, else -100."""
        width = next(iter(batch.values())).shape[1]
        labels = np.full((len(pieces), width), IGNORED, dtype=np.int64)
        for row, (piece, tags) in enumerate(zip(pieces, targets, strict=True)):
            labels[row, _columns(piece, width)] = tags
        return labels

    def usage(self, pair: bool) -> str:
        return '"Ada Lovelace lived in London."'


def _columns(piece: dict[str, Any], width: int) -> np.ndarray:
    """Return where the words of a window begin in a batch of `width` tokens."""
    return piece["read"] + (width - len(piece["input_ids"]) if piece["padded_left"] else 0)


class Words(Text):
    """A tokenizer at work on texts whose words are classified."""

    def encode(self, frame: pd.DataFrame) -> list[dict[str, Any]]:
        texts = frame["input"].tolist()
        self._report_special([texts])
        return [self._item(text) for text in texts]

    @property
    def overlap(self) -> int:
        """How many tokens two windows of a long text share: a quarter of a window."""
        return max(1, self.max_length // 4)

    def _item(self, text: str) -> dict[str, Any]:
        encoded = self.tokenizer(
            text, truncation=True, max_length=self.max_length, padding=False, stride=self.overlap,
            return_overflowing_tokens=True, return_offsets_mapping=True, return_special_tokens_mask=True,
        )  # fmt: skip
        windows = encoded.encodings
        step = sum(1 for special in windows[0].special_tokens_mask if not special) - self.overlap
        tokens, best = (
            {},
            {},
        )  # by number in the text: its place and whether it begins a word; the window with most around it
        for number, window in enumerate(windows):
            inside = [place for place, special in enumerate(window.special_tokens_mask) if not special]
            for order, place in enumerate(inside):
                token = number * step + order
                around = min(
                    order if number else len(text), len(inside) - 1 - order if window is not windows[-1] else len(text)
                )
                tokens.setdefault(token, (*window.offsets[place], self._begins_word(window, place, text) or token == 0))
                if around > best.get(token, (-1,))[0]:
                    best[token] = (around, number, place)
        begins = [token for token in sorted(tokens) if tokens[token][2]]
        names = set(self.tokenizer.model_input_names)
        pieces = [
            {name: values[number] for name, values in encoded.items() if name in names}
            | {"read": np.array([best[t][2] for t in begins if best[t][1] == number], dtype=np.int64)}
            | {"padded_left": self.tokenizer.padding_side == "left"}
            for number in range(len(windows))
        ]
        return pieces[0] | {"words": self._places(text, tokens, begins), "further": pieces[1:]}

    def _begins_word(self, window: Any, place: int, text: str) -> bool:
        """Return whether a token begins a word, by the rules of `TokenClassificationPipeline.gather_pre_entities`."""
        (start, end), token = window.offsets[place], window.tokens[place]
        if window.ids[place] == self.tokenizer.unk_token_id:
            return True
        if getattr(self.tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None):
            return len(token) == len(text[start:end])
        return not (start > 0 and " " not in text[start - 1 : start + 1])

    def _places(self, text: str, tokens: dict[int, tuple[int, int, bool]], begins: list[int]) -> np.ndarray:
        """Return first character and end (W, 2) of each word, without the blanks that some tokens begin with.

        A token of blanks alone, as some tokenizers have them, is a word to the pipeline. It keeps its place.
        """
        last = [end - 1 for end in begins[1:]] + [max(tokens)] if begins else []
        places = [(tokens[first][0], tokens[end][1]) for first, end in zip(begins, last, strict=True)]
        blanks = [len(text[start:end]) - len(text[start:end].lstrip()) for start, end in places]
        trimmed = [
            (start + blank * (start + blank < end), end) for (start, end), blank in zip(places, blanks, strict=True)
        ]
        return np.array(trimmed, dtype=np.int64).reshape(-1, 2)

    def plain_batch(self, tokenizer: Any, frame: pd.DataFrame) -> dict[str, "torch.Tensor"]:
        raise NotImplementedError("words are compared through the pipeline (pipeline/word_check.py)")

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"overlap": self.overlap}
