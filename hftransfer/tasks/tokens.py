"""Entities in texts: each word has a tag. The unit of prediction is a word, the example is a text.

A label is a list of entities in characters of the text: `{"start", "end", "label"}`. The network has one output for each
tag of IOB2 (Tjong Kim Sang & Veenstra 1999, "Representing text chunks"): O, B-TYPE, I-TYPE. Targets, logits and scores of
N texts are object arrays (N,), with one array for each text: tags (W,) int64, scores (W, C).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hftransfer.tasks.base import Task
from hftransfer.tasks.single_label import SingleLabel

IGNORED = -100  # the label of a token that has none, as in transformers
Span = tuple[int, int, int]  # first word, the word after the last, type


@dataclass(frozen=True)
class Tokens(Task):
    """`names` are the types of entities; tag 0 is O, tag 2 t + 1 begins an entity of type t, tag 2 t + 2 continues it."""

    type = "tokens"
    problem_type = None  # transformers has none: the class of the model tells it
    architecture = "ForTokenClassification"
    output, outputs, unit = "type of entity", "types of entities", "word"
    by_word = True
    lacks = frozenset({"next", "embed", "--explain", "doctor --fix", "doctor --measure"})
    headline = learning_metric = "entity_f1"
    macro_metric, class_metric = "macro_f1", "f1"

    @property
    def tags(self) -> tuple[str, ...]:
        """The outputs of the network, in order."""
        return ("O", *(f"{prefix}-{name}" for name in self.names for prefix in "BI"))

    @property
    def head_size(self) -> int:
        return 1 + 2 * len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.tags))

    @classmethod
    def of_outputs(cls, outputs: Sequence[str]) -> "Tokens":
        """Return the task of a model whose outputs are tags of IOB2 in the order of `tags`. Raises `UserError`."""
        from hftransfer.core.errors import UserError

        task = cls(tuple(tag[2:] for tag in outputs if tag.startswith("B-")))
        if tuple(outputs) != task.tags:
            raise UserError(
                f"The outputs of this model are {', '.join(outputs[:8])}: expected O, and B-TYPE and I-TYPE of each type."
            )
        return task

    @property
    def of_unit(self) -> SingleLabel:
        return SingleLabel(self.tags, weights=self.weights)

    def units(self, values: np.ndarray) -> np.ndarray:
        """Return the words of all texts below one another: (U,) of tags, (U, C) of scores."""
        if not len(values):
            return np.zeros((0, self.head_size))
        return np.concatenate(list(values))

    def collected(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return values (N, T, …) of padded tokens as those of the words of each text: of tokens with a label."""
        return ragged([row[label != IGNORED] for row, label in zip(values, labels, strict=True)])

    def answers(self, scores: np.ndarray, texts: Sequence[str], places: Sequence[np.ndarray | None]) -> list[Any]:
        return [self.entities(*each) for each in zip(texts, places, scores, strict=True)]

    # --- targets ------------------------------------------------------------------------------------------------------

    def encode(self, label: Sequence[dict[str, Any]]) -> list[float]:
        """Return how many entities of each type a text has."""
        counts = [0.0] * len(self.names)
        for entity in label:
            counts[self._index(entity["label"])] += 1
        return counts

    def encode_all(self, labels: list[Any]) -> np.ndarray:
        """Return how many entities of each type each text has, (N, T): what divisions balance."""
        return np.array([self.encode(label) for label in labels]).reshape(len(labels), len(self.names))

    def targets(self, labels: list[Any], places: Sequence[np.ndarray | None]) -> np.ndarray:
        """Return the tags of the words of each text; `places` (W, 2) are first character and end of each word."""
        return ragged([self.tagged(label, words) for label, words in zip(labels, places, strict=True)])

    def tagged(self, label: Sequence[dict[str, Any]], words: np.ndarray) -> np.ndarray:
        """Return the tags (W,) of words: an entity has every word that it overlaps and that no earlier one has."""
        tags = np.zeros(len(words), np.int64)
        for entity in sorted(label, key=lambda entity: entity["start"]):
            inside = (words[:, 0] < entity["end"]) & (words[:, 1] > entity["start"]) & (tags == 0)
            covered = np.flatnonzero(inside)
            tags[covered] = 2 * self._index(entity["label"]) + 2
            tags[covered[:1]] -= 1
        return tags

    def unaligned(self, label: Sequence[dict[str, Any]], words: np.ndarray) -> int:
        """Return how many entities begin or end inside of a word, or have none: no tags of words express these."""
        begins, ends = set(words[:, 0].tolist()), set(words[:, 1].tolist())
        return sum(entity["start"] not in begins or entity["end"] not in ends for entity in label)

    def spans(self, tags: np.ndarray) -> list[Span]:
        """Return the entities of tags that `decide` made: each begins with a B."""
        found: list[Span] = []
        for place, tag in enumerate(np.asarray(tags).tolist()):
            if tag % 2:
                found.append((place, place + 1, tag // 2))
            elif tag:
                first, _, kind = found.pop()
                found.append((first, place + 1, kind))
        return found

    def entities(self, text: str, words: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        """Return the entities of one text as people and programs read them; the score is the mean over their words."""
        best, found = scores.max(-1, initial=0.0), []
        for first, last, kind in self.spans(self.decide(scores)):
            start, end = int(words[first, 0]), int(words[last - 1, 1])
            start = min(start + len(text[start:end]) - len(text[start:end].lstrip()), end)
            score = float(best[first:last].mean())
            found.append(dict(start=start, end=end, label=self.names[kind], text=text[start:end], score=score))
        return found

    def decode(self, prediction: Any) -> list[str]:
        """Return the tags of the words of one text."""
        return [self.tags[tag] for tag in prediction]

    def as_lists(self, decided: np.ndarray) -> list[list[str]]:
        """Return the tags of the words of each text by name, as seqeval reads them."""
        return [self.decode(tags) for tags in decided]

    def label_names(self, label: Any) -> list[str]:
        return [entity["label"] for entity in label]

    def same_label(self, label: Any, other: Any) -> bool:
        first, second = ({(e["start"], e["end"], e["label"]) for e in entities} for entities in (label, other))
        return first == second

    def describe(self, label: Any) -> str:
        return ", ".join(f"{entity['text']} ({entity['label']})" for entity in label) or "(none)"

    def row_noun(self, flat: bool) -> str:
        return "entities" if flat else "predictions"

    def as_rows(self, table: Any) -> Any:
        """Return a table of predictions with one row for each entity: id, start, end, label, text, score."""
        import pandas as pd

        rows = [{"id": id_, **entity} for id_, found in zip(table["id"], table["prediction"], strict=True)
                for entity in (found if isinstance(found, list) else ())]  # fmt: skip
        return pd.DataFrame(rows, columns=["id", "start", "end", "label", "text", "score"])

    def one_hot(self, targets: np.ndarray) -> np.ndarray:
        """Return how many entities of each type each text has, of tags (N,) or of counts (N, T)."""
        if targets.dtype != object:
            return np.asarray(targets, dtype=np.float64)
        counts = np.zeros((len(targets), len(self.names)))
        for row, tags in enumerate(targets):
            np.add.at(counts[row], tags[tags % 2 == 1] // 2, 1)
        return counts

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return the rarest type of each text, and one further stratum for texts without entities."""
        counts = self.one_hot(targets)
        rarest = np.where(counts > 0, -counts.sum(0), -np.inf).argmax(1)
        return np.where(counts.any(1), rarest, len(self.names))

    def with_balance(self, targets: np.ndarray) -> Task:
        return replace(self, weights=self.of_unit.with_balance(self.units(targets).astype(np.int64)).weights)

    @property
    def uninformed_loss(self) -> float:
        return math.log(self.head_size)

    # --- loss ---------------------------------------------------------------------------------------------------------

    def loss(self, logits: Any, labels: Any, smoothing: float) -> Any:
        """Return the loss (B, T) of tokens from logits (B, T, C); tokens labelled -100 have none."""
        from torch import tensor
        from torch.nn.functional import cross_entropy

        weights = tensor(self.weights, device=logits.device) if self.weights else None
        return cross_entropy(
            logits.transpose(1, 2), labels, weight=weights, label_smoothing=smoothing, reduction="none"
        )

    # --- scores and decisions -----------------------------------------------------------------------------------------

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return self._each(self.of_unit.probabilities, logits)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Return tags in which every entity begins with a B: an I that continues nothing begins one, as in `pipeline`."""
        return self._each(_begun, self._each(self.of_unit.decide, scores))

    def decides_otherwise(self, recorded: np.ndarray, found: np.ndarray, tie: float, share: float = 0.05) -> np.ndarray:
        return np.array([
            bool(self.of_unit.decides_otherwise(one, other, tie).any()) if len(one) else False
            for one, other in zip(recorded, found, strict=True)
        ])  # fmt: skip

    def faultless(self, targets: np.ndarray) -> np.ndarray:
        return ragged([np.eye(self.head_size)[tags] for tags in targets])

    def commonest(self, known: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Return for every word of each text (N,) the frequencies (W, C) of the tags."""
        counts = np.bincount(self.units(known).astype(np.int64), minlength=self.head_size)
        return ragged([np.tile(counts / max(counts.sum(), 1), (len(tags), 1)) for tags in asked])

    def _each(self, function: Any, values: np.ndarray) -> np.ndarray:
        """Return a function of the values of one text, or of each text."""
        values = np.asarray(values)
        return ragged([function(each) for each in values]) if values.dtype == object else function(values)


def _begun(tags: np.ndarray) -> np.ndarray:
    """Return tags (W,) whose I tags continue an entity of their type; others become B."""
    before = np.concatenate([[0], tags[:-1]])
    inside = (tags % 2 == 0) & (tags > 0)
    continues = (before == tags) | (before == tags - 1)
    return np.where(inside & ~continues, tags - 1, tags)


def ragged(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays of any lengths as one object array (N,)."""
    result = np.empty(len(arrays), dtype=object)
    for place, array in enumerate(arrays):
        result[place] = array
    return result
