"""Checks of texts: empty ones, wrong encodings, HTML, length, and how well a tokenizer knows the language."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.modalities.text import pair_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HTML_TAG = re.compile(
    r"</?(a|b|i|u|p|br|hr|em|h[1-6]|li|ol|ul|td|th|tr|div|img|pre|sub|sup|code|font|span|table|strong|script|style)"
    r"(\s[^<>]*)?/?>",
    re.IGNORECASE,
)
HTML_ENTITY = re.compile(
    r"&(amp|lt|gt|quot|apos|nbsp|copy|mdash|ndash|hellip|#\d{1,6}|#x[0-9a-f]{1,5});", re.IGNORECASE
)
LENGTHS = (128, 256, 512)
USUAL_LENGTH = 512
# Measured with BERT's vocabulary on English reviews and questions: 1.1 to 1.3 tokens per word or mark.
TOKENS_PER_PIECE = 1.25
MOST_UNKNOWN = 0.01
MOST_TOKENS_PER_WORD = 3.0
TOLERATED_SHARE = 0.02
_SAMPLE = 2000


def check_texts(facts: Facts, tokenizer: "PreTrainedTokenizerBase | None") -> Iterator[Finding]:
    """Yield findings about the texts; with a `tokenizer` lengths are counted, without they are estimated from words."""
    empty = [index for index, inspection in enumerate(facts.inspections) if inspection.fault]
    if empty:
        named = tuple(f"{facts.frame['where'].iloc[index]}: {facts.inspections[index].fault}" for index in empty)
        yield Finding("text-empty", f"No usable text: {len(empty)} of {len(facts.inspections)} rows.", named)
    texts = pair_texts(facts.frame)
    yield from _counted(facts, "text-encoding", [i for i, text in enumerate(texts) if is_misread(text)], "Misread")
    html = [i for i, text in enumerate(texts) if HTML_TAG.search(text) or HTML_ENTITY.search(text)]
    yield from _counted(facts, "text-html", html, "HTML")
    if tokenizer is None:
        pieces = np.array([len(re.findall(r"\w+|[^\w\s]", text)) for text in texts])
        tokens = (pieces * TOKENS_PER_PIECE).astype(int)
        yield from _lengths(facts, tokens, USUAL_LENGTH, "an estimate; --model REF counts")
        return
    counts = _token_counts(texts, tokenizer)
    # Tokenizers without a limit hold a huge number there.
    limit = tokenizer.model_max_length if tokenizer.model_max_length < 1_000_000 else USUAL_LENGTH
    yield from _lengths(facts, counts, limit, "counted with the model's tokenizer")
    yield from _language(texts, tokenizer)


def is_misread(text: str) -> bool:
    """Whether a text holds replacement characters, or is UTF-8 that was read as Windows-1252."""
    return "\ufffd" in text or reread(text) != text


def reread(text: str) -> str:
    """Return a text that was UTF-8 read as Windows-1252, repaired; any other text as it is."""
    if text.isascii():
        return text
    try:
        return text.encode("cp1252").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return text


def _counted(facts: Facts, id_: str, rows: list[int], what: str) -> Iterator[Finding]:
    if rows:
        yield Finding(id_, f"{what}: {len(rows)} of {len(facts.inspections)} texts.", facts.where(rows))


def _lengths(facts: Facts, tokens: np.ndarray, limit: int, how: str) -> Iterator[Finding]:
    shares = ", ".join(f"{np.mean(tokens > length):.0%} at {length}" for length in sorted({*LENGTHS, limit}))
    cut = np.flatnonzero(tokens > limit)
    if len(cut) > TOLERATED_SHARE * len(tokens):
        longest = cut[np.argsort(-tokens[cut])]
        yield Finding(
            "text-long",
            f"{np.mean(tokens > limit):.0%} of the texts are longer than {limit} tokens ({how}); cut would be {shares}.",
            facts.where(longest),
        )


def _token_counts(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    from hftransfer.modalities.text import readable  # torch, which a tokenizer is not without

    texts = [text[: readable(max(LENGTHS))] for text in texts]
    encoded = tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    return np.array([len(ids) for ids in encoded])


def _language(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> Iterator[Finding]:
    """Unknown tokens, and tokens per word, of a sample (scripts without blanks between words count by unknowns alone)."""
    sample = texts[:: max(1, len(texts) // _SAMPLE)]
    ids = [token for row in tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"] for token in row]
    words = sum(len(re.findall(r"\w+", text)) for text in sample)
    unknown = (
        float(np.mean(np.array(ids) == tokenizer.unk_token_id)) if ids and tokenizer.unk_token_id is not None else 0
    )
    per_word = len(ids) / max(words, 1)
    if unknown > MOST_UNKNOWN or per_word > MOST_TOKENS_PER_WORD:
        message = f"The tokenizer knows the texts badly: {unknown:.1%} unknown tokens, {per_word:.1f} tokens per word."
        yield Finding("text-language", message)
