"""Where every candidate is measured: the same rows, the same folds, the machinery of a real run without its folder.

The rows are those that a probe would be fitted on, in cross-validation folds; where a validation part was given besides,
it is held out whole, one fold. The test part is never looked at.
"""

import logging
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftransfer.config import RunConfig
from hftransfer.core.terminal import only_errors
from hftransfer.data import LabelledData, load_data
from hftransfer.data.splits import take_examples
from hftransfer.features.passes import in_pieces
from hftransfer.features.sources import FeatureSource
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import load_checkpoint
from hftransfer.models.partial import SplitPoint
from hftransfer.models.references import resolved
from hftransfer.pipeline.fit import Seconds, fit
from hftransfer.pipeline.repeats import VALIDATION_FOLDS
from hftransfer.pipeline.run_context import RunContext, head_problem, prepare
from hftransfer.pipeline.words import held_out_words
from hftransfer.planning.strategies import baselines
from hftransfer.planning.strategies.decision import Evaluator, HeldOutPredictions
from hftransfer.probe.fit import Rows, candidates, sample, solve_feature_sources
from hftransfer.probe.solver import LinearProbe, make_folds, mean_loss
from hftransfer.runtime import devices
from hftransfer.runtime.interruption import Stop
from hftransfer.runtime.launch import launched_world
from hftransfer.strategies import ProbeStrategy, ScratchStrategy
from hftransfer.strategies.head import HeadConfig
from hftransfer.tasks import Task
from hftransfer.training.freeze_check import Sizes

log = logging.getLogger(__name__)

MAX_HELD_OUT = 1000  # of a validation part: more rows cost more than they tell
TIMED_ROWS = 64


@dataclass(frozen=True)
class Fold:
    """Numbers of the rows that a candidate trains on, and of those that it then answers."""

    train: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Trial:
    """One training: scores (n, C) of the held-out rows, and what it took."""

    scores: np.ndarray
    seconds: float
    training_seconds: float
    steps: int
    trainable_share: float
    learning_rate: float


