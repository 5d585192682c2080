"""What a random split would have reported: the same probe on splits that keep relatives together and on random ones."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hftransfer.data import DataConfig, LabelledData, load_data
from hftransfer.data.splits import divide
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.modalities.duplicates import components
from hftransfer.pipeline.run_context import probed
from hftransfer.probe.solver import make_folds, solve_head
from hftransfer.tasks import Task

if TYPE_CHECKING:
    from hftransfer.config import RunConfig

log = logging.getLogger(__name__)

SEEDS = 5
FOLDS = 5
MOST_ROWS = 4000
NEIGHBOURS, NEAR = 5, 0.25


@dataclass(frozen=True)
class Honesty:
    """Mean of `metric` on the test parts of several splits: whole groups apart, and rows at random.

    `spread` is the standard deviation of the difference between the two over the splits.
    """

    metric: str
    grouped: float
    random: float
    spread: float

    def describe(self) -> str:
        difference = self.random - self.grouped
        return (
            f"A random split would have shown {_shown(self.metric, self.random)} {self.metric.replace('_', ' ')} instead "
            f"of {_shown(self.metric, self.grouped)} with relatives kept together (a probe, mean of {SEEDS} splits, "
            f"difference {_shown(self.metric, difference)} ± {_shown(self.metric, self.spread)})."
        )


def measure_honesty(run: "RunConfig", dataset: Any = None) -> Iterator[Finding]:
    """Pairs that only the model sees; then, where rows belong together, a probe on splits of either kind, compared.

    Groups are those of `data.split.group`, else found as by "auto"; given splits are left aside. Of more than 4,000 rows
    whole groups are drawn. The features are computed once and kept in the feature store.
    """
    split = run.data.split.model_copy(update={"group": run.data.split.group or "auto", "file": None})
    data = load_data(run.data.model_copy(update={"split": split, "on_error": "skip"}), dataset)
    data.require("doctor --measure")
    data = _fewer(data)
    features = probed(run, data)[1].features
    yield from _neighbours(features, data)
    share = split.test or 0.2
    if not data.frame["group"].notna().any():
        return
    if not (divide(data.frame, data.task, {"test": share}, 0) == "test").any():
        log.warning("Every class stands in one group: no test part can be cut by groups, and nothing is compared.")
        return
    yield Finding("leak-measured", compare(features, data.frame, data.task, share).describe())


def _neighbours(features: np.ndarray, data: LabelledData) -> Iterator[Finding]:
    frame = data.frame.assign(where=data.frame["id"])
    facts = Facts(frame, data.modality, data.task, data.inspections, DataConfig(), known_links=data.links)
    known = components(len(features), np.concatenate(list(facts.links.values())))
    pairs = [pair for pair in nearest_pairs(features) if known[pair[0]] != known[pair[1]]]
    if pairs:
        message = f"Pairs that the model sees as nearly the same, not found by their content: {len(pairs)}."
        yield Finding("duplicate-neighbour", message, facts.describe_pairs(np.array(pairs)))


def nearest_pairs(features: np.ndarray) -> list[tuple[int, int]]:
    """Pairs i < j, the nearest first, that lie closer than `NEAR` of the median distance to the nearest neighbour."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(features) - 1)).fit(features)
    distances, others = search.kneighbors()
    limit = NEAR * np.median(distances[:, 0])
    found = {
        (min(i, j), max(i, j)): d
        for i, row in enumerate(others)
        for j, d in zip(row, distances[i], strict=True)
        if d < limit
    }
    return sorted(found, key=found.get)


def compare(features: np.ndarray, frame: pd.DataFrame, task: Task, share: float) -> Honesty:
    """Fit and judge a linear probe on five splits of either kind; features (N, D), `frame` with id, group and label."""
    targets = task.encode_all(list(frame["label"]))
    alone = frame.assign(group=None)
    grouped, random = (
        np.array([_score(features, targets, rows, task, share, seed) for seed in range(SEEDS)])
        for rows in (frame, alone)
    )
    return Honesty(task.headline, grouped.mean(), random.mean(), float((random - grouped).std(ddof=1)))


def _score(features: np.ndarray, targets: np.ndarray, rows: pd.DataFrame, task: Task, share: float, seed: int) -> float:
    test = divide(rows, task, {"test": share}, seed) == "test"
    train = np.flatnonzero(~test)
    groups = rows["group"].fillna(rows["id"]).to_numpy()[train] if rows["group"].notna().any() else None
    folds = make_folds(task, targets[train], groups, FOLDS, seed)
    head = solve_head(features[train], task.standardised(targets[train]), task, folds)
    scores = task.probabilities(task.in_units(head.logits(features[test])))
    return compute_metrics(task, targets[test], scores)[task.headline]


def _fewer(data: LabelledData) -> LabelledData:
    """At most `MOST_ROWS` rows, taken by whole groups drawn at random."""
    frame = data.frame
    if len(frame) <= MOST_ROWS:
        return data
    names = frame["group"].fillna("\0" + frame["id"])
    order = np.random.default_rng(0).permutation(names.unique())
    sizes = names.value_counts()[order]
    kept = names.isin(order[sizes.cumsum().to_numpy() <= MOST_ROWS]).to_numpy()
    log.info("Of %d rows %d are used to compare the splits.", len(frame), kept.sum())
    inspections = [inspection for inspection, keep in zip(data.inspections, kept, strict=True) if keep]
    return replace(data, frame=frame[kept].reset_index(drop=True), inspections=inspections, links=None)


def _shown(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.3f}"
