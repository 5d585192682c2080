"""The fast resampled metrics and the plain ones are two implementations: any input has to have one answer in both."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftransfer.evaluation import bootstrap
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.tasks import make_task

ROUGH = st.sampled_from([0, 1, 6])  # decimals: ties and exact 0 and 1 are frequent
UNDEFINED = {"mcc"}  # 0 in a resample without errors or classes, so that it has a spread; NaN as a metric


@st.composite
def predictions(draw, kind):
    """A task with targets and scores of any shape: absent classes, ties, constant columns, a single example."""
    rows, outputs = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    random, decimals = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(ROUGH)
    task = make_task(kind, tuple(f"c{number}" for number in range(outputs)))
    logits = random.normal(size=(rows, outputs)) * draw(st.sampled_from([0, 1, 30]))
    if kind == "single_label":
        return task, random.integers(draw(st.integers(1, outputs)), size=rows), task.probabilities(logits)
    if kind == "multi_label":
        targets = (random.random(logits.shape) < draw(st.sampled_from([0, 0.1, 0.5, 1]))).astype(np.float32)
        return task, targets, np.round(task.probabilities(logits), decimals)
    targets = np.round(random.normal(size=logits.shape) * draw(st.sampled_from([0, 1, 1e4])), decimals)
    return task, targets, np.round(targets + logits, decimals)


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_metrics_and_their_weighted_forms_agree(kind, data):
    task, targets, scores = data.draw(predictions(kind))
    plain = compute_metrics(task, targets, scores)
    weighted = bootstrap.statistics(task, targets, scores)(np.ones((1, len(targets)), np.float32))
    assert set(weighted) == set(plain)
    for name, value in plain.items():
        if np.isfinite(value):
            assert weighted[name][0] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        else:
            assert name in UNDEFINED or not np.isfinite(weighted[name][0]), name