@dataclass
class Experiments:
    """Everything that is loaded once. `context` has the pretrained network with the probe as its strategy."""

    config: RunConfig
    data: LabelledData
    context: RunContext
    folds: list[Fold]
    scratch: Path
    row_seconds: float = 0.0
    head_share: float = 0.0

    @classmethod
    def open(cls, config: RunConfig, dataset: Any, scratch: Path) -> "Experiments":
        """Load data and network. Raises `UserError` for every mistake in the input, as a run does."""
        data = load_data(config.data, dataset)
        data.require("advise")
        data = _learnable(config, data)
        model = resolved(config.model, data.kind)
        config = config.model_copy(update={"strategy": ProbeStrategy(), "model": model})
        context = _context(config, data, scratch)
        experiments = cls(config, data, context, _folds(context), scratch)
        experiments.row_seconds = experiments._time(lambda batch: context.model(**batch).logits)
        experiments.head_share = Sizes.of(
            config.strategy.prepare(context.model, LayerGroups.of(context.model))
        ).trainable_share
        return experiments

    @property
    def evaluator(self) -> Evaluator:
        groups = self.context.groups
        return Evaluator(self.data.task, self.context.targets, None if groups is None else groups.tolist())

    @property
    def labels(self) -> int:
        """Rows that a candidate may learn from."""
        return len(self.context.fitted)

    def _time(self, forward: Any) -> float:
        """Seconds a row of one forward pass, loading and encoding included; the second of two passes."""
        rows, compute_config, best = self.context.items[:TIMED_ROWS], self.context.compute_config, np.inf
        items, _ = in_pieces(self.data.kind, rows)
        self.context.model.eval()
        for _ in range(2):
            begin = time.perf_counter()
            for start in range(0, len(items), compute_config.batch_size):
                with torch.no_grad(), compute_config.context():
                    forward(
                        compute_config.place(
                            self.context.modality.collate(items[start : start + compute_config.batch_size])
                        )
                    )
            best = min(best, time.perf_counter() - begin)
        return best / len(rows)

    # --- baselines ----------------------------------------------------------------------------------------------------

    def majority(self) -> HeldOutPredictions:
        fit = lambda train: baselines.majority(self.data.task, self.context.targets, train)  # noqa: E731
        return self._over_folds("majority", fit)

    def raw_input(self) -> HeldOutPredictions:
        task, targets, seed = self.data.task, self.context.targets, self.config.seed
        begin = time.perf_counter()
        if self.data.kind.content == "words":
            return self._over_folds("raw", lambda train: baselines.raw_text(task, self.data.frame, targets, train))
        features = self.data.kind.raw_features(list(self.data.frame["input"]))
        fit = lambda train: baselines.raw_numbers(task, features, targets, train, self.context.groups, seed)  # noqa: E731
        found = self._over_folds("raw", fit)
        return replace(found, total_seconds=time.perf_counter() - begin)

    def _over_folds(self, name: str, fit: Any) -> HeldOutPredictions:
        begin, scores, answering = time.perf_counter(), [], 0.0
        for fold in self.folds:
            answer = fit(fold.train)
            start = time.perf_counter()
            scores.append(answer(fold.held_out))
            answering += time.perf_counter() - start
        seconds = time.perf_counter() - begin
        rows = np.concatenate([fold.held_out for fold in self.folds])
        return HeldOutPredictions(
            name, rows, np.concatenate(scores), len(self.folds), seconds / len(self.folds), seconds,
            row_milliseconds=1000 * answering / len(rows),
        )  # fmt: skip

    # --- heads on frozen features -------------------------------------------------------------------------------------

    def feature_sources(self, head: HeadConfig) -> list[FeatureSource]:
        frozen = self.context.frozen(LayerGroups.of(self.context.model))
        rows, _, head = head_problem(self.context, head)
        return candidates(self.context.model, frozen.layer_groups, head, sample(frozen, rows))

    def probes(self, wanted: list[FeatureSource]) -> "Curve":
        """Return a head on each of these feature sources, from one pass over the rows."""
        return self._solved(self.context, wanted)

    @property
    def pass_seconds(self) -> float:
        """Of one pass over all rows, where the store has none of them."""
        return self.row_seconds * len(self.data.frame)

    def random_features(self) -> "Curve":
        """Return the same head on the features of the same network with random weights."""
        config = self.config.model_copy(update={"strategy": ScratchStrategy()})
        with _quiet():
            context = replace(_context(config, self.data, self.scratch), config=self.config)
            return self._solved(context, self.feature_sources(self.config.head))

    def _solved(self, context: RunContext, wanted: list[FeatureSource]) -> "Curve":
        begin = time.perf_counter()
        frozen, config = context.frozen(LayerGroups.of(context.model)), self.config
        with _quiet():
            rows, task, head_config = head_problem(context, config.head)
            solved = solve_feature_sources(frozen, rows, task, head_config, config.seed, wanted)
            logits = {
                source: self._held_out_logits(context, rows, task, head, solved.features[source])
                for source, head in solved.heads.items()
            }
        losses = {feature_source: head.loss for feature_source, head in solved.heads.items()}
        folds = self.folds if len(self.folds) > 1 else [Fold(self.folds[0].train, self.context.fitted)]
        return Curve(self, logits, losses, folds, time.perf_counter() - begin, solved.seconds)

    def _held_out_logits(
        self, context: RunContext, rows: Rows, task: Task, head: LinearProbe, features: np.ndarray
    ) -> np.ndarray:
        """Return logits (N, C), or (N,) of (W, C), of every row that was held out; NaN for the others."""
        if self.data.task.by_word:
            folds = [(fold.train, fold.held_out) for fold in self.folds]
            return held_out_words(features, rows, task, head, context.targets, folds)
        table = np.full((len(self.data.frame), task.head_size), np.nan)
        table[context.fitted] = head.out_of_fold
        if len(self.folds) == 1:
            held_out = self.folds[0].held_out
            table[held_out] = head.logits(features[held_out])
        return table

    def row_seconds_up_to(self, block: int) -> float:
        """Seconds a row of the network without the blocks above `block`."""
        layer_groups = LayerGroups.of(self.context.model)
        return self._time(SplitPoint(self.context.model, layer_groups, block + 1).activations)

    # --- trainings ----------------------------------------------------------------------------------------------------

    def steps(self, config: RunConfig) -> int:
        """Return the steps of a training on a fold."""
        from hftransfer.training.arguments import planned_steps

        with _quiet():
            config = config.resolved(self.data)
        batch = config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps
        examples = int((self._divided(self.folds[0]).frame["split"] == "train").sum())
        return planned_steps(config.training, config.strategy.defaults(self.data.kind), batch, examples)

    def train(self, config: RunConfig, fold: Fold) -> Trial:
        """Train as a run with this configuration would, choosing the checkpoint on a part of `fold.train`."""
        begin = time.perf_counter()
        with _quiet(), tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            data, config = self._divided(fold), config.resolved(self.data)
            context, seconds = _context(config, data, self.scratch), Seconds(launched_world())
            fitted = fit(context, Path(folder), Stop(), seconds)
        trained, found = fitted.trained, fitted.predictions.of_split(data.frame, "test")
        logits = data.task.in_units(found.logits)
        return Trial(
            data.task.probabilities(logits), time.perf_counter() - begin, seconds.phases["training"], trained.steps,
            fitted.sizes.trainable_share, trained.learning_rate,
        )  # fmt: skip

    def _divided(self, fold: Fold) -> LabelledData:
        """Return the held-out rows as the test part, one of seven parts of the others as the validation part."""
        targets, groups = self.context.targets[fold.train], self.context.groups
        groups = None if groups is None else groups[fold.train]
        inner = make_folds(self.data.task, targets, groups, VALIDATION_FOLDS, self.config.seed)[0][1]
        split = np.full(len(self.data.frame), "unused", dtype=object)
        split[fold.train] = "train"
        split[fold.train[inner]] = "validation"
        split[fold.held_out] = "test"
        return replace(self.data, frame=self.data.frame.assign(split=split))


