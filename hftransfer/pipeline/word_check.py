"""Check that `transformers.pipeline` with the saved model gives the recorded entities, as `self_check` does for scores."""

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hftransfer.evaluation.entities import differ, spans_of
from hftransfer.features.passes import predict_logits
from hftransfer.models.loading import quiet_transformers
from hftransfer.pipeline.plain_pipeline import concluded, opened
from hftransfer.pipeline.run_context import RunContext
from hftransfer.pipeline.tolerance import EXAMPLES, Tolerance
from hftransfer.runs.predictions import Predictions


def check_words(folder: Path, context: RunContext, model: nn.Module, predictions: Predictions) -> dict[str, Any]:
    """Compare the entities of up to 16 texts that fit into one window, half of them with recorded entities.

    Return what `run.json` says of it. Raises `UserError` where the pipeline finds other entities than were recorded.
    """
    begin, task = time.perf_counter(), context.data.task
    rows, recorded = _recorded(context, model, predictions)
    if not len(rows):
        return {"examples": 0}
    texts = context.data.frame["input"].iloc[rows].tolist()
    answers = through_pipeline(folder, texts, context)
    places, scores = context.places[rows], task.probabilities(recorded)
    tie = Tolerance.of(context.compute_config).tie
    ids = context.data.frame["id"].iloc[rows]
    others = [
        id_
        for id_, text, words, own, found in zip(ids, texts, places, scores, answers, strict=True)
        if differ(spans_of(text, task.entities(text, words, own)), spans_of(text, found), words, own, tie)
    ]
    return concluded(context, "entities", "texts", len(rows), others, begin)


def through_pipeline(folder: Path, texts: list[str], context: RunContext) -> list[list[dict[str, Any]]]:
    """Return the entities that the plain pipeline finds."""
    kind = context.modality.kind
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        ask = opened(folder, context, kind.pipeline_options(0))
        return [ask(text) for text in texts]


def _recorded(context: RunContext, model: nn.Module, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of texts in one window, and their logits as they were evaluated; without any, of training rows."""
    short = np.array([not item["further"] for item in context.items])
    if len(predictions.positions):
        chosen = _some(np.flatnonzero(short[predictions.positions]), predictions.logits, context)
        return predictions.positions[chosen], predictions.logits[chosen]
    rows = np.flatnonzero(short)[:EXAMPLES]
    items = [context.items[row] for row in rows]
    return rows, predict_logits(model, context.modality, items, context.compute_config)


def _some(candidates: np.ndarray, logits: np.ndarray, context: RunContext) -> np.ndarray:
    """Return up to 16 of the predictions, half of them such as have entities, where there are so many."""
    task = context.data.task
    with_entities = [place for place in candidates if len(logits[place]) and task.decide(logits[place]).any()]
    first = with_entities[: EXAMPLES // 2]
    return np.sort([*first, *[place for place in candidates if place not in first][: EXAMPLES - len(first)]]).astype(
        int
    )
