"""Checks of entities: repaired tags and spans, contradicting labels of equal words, types that a part lacks."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hftransfer.data.sources import SPLITS
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_PLACES, LEAST_SHARE = 5, 0.2  # of a name, and of each of its types
LONG = 100  # characters: shorter entities fit into every window
NONE = "no entity"
Words = tuple[str, ...]


def check_entities(facts: Facts, tokenizer: "PreTrainedTokenizerBase | None") -> Iterator[Finding]:
    """Yield findings that texts and their entities show; with a `tokenizer` entities longer than its window too."""
    texts = _distinct(facts)
    yield from _repaired(facts)
    yield from _several_types(texts)
    yield from _contradicting(texts)
    yield from _missing_in_parts(facts)
    if tokenizer is not None:
        yield from _longer_than_a_window(texts, tokenizer)


def _distinct(facts: Facts) -> dict[str, list[dict[str, Any]]]:
    """Return the entities by text; equal texts that contradict each other are found as such (`label-conflict`)."""
    rows = facts.frame[facts.labelled]
    return dict(zip(rows["input"], rows["label"], strict=True))


def _repaired(facts: Facts) -> Iterator[Finding]:
    repairs = tuple(line for source in (facts.read.sources if facts.read else ()) for line in source.repairs)
    if repairs:
        yield Finding("entity-repaired", f"Tags or spans that were read otherwise: {'; '.join(repairs)}.", repairs)


def _several_types(texts: dict[str, list[dict[str, Any]]]) -> Iterator[Finding]:
    """Yield names that have two types, each of them often."""
    types: dict[str, Counter] = defaultdict(Counter)
    for text, entities in texts.items():
        for entity in entities:
            types[text[entity["start"] : entity["end"]]][entity["label"]] += 1
    unclear = {name: found for name, found in types.items() if found.total() >= LEAST_PLACES
               and sum(count >= LEAST_SHARE * found.total() for count in found.values()) > 1}  # fmt: skip
    if unclear:
        shown = tuple(f"{name!r}: {_listed(found)}" for name, found in unclear.items())
        yield Finding("entity-types", f"Names with several types, each of them often: {len(unclear)}.", shown)


def _contradicting(texts: dict[str, list[dict[str, Any]]]) -> Iterator[Finding]:
    found = {place: labels for place, labels in labels_by_context(texts).items() if len(labels) > 1}
    if found:
        shown = tuple(f"{' '.join((before, *name, after)).strip()!r}: {' '.join(name)!r} is {_listed(labels)}"
                      for (before, name, after), labels in found.items())  # fmt: skip
        message = f"Equal words between equal neighbours with different labels: {len(found)}."
        yield Finding("entity-contradiction", message, shown)


def labels_by_context(texts: dict[str, list[dict[str, Any]]]) -> dict[tuple[str, Words, str], Counter]:
    """Return how often each name has which type, or is no entity, by the words before and behind it.

    Places without a word on both sides are left out, and words inside of a longer or crossing entity.
    """
    split = {text: [(m[0], m.start(), m.end()) for m in re.finditer(r"\w+|[^\w\s]", text)] for text in texts}
    names = {tuple(re.findall(r"\w+|[^\w\s]", text[entity["start"] : entity["end"]]))
             for text, entities in texts.items() for entity in entities} - {()}  # fmt: skip
    lengths = sorted({len(name) for name in names})
    found: dict[tuple[str, Words, str], Counter] = defaultdict(Counter)
    for text, entities in texts.items():
        words = split[text]
        for first in range(1, len(words)):
            for length in lengths:
                last = first + length
                name = tuple(word for word, *_ in words[first:last])
                if last < len(words) and name in names:
                    label = _label_of(entities, words[first][1], words[last - 1][2])
                    found[words[first - 1][0].lower(), name, words[last][0].lower()].update([label] if label else [])
    return found


def _label_of(entities: Sequence[dict[str, Any]], start: int, end: int) -> str | None:
    """Return the type of the entity at a place, "no entity" where there is none, None where another one crosses it."""
    crossing = [entity for entity in entities if entity["start"] < end and entity["end"] > start]
    same = [entity["label"] for entity in crossing if (entity["start"], entity["end"]) == (start, end)]
    return same[0] if same else None if crossing else NONE


def _listed(counts: Counter) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())


def _missing_in_parts(facts: Facts) -> Iterator[Finding]:
    """Yield types that a part lacks, by the given division or the one that a run would make."""
    given = facts.frame["split"].notna().any()
    divided = facts.frame if given else facts.divided
    if divided is None:
        return
    rows = divided[facts.labelled]
    present = {split: {entity["label"] for label in rows["label"][rows["split"] == split] for entity in label}
               for split in SPLITS if (rows["split"] == split).any()}  # fmt: skip
    lacking = tuple(f"{split}: {name}" for split, types in present.items()
                    for name in facts.task.names if name not in types)  # fmt: skip
    if lacking:
        lack = "lack" if given else "would lack"
        yield Finding("entity-type-missing", f"Parts {lack} a type: {', '.join(lacking[:8])}.", lacking)


def _longer_than_a_window(
    texts: dict[str, list[dict[str, Any]]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[Finding]:
    long = [text[e["start"] : e["end"]] for text, entities in texts.items() for e in entities
            if e["end"] - e["start"] > min(LONG, tokenizer.model_max_length)]  # fmt: skip
    cut = tuple(name for name in long if len(tokenizer.tokenize(name)) > tokenizer.model_max_length)
    if cut:
        message = f"Entities longer than the {tokenizer.model_max_length} tokens of a window: {len(cut)}."
        yield Finding("entity-long", message, cut)