@dataclass(frozen=True)
class Curve:
    """Heads on several feature sources: logits (N, C) of every row that was held out, and the cross-validated loss of each.

    `seconds` of all of it, `solving` of the heads alone.
    """

    experiments: Experiments
    logits: dict[FeatureSource, np.ndarray]
    losses: dict[FeatureSource, float]
    folds: list[Fold]
    seconds: float
    solving: float = 0.0

    def predictions(
        self, name: str, allowed: Sequence[FeatureSource], changes: dict[str, Any] | None
    ) -> HeldOutPredictions:
        """Return the best of the `allowed` feature sources; each fold's is chosen by the other folds."""
        task, rows = self.experiments.data.task, np.concatenate([fold.held_out for fold in self.experiments.folds])
        if len(self.experiments.folds) == 1:
            best = min(allowed, key=self.losses.__getitem__)
            logits = self.logits[best][rows]
        else:
            logits = np.concatenate(
                [self.logits[r][f.held_out] for f, r in zip(self.folds, self._chosen(allowed), strict=True)]
            )
        block = min(allowed, key=self.losses.__getitem__).block
        deepest = block == max(feature_source.block for feature_source in self.losses)
        milliseconds = 1000 * (self.experiments.row_seconds if deepest else self.experiments.row_seconds_up_to(block))
        notes = {"feature_source": min(allowed, key=self.losses.__getitem__).name}
        return HeldOutPredictions(
            name, rows, task.probabilities(task.in_units(logits)), len(self.experiments.folds), self.seconds, self.seconds,
            self.experiments.head_share, milliseconds, changes, notes,
        )  # fmt: skip

    def _chosen(self, allowed: Sequence[FeatureSource]) -> list[FeatureSource]:
        losses = np.array([[self._loss(r, f.held_out) * len(f.held_out) for r in allowed] for f in self.folds])
        return [allowed[int(choice)] for choice in (losses.sum(0) - losses).argmin(1)]

    def _loss(self, source: FeatureSource, rows: np.ndarray) -> float:
        """Return the mean loss of some rows, or of their words."""
        task = self.experiments.data.task
        targets = task.units(task.standardised(self.experiments.context.targets)[rows])
        targets = targets.astype(np.int64) if task.by_word else targets
        return mean_loss(task.of_unit, task.units(self.logits[source][rows]), targets)


def _quiet() -> AbstractContextManager[None]:
    """Silence a trial: the search logs what matters of it."""
    return only_errors(logging.getLogger("hftransfer"))


def _context(config: RunConfig, data: LabelledData, scratch: Path) -> RunContext:
    from accelerate.utils import set_seed

    world = launched_world()
    set_seed(config.seed)
    config = config.model_copy(update={"model": data.fitted(config.model)})
    checkpoint = load_checkpoint(config.model, data.kind, data.task, config.strategy.from_random_weights)
    return prepare(config, data, checkpoint, devices.choose_device(world, config.use_cpu), world, scratch / "features")


def _learnable(config: RunConfig, data: LabelledData) -> LabelledData:
    """Return the rows outside of the test part.

    A validation part that was merely cut off belongs to the rows that candidates learn from (`RunContext.fitted`), also
    where a probe has a use for it.
    """
    if data.task.by_part and "validation" not in data.given and not config.data.train_examples:
        data = replace(data, frame=data.frame.assign(split=data.frame["split"].replace("validation", "train")))
    kept = (data.frame["split"] != "test").to_numpy()
    inspections = [inspection for inspection, keep in zip(data.inspections, kept, strict=True) if keep]
    return replace(data, frame=data.frame[kept].reset_index(drop=True), inspections=inspections, links=None)


def _folds(context: RunContext) -> list[Fold]:
    """Return the folds of the probe itself, or the validation part that it is not fitted on."""
    fitted = context.fitted
    others = np.setdiff1d(context.positions("validation"), fitted)
    if len(others):
        rows = context.data.frame.iloc[others]
        return [
            Fold(fitted, np.sort(take_examples(rows, context.data.task, MAX_HELD_OUT, context.config.seed).to_numpy()))
        ]
    groups = None if context.groups is None else context.groups[fitted]
    folds = make_folds(
        context.data.task, context.targets[fitted], groups, context.config.head.folds, context.config.seed
    )
    return [Fold(fitted[train], fitted[held_out]) for train, held_out in folds]
