"""The search among strategies: what is tried next, when it is not worth it, and what becomes the run folder."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hftransfer.core.errors import UserError
from hftransfer.planning.strategies.candidates import (
    ADAPTED,
    HEADS,
    TITLES,
    TRAINED,
    Clock,
    Trained,
    changed,
    next_to_measure,
)
from hftransfer.planning.strategies.decision import Difference, HeldOutPredictions, Preference
from hftransfer.planning.strategies.experiments import Curve, Experiments
from hftransfer.planning.strategies.prior import PROBE, RETRAINING, Gain, prior_gain, updated
from hftransfer.strategies import AutoStrategy

log = logging.getLogger(__name__)

TIMED_STEPS = 6
SHORTEST = 0.5  # of a strategy's own steps: those of the prior results
USED = 0.9  # of the time left, for a training that is shortened to it: predictions of seconds are rough
SPENT = "the budget is spent"
UNTRACKED = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}

Keep = Callable[[dict[str, Any]], None]  # makes the run folder again with these changes to the configuration


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
    _differences: dict[tuple, Difference] = field(default_factory=dict)
    _simplest: dict[tuple, str] = field(default_factory=dict)
    _unaffordable: set[str] = field(default_factory=set)  # better, but without time for the final training

    def __post_init__(self) -> None:
        self.evaluator = self.experiments.evaluator

    def run(self) -> None:
        """Search until the budget ends or nothing is left that could change the choice; Ctrl-C ends it as well.

        Raises `KeyboardInterrupt` where it came before anything was measured.
        """
        try:
            self._heads()
            self._finish_open()  # the better head costs seconds; what follows, minutes
            for name in ADAPTED:
                self._try(name)
            self._baselines()
            self._try("scratch")
            self._finish_open()
            self._more_folds()
            self._finish_open()
        except KeyboardInterrupt:
            if not self.measured:
                raise
            self.interrupted = True
            self._stays(self.chosen, "interrupted")

    @property
    def deployable(self) -> list[HeldOutPredictions]:
        """From simple to expensive; of the two heads, which cost alike, the one of the higher estimate first."""
        heads, trained = (
            [self.measured[name] for name in names if name in self.measured] for names in (HEADS, TRAINED)
        )
        return sorted(heads, key=lambda head: -self.evaluator.gain(head, heads[0])) + trained

    @property
    def chosen(self) -> str:
        return self.preferred(self.wishes.prefer)

    def preferred(self, prefer: Preference) -> str:
        """Return the candidate of the highest expected gain, or the simplest that the held-out rows cannot separate."""
        if prefer == "simplicity":
            affordable = [candidate for candidate in self.deployable if candidate.name not in self._unaffordable]
            asked = tuple((one.name, one.folds) for one in affordable)
            if asked not in self._simplest:  # a paired test for each
                self._simplest[asked] = self.evaluator.simplest(affordable).name
            return self._simplest[asked]
        gains = {name: gain.mean for name, gain in self.expected.items() if name not in self._unaffordable}
        return max((name for name in gains if not self._behind(name)), key=gains.__getitem__)

    @property
    def changes(self) -> dict[str, Any]:
        """What a configuration needs to become the chosen candidate."""
        return self._changes(self.chosen)

    def _changes(self, name: str) -> dict[str, Any]:
        return self._trained[name].changes if name in self._trained else self.measured[name].changes

    @property
    def expected(self) -> dict[str, Gain]:
        """The expected gain over the probe of all that was measured or could be trained in the budget."""
        found = {name: self._expected(name) for name in (HEADS[1], *TRAINED)}
        return {"probe": PROBE} | {name: gain for name, gain in found.items() if gain is not None}

    def _expected(self, name: str) -> Gain | None:
        prior = self.prior(name)
        if name not in self.measured:
            return prior if name in self._trained else None
        found, fold = self.against(name, "probe"), self.experiments.folds[0]
        retraining = RETRAINING if name in TRAINED else 0.0
        return updated(prior, found, len(fold.held_out) / len(fold.train), retraining)

    def prior(self, name: str) -> Gain | None:
        """Return what prior results say, from where trainings begin; of errors in units of their own they say nothing."""
        data, begins_higher = self.experiments.data, name in ADAPTED and bool(self._start)
        if not data.task.has_classes:
            return None
        prior = prior_gain(data.kind.prior_gains, f"{name}, best layer" if begins_higher else name)
        return replace(prior, mean=prior.mean + self._gain_of_start) if prior and begins_higher else prior

    def _behind(self, name: str) -> bool:
        return name in self.measured and self.evaluator.gain(self.measured[name], self.measured["probe"]) < 0

    # --- heads and baselines ------------------------------------------------------------------------------------------

    def _heads(self) -> None:
        if not self.experiments.data.kind.solves_head:
            return self._trained_probe()
        plain = self.experiments.feature_sources(self.experiments.config.head)
        self.curve = self.experiments.probes(plain)
        self._note(self.curve.predictions("probe", plain, {"strategy.type": "probe"}))
        if self.experiments.config.head.layer == "last":
            self._best_layer()

    def _trained_probe(self) -> None:
        """Train the probe on one fold where its head has no solution: what trains more is compared with it."""
        changes = {"strategy.type": "probe"}
        config = changed(self.experiments.config, changes)
        steps = self.experiments.steps(config)
        self._trained["probe"] = Trained("probe", changes, config, steps, steps, 0.0, 0.0, 0.0)
        self._add_fold(self._trained["probe"])

    def _best_layer(self) -> None:
        """Measure a head on every block, where the network can be cut above them and the budget holds it."""
        wanted = self.experiments.feature_sources(self.experiments.config.head.model_copy(update={"layer": "best"}))
        if len(wanted) == len(self.curve.losses):
            return
        seconds = self.experiments.pass_seconds + self.curve.solving * len(wanted) / len(self.curve.losses)
        needed = seconds if self.keep is None else 2 * seconds + self.overhead
        if needed > self.clock.left:
            return self._skip("best-layer", self._too_expensive(needed))
        self.curve = self.experiments.probes(wanted)
        changes = {"strategy.type": "probe", "head.layer": "best"}
        self._note(self.curve.predictions("best-layer", wanted, changes))

    def _baselines(self) -> None:
        self._note(self.experiments.majority())
        steps = {"raw": self.experiments.raw_input} if self.experiments.data.kind.raw_model else {}
        steps |= {"random": self._random_features} if self.experiments.data.kind.solves_head else {}
        for name, measure in steps.items():
            cost = self.measured["probe"].seconds  # of the same order: one pass, some heads
            if cost + self._reserved > self.clock.left:
                self._skip(name, self._too_expensive(cost))
            else:
                self._note(measure())

    def _random_features(self) -> HeldOutPredictions:
        curve = self.experiments.random_features()
        return curve.predictions("random", list(curve.losses), None)

    # --- trainings ----------------------------------------------------------------------------------------------------

    def _try(self, name: str) -> None:
        """Train one fold of a candidate where the final training still fits after it; else its prior gain stands."""
        reason = self._not_worth(name)
        if reason:
            return self._skip(name, reason)
        try:
            candidate = self._fitting(self._timed(name))
        except UserError as error:  # nothing to adapt in this network
            return self._skip(name, str(error))
        needed, reserved = self._fold_seconds(candidate), self._final_seconds(candidate)
        if reserved > self.clock.left or (needed > self.clock.left and self.prior(name) is None):
            return self._skip(name, self._too_expensive(needed + reserved))
        self._trained[name] = candidate
        if needed + max(reserved, self._reserved) <= self.clock.left:
            return self._add_fold(candidate)
        self._skip(name, self._too_expensive(needed + max(reserved, self._reserved)))
        if self.prior(name) is None:
            del self._trained[name]

    @property
    def _reserved(self) -> float:
        """Seconds of the final training of what would be chosen now."""
        candidate = self._trained.get(self.chosen)
        return self._final_seconds(candidate) if candidate else 0.0

    def _not_worth(self, name: str) -> str | None:
        best = self.evaluator.best(self.deployable)
        whole = best.folds == len(self.experiments.folds)
        if whole and not self.evaluator.could_be_beaten(best, self.wishes.prefer):
            what = "be told from" if self.wishes.prefer == "simplicity" else "be better than"
            return f"even a faultless candidate could not {what} {TITLES[best.name]} on these {len(best.rows)} rows"
        gain = self.transfer_gain
        if name == "scratch" and self.experiments.data.kind.solves_head and (gain is None or gain.is_better):
            return (
                "pretrained features are better than random ones here" if gain else "random features were not measured"
            )
        batch = self.experiments.config.training.per_device_train_batch_size
        least = self.experiments.row_seconds * 3 * TIMED_STEPS * batch
        return self._too_expensive(least + self._reserved) if least + self._reserved > self.clock.left else None

    def _timed(self, name: str) -> Trained:
        """Time a few steps; the prediction for a fold follows from it."""
        begin = time.perf_counter()
        changes = {"strategy.type": name} | (self._start if name in ADAPTED else {})
        config = changed(self.experiments.config, changes)
        fold, training = self.experiments.folds[0], config.training
        steps = self.experiments.steps(config)
        unevaluated = {"early_stopping_patience": None, "extra": training.extra | UNTRACKED}
        few = training.model_copy(update={"max_steps": min(TIMED_STEPS, steps)} | unevaluated)
        trial = self.experiments.train(config.model_copy(update={"training": few}), fold)
        evaluated = training.evaluations * len(fold.train) / 7 + len(fold.held_out)
        fixed = trial.seconds - trial.training_seconds + self.experiments.row_seconds * evaluated
        step_seconds = trial.training_seconds / trial.steps
        return Trained(name, changes, config, steps, steps, step_seconds, fixed, time.perf_counter() - begin)

    @property
    def _start(self) -> dict[str, Any]:
        """Where trainings begin: at the best layer's head, where that is better than the last layer's."""
        return {} if self._gain_of_start <= 0 else {"strategy.head_init": "probe", "head.layer": "best"}

    @property
    def _gain_of_start(self) -> float:
        gain = self._expected("best-layer")
        return 0.0 if gain is None or self._behind("best-layer") else max(0.0, gain.mean)

    def _fitting(self, candidate: Trained) -> Trained:
        """Return the candidate with as many steps as the final training has time for, at least `SHORTEST` of its own."""
        lacking = self._final_seconds(candidate) - USED * self.clock.left
        training = self.experiments.config.training
        if lacking <= 0 or not candidate.step_seconds or training.max_steps or training.num_train_epochs:
            return candidate
        steps = candidate.steps - math.ceil(lacking / self._more_examples / candidate.step_seconds)
        if steps < SHORTEST * candidate.own_steps:
            return candidate
        log.info("%s: %d steps fit into the budget, its own are %d", TITLES[candidate.name], steps, candidate.own_steps)
        changes = candidate.changes | {"training.max_steps": steps}
        return replace(candidate, changes=changes, steps=steps, config=changed(self.experiments.config, changes))

    def _lacking(self, candidate: Trained) -> Trained | None:
        """Return the probe where it is trained as well and has not answered the next fold of another candidate."""
        probe = self._trained.get("probe")
        behind = probe is not None and candidate is not probe and len(probe.trials) <= len(candidate.trials)
        return probe if behind else None

    def _fold_seconds(self, candidate: Trained) -> float:
        probe = self._lacking(candidate)
        return candidate.fold_seconds + (probe.fold_seconds if probe else 0.0)

    def _add_fold(self, candidate: Trained) -> None:
        if probe := self._lacking(candidate):
            self._add_fold(probe)
        trial = self.experiments.train(candidate.config, self.experiments.folds[len(candidate.trials)])
        candidate.add(trial)
        self._note(self._predictions(candidate))

    def _predictions(self, candidate: Trained) -> HeldOutPredictions:
        trials, folds = candidate.trials, self.experiments.folds[: len(candidate.trials)]
        rows, scores = np.concatenate([fold.held_out for fold in folds]), np.concatenate([t.scores for t in trials])
        return HeldOutPredictions(
            candidate.name, rows, scores, len(trials), float(np.mean([t.seconds for t in trials])), candidate.spent,
            trials[0].trainable_share, 1000 * self.experiments.row_seconds, candidate.changes,
            {"steps": trials[0].steps, "learning_rate": trials[0].learning_rate},
        )  # fmt: skip

    def _more_folds(self) -> None:
        """Time that is left goes to candidates that may still change the choice, the nearest to it first."""
        while True:
            candidate = self._open_candidate()
            if candidate is None:
                return
            if self._fold_seconds(candidate) + max(self._final_seconds(candidate), self._reserved) > self.clock.left:
                self.ended = SPENT
                return
            self._add_fold(candidate)

    def _open_candidate(self) -> Trained | None:
        """Return the candidate that gets the next fold; none where no candidate with folds left may change the choice."""
        chosen, folds, most = self.chosen, self._folds_so_far, len(self.experiments.folds)
        others = [name for name in folds if name != chosen and 0 < folds[name] < most]
        gains = {name: self._lead(name, chosen) for name in others if not self._is_worse(name, chosen)}
        if chosen == "probe" and not gains:
            return None  # nothing is left to compare it with
        name = next_to_measure(chosen, gains, folds, most)
        return self._trained[name] if name else None

    @property
    def _folds_so_far(self) -> dict[str, int]:
        return {name: len(candidate.trials) for name, candidate in self._trained.items()}

    def _lead(self, name: str, chosen: str) -> float:
        if self.wishes.prefer == "simplicity":
            return self.evaluator.gain(self.measured[name], self.measured[chosen])
        return self.expected[name].mean - self.expected[chosen].mean

    def _is_worse(self, name: str, chosen: str) -> bool:
        return chosen in self.measured and self.against(name, chosen).is_worse

    # --- the run folder -----------------------------------------------------------------------------------------------

    @property
    def _more_examples(self) -> float:
        """Examples of the final training, per example of a fold's."""
        return self.experiments.labels / len(self.experiments.folds[0].train)

    def _final_seconds(self, candidate: Trained) -> float:
        """Training once more on all rows, for the run folder."""
        if self.keep is None or candidate.name == self.kept:
            return 0.0
        return self.overhead + candidate.fold_seconds * self._more_examples

    def _finish_open(self) -> None:
        """Make the run folder of the best choice that there is time for."""
        while self.keep is not None and self.chosen != self.kept:
            chosen, needed = self.chosen, self.overhead
            if chosen in self._trained:
                self._trained[chosen] = self._fitting(self._trained[chosen])
                needed = self._final_seconds(self._trained[chosen])
            else:
                needed += self.measured[chosen].seconds
            if needed <= self.clock.left:
                log.info("%s takes the place of %s: training on all rows", TITLES[chosen], TITLES[self.kept])
                self.keep(self._changes(chosen))
                self.kept = chosen
            else:
                self._stays(chosen, self._too_expensive(needed))

    def _stays(self, chosen: str, reason: str) -> None:
        """Give up a candidate for the folder that is kept."""
        self.ended = reason
        if self.keep is not None and chosen != self.kept:
            self._unaffordable.add(chosen)
            self.ended = f"{TITLES[chosen]} could not be trained on all rows ({reason})"
            log.warning("The output stays %s: %s", TITLES[self.kept], self.ended)

    # --- what is said -------------------------------------------------------------------------------------------------

    @property
    def transfer_gain(self) -> Difference | None:
        """What pretraining is worth: the probe against the same head on the features of random weights."""
        return self.against("probe", "random")

    def against(self, new: str, old: str) -> Difference | None:
        if new not in self.measured or old not in self.measured:
            return None
        pair = self.measured[new], self.measured[old]
        key = tuple((one.name, one.folds) for one in pair)
        if key not in self._differences:  # a bootstrap for some metrics
            self._differences[key] = self.evaluator.difference(*pair)
        return self._differences[key]

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

    def _too_expensive(self, seconds: float) -> str:
        """Said of what is left out for lack of time, which is then why the search ended."""
        self.ended = SPENT
        return f"it needs about {seconds:.0f} s, {max(0, math.floor(self.clock.left))} s of the budget are left"
