"""Which candidates there are, from cheap to expensive, and the search: what is tried next, and when it is not worth it."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hftransfer.config import RunConfig, with_overrides
from hftransfer.core.errors import UserError
from hftransfer.planning.strategies.decision import Difference, HeldOutPredictions
from hftransfer.planning.strategies.experiments import Curve, Experiments, Trial
from hftransfer.strategies import AutoStrategy

log = logging.getLogger(__name__)

# From cheap to expensive, as a sentence says them.
TITLES = {
    "majority": "the majority", "raw": "raw input", "random": "random weights", "probe": "the probe",
    "best-layer": "the best-layer probe", "frozen": "frozen", "lora": "LoRA", "full": "full", "scratch": "scratch",
}  # fmt: skip
HEADS = ("probe", "best-layer")
TRAINED = ("frozen", "lora", "full", "scratch")
RATES = (1 / 3, 1.0, 3.0)  # of the strategy's own learning rate
ROWS_TO_CHOOSE_A_RATE = 30  # on fewer rows, which of three rates is better is chance
TIMED_STEPS = 6
SPENT = "the budget is spent"
UNTRACKED = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}

Keep = Callable[[dict[str, Any]], None]  # makes the run folder anew with these changes to the configuration


@dataclass
class Clock:
    """A budget that runs from when it is made."""

    budget: float
    began: float = field(default_factory=time.perf_counter)

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.began

    @property
    def left(self) -> float:
        return self.budget - self.spent


@dataclass
class Trained:
    """A candidate that trains: its configuration, what a fold is predicted to take, and the folds so far."""

    name: str
    config: RunConfig
    fold_seconds: float
    spent: float
    trials: list[Trial] = field(default_factory=list)
    searched: dict[str, float] = field(default_factory=dict)


@dataclass
class Search:
    """`measured` are answers by name, from simple to expensive; `skipped` says why a candidate was not tried.

    With `keep` every choice becomes the run folder, which `kept` names; `overhead` are the seconds that a folder takes
    besides the training.
    """

    experiments: Experiments
    wishes: AutoStrategy
    clock: Clock
    keep: Keep | None = None
    overhead: float = 0.0
    measured: dict[str, HeldOutPredictions] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    curve: Curve | None = None
    kept: str = "probe"
    ended: str = "everything worth trying was tried"
    interrupted: bool = False
    _trained: dict[str, Trained] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.evaluator = self.experiments.evaluator

    def run(self) -> None:
        """Search until the budget ends or nothing is left that could change the choice; Ctrl-C ends it as well.

        Raises `KeyboardInterrupt` where it came before anything was measured.
        """
        try:
            self._heads()
            self._finish_open()  # the better head costs seconds; what follows, minutes
            self._baselines()
            for number, name in enumerate(TRAINED):
                self._try(name, len(TRAINED) - number)
            self._finish_open()
            self._more_folds()
            self._finish_open()
        except KeyboardInterrupt:
            if not self.measured:
                raise
            self.interrupted = True
            self._stays("interrupted")

    @property
    def deployable(self) -> list[HeldOutPredictions]:
        """From simple to expensive; of the two heads, which cost alike, the one of the higher estimate first."""
        heads, trained = (
            [self.measured[name] for name in names if name in self.measured] for names in (HEADS, TRAINED)
        )
        return sorted(heads, key=lambda head: -self.evaluator.gain(head, heads[0])) + trained

    @property
    def chosen(self) -> HeldOutPredictions:
        return self.evaluator.choose(self.deployable, self.wishes.prefer)

    # --- heads and baselines ------------------------------------------------------------------------------------------

    def _heads(self) -> None:
        plain = self.experiments.feature_sources(self.experiments.config.head)
        self.curve = self.experiments.probes(plain)
        self._note(self.curve.predictions("probe", plain, {"strategy.type": "probe"}))
        if self.experiments.config.head.layer == "last":
            self._best_layer()

    def _best_layer(self) -> None:
        """Measure a head on every block, where the network can be cut above them and the budget holds it."""
        wanted = self.experiments.feature_sources(self.experiments.config.head.model_copy(update={"layer": "best"}))
        if len(wanted) == len(self.curve.losses):
            return
        seconds = self.experiments.pass_seconds + self.curve.solving * len(wanted) / len(self.curve.losses)
        needed = seconds if self.keep is None else 2 * seconds + self.overhead
        if needed > self.clock.left:
            return self._skip("best-layer", self._too_dear(needed))
        self.curve = self.experiments.probes(wanted)
        changes = {"strategy.type": "probe", "head.layer": "best"}
        self._note(self.curve.predictions("best-layer", wanted, changes))

    def _baselines(self) -> None:
        self._note(self.experiments.majority())
        steps = {"raw": self.experiments.raw_input} if self.experiments.data.kind.raw_model else {}
        steps["random"] = self._random_features
        for name, measure in steps.items():
            cost = self.measured["probe"].seconds  # of the same order: one pass, some heads
            if cost > self.clock.left:
                self._skip(name, self._too_dear(cost))
            else:
                self._note(measure())

    def _random_features(self) -> HeldOutPredictions:
        curve = self.experiments.random_features()
        return curve.predictions("random", list(curve.losses), None)

    # --- trainings ----------------------------------------------------------------------------------------------------

    def _try(self, name: str, depths_left: int) -> None:
        """One fold of a candidate, with its learning rate chosen first where there is time for it."""
        reason = self._not_worth(name)
        if reason:
            return self._skip(name, reason)
        try:
            candidate = self._timed(name)
        except UserError as error:  # nothing to adapt in this network
            return self._skip(name, str(error))
        needed = candidate.fold_seconds + self._final_seconds(candidate)
        if needed > self.clock.left:
            return self._skip(name, self._too_dear(needed))
        self._choose_rate(candidate, self.clock.left / depths_left - needed)
        self._trained[name] = candidate
        self._add_fold(candidate)

    def _not_worth(self, name: str) -> str | None:
        chosen = self.chosen
        if chosen.folds == len(self.experiments.folds) and not self.evaluator.could_be_beaten(
            chosen, self.wishes.prefer
        ):
            what = "be told from" if self.wishes.prefer == "simplicity" else "be better than"
            return f"even a faultless candidate could not {what} {TITLES[chosen.name]} on these {len(chosen.rows)} rows"
        gain = self.transfer_gain
        if name == "scratch" and gain is not None and gain.is_better:
            return "pretrained features are better than random ones here"
        least = (
            self.experiments.row_seconds
            * 3
            * TIMED_STEPS
            * self.experiments.config.training.per_device_train_batch_size
        )
        return self._too_dear(least) if least > self.clock.left else None

    def _timed(self, name: str) -> Trained:
        """Time a few steps; the prediction for a fold follows from it."""
        begin = time.perf_counter()
        config = self._config({"strategy.type": name})
        fold, training = self.experiments.folds[0], config.training
        steps = self.experiments.steps(config)
        unevaluated = {"early_stopping_patience": None, "extra": training.extra | UNTRACKED}
        few = training.model_copy(update={"max_steps": min(TIMED_STEPS, steps)} | unevaluated)
        trial = self.experiments.train(config.model_copy(update={"training": few}), fold)
        looked_at = training.evaluations * len(fold.train) / 7 + len(fold.held_out)
        seconds = trial.seconds - trial.training_seconds + steps * trial.training_seconds / trial.steps
        seconds += self.experiments.row_seconds * looked_at
        return Trained(name, config, seconds, time.perf_counter() - begin)

    def _config(self, changes: dict[str, Any]) -> RunConfig:
        return with_overrides(self.experiments.config.model_dump(mode="json"), changes)

    def _choose_rate(self, candidate: Trained, seconds: float) -> None:
        """Successive halving (Jamieson & Talwalkar 2016): short runs at three rates, longer ones at the better two."""
        steps = self.experiments.steps(candidate.config)
        named = candidate.config.training.learning_rate is not None
        if (
            named
            or len(self.experiments.rate_rows) < ROWS_TO_CHOOSE_A_RATE
            or candidate.fold_seconds > seconds
            or steps < 16
        ):
            return
        begin = time.perf_counter()
        own = candidate.config.strategy.defaults_for(
            self.experiments.data.modality, self.experiments.context.model
        ).learning_rate
        rate = halve([own * factor for factor in RATES], steps // 8, lambda *how: self._short(candidate, *how))
        candidate.config = self._config({"strategy.type": candidate.name, "training.learning_rate": rate})
        candidate.spent += time.perf_counter() - begin
        log.info("%s: learning rate %.3g (%s)", TITLES[candidate.name], rate,
                 ", ".join(f"{name} {loss:.3g}" for name, loss in candidate.searched.items()))  # fmt: skip

    def _short(self, candidate: Trained, rate: float, steps: int) -> float:
        training = candidate.config.training.model_copy(
            update={"learning_rate": rate, "max_steps": steps, "evaluations": 1}
        )
        trial = self.experiments.train(
            candidate.config.model_copy(update={"training": training}), self.experiments.folds[0]
        )
        candidate.searched[f"{rate:.3g} for {steps} steps"] = trial.loss
        return trial.loss

    def _add_fold(self, candidate: Trained) -> None:
        trial = self.experiments.train(candidate.config, self.experiments.folds[len(candidate.trials)])
        candidate.trials.append(trial)
        candidate.spent += trial.seconds
        candidate.fold_seconds = max(found.seconds for found in candidate.trials)
        self._note(self._predictions(candidate))

    def _predictions(self, candidate: Trained) -> HeldOutPredictions:
        trials, folds = candidate.trials, self.experiments.folds[: len(candidate.trials)]
        changes: dict[str, Any] = {"strategy.type": candidate.name}
        rows, scores = np.concatenate([fold.held_out for fold in folds]), np.concatenate([t.scores for t in trials])
        if candidate.searched:
            changes["training.learning_rate"] = trials[0].learning_rate
            fair = ~np.isin(rows, self.experiments.rate_rows)  # the others chose the rate that they would score
            rows, scores = rows[fair], scores[fair]
        return HeldOutPredictions(
            candidate.name, rows, scores, len(trials), float(np.mean([t.seconds for t in trials])), candidate.spent,
            trials[0].trainable_share, 1000 * self.experiments.row_seconds, changes,
            {"steps": trials[0].steps, "learning_rate": trials[0].learning_rate, "rates": candidate.searched},
        )  # fmt: skip

    def _more_folds(self) -> None:
        """Time that is left goes to candidates that may still change the choice, the nearest to it first."""
        while True:
            candidate = self._open_candidate()
            if candidate is None:
                return
            if candidate.fold_seconds + self._final_seconds(candidate) > self.clock.left:
                self.ended = SPENT
                return
            self._add_fold(candidate)

    def _open_candidate(self) -> Trained | None:
        """Return the candidate that gets the next fold; none where no candidate with folds left may change the choice."""
        chosen, folds = self.chosen, {name: len(candidate.trials) for name, candidate in self._trained.items()}
        others = [name for name in folds if name != chosen.name and folds[name] < len(self.experiments.folds)]
        gains = {
            name: self.evaluator.gain(self.measured[name], chosen)
            for name in others
            if not self.evaluator.difference(self.measured[name], chosen).is_worse
        }
        name = next_to_measure(chosen.name, gains, folds, len(self.experiments.folds))
        return self._trained[name] if name else None

    # --- the run folder -----------------------------------------------------------------------------------------------

    def _final_seconds(self, candidate: Trained) -> float:
        """Training once more on all rows, for the run folder."""
        if self.keep is None or candidate.name == self.kept:
            return 0.0
        return self.overhead + candidate.fold_seconds * self.experiments.labels / len(self.experiments.folds[0].train)

    def _finish_open(self) -> None:
        """Make the run folder of the choice, where there is time for it."""
        chosen = self.chosen
        if self.keep is None or chosen.name == self.kept:
            return
        candidate = self._trained.get(chosen.name)
        needed = self._final_seconds(candidate) if candidate else self.overhead + chosen.seconds
        if needed > self.clock.left:
            return self._stays(self._too_dear(needed))
        log.info("%s takes the place of %s: training on all rows", TITLES[chosen.name], TITLES[self.kept])
        self.keep(chosen.changes)
        self.kept = chosen.name

    def _stays(self, reason: str) -> None:
        """End the search, which may leave less than the choice in a folder that is kept."""
        self.ended, chosen = reason, self.chosen
        if self.keep is not None and chosen.name != self.kept:
            self.ended = f"{TITLES[chosen.name]} could not be trained on all rows ({reason})"
            log.warning("The output stays %s: %s", TITLES[self.kept], self.ended)

    # --- what is said -------------------------------------------------------------------------------------------------

    @property
    def transfer_gain(self) -> Difference | None:
        """What pretraining is worth: the probe against the same head on the features of random weights."""
        return self.against("probe", "random")

    def against(self, new: str, old: str) -> Difference | None:
        if new not in self.measured or old not in self.measured:
            return None
        return self.evaluator.difference(self.measured[new], self.measured[old])

    def gain_after_choice(self, predictions: HeldOutPredictions) -> Difference:
        """Return the gain over the probe, corrected for the choice among all candidates and for the training sets."""
        fold = self.experiments.folds[0]
        found = self.evaluator.difference(predictions, self.measured["probe"])
        return found.corrected(len(self.deployable) - 1, len(fold.held_out) / len(fold.train))

    def by_folds(self, predictions: HeldOutPredictions) -> Difference | None:
        """Return the gain over the probe from fold to fold."""
        folds = self.experiments.folds[: predictions.folds]
        held_out = [np.intersect1d(fold.held_out, predictions.rows) for fold in folds]
        trained_on = len(folds[0].train)
        return self.evaluator.by_folds(predictions, self.measured["probe"], held_out, trained_on)

    def _note(self, predictions: HeldOutPredictions) -> None:
        self.measured[predictions.name] = predictions
        score = self.evaluator.score(predictions)
        folds = len(self.experiments.folds)
        log.info("%s: %s %.4f (%.4f to %.4f), %d of %d folds, %.1f s", TITLES[predictions.name], self.evaluator.metric,
                 score.value, score.low, score.high, predictions.folds, folds, predictions.total_seconds)  # fmt: skip

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        log.info("%s is not tried: %s", TITLES.get(name, name), reason)

    def _too_dear(self, seconds: float) -> str:
        """Said of what is left out for lack of time, which is then why the search ended."""
        self.ended = SPENT
        return f"it needs about {seconds:.0f} s, {max(0, math.floor(self.clock.left))} s of the budget are left"


def next_to_measure(chosen: str, gains: dict[str, float], folds: dict[str, int], most: int) -> str | None:
    """Return the rival of the highest gain over the chosen candidate, or this one where it has no more folds than that.

    `gains` holds the candidates that may still change the choice, `folds` how many each has been trained on, `most` at most. In
    made-up searches this lost less than folds shared out evenly (`scripts/simulate_advice.py`).
    """
    nearest = max(gains, key=gains.__getitem__, default=None)
    behind = folds.get(chosen, most) <= (most - 1 if nearest is None else folds[nearest])
    return chosen if behind else nearest


def halve(rates: Sequence[float], steps: int, loss: Callable[[float, int], float]) -> float:
    """Keep the better half of `rates` with twice the steps until one is left."""
    rates = list(rates)
    while len(rates) > 1:
        losses = {rate: loss(rate, steps) for rate in rates}
        rates = sorted(rates, key=losses.__getitem__)[: math.ceil(len(rates) / 2)]
        steps *= 2
    return rates[0]
