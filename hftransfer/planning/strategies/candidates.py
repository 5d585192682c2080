"""Which rungs there are, from cheap to dear, and the climb: what is tried next, and when it is not worth it."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hftransfer.config import RunConfig, with_overrides
from hftransfer.core.errors import UserError
from hftransfer.planning.strategies.decision import Answers, Difference
from hftransfer.planning.strategies.experiments import Bench, Curve, Trial
from hftransfer.strategies import AutoStrategy

log = logging.getLogger(__name__)

# From cheap to dear, as a sentence says them.
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
    """A rung that trains: its configuration, what a fold is predicted to take, and the folds so far."""

    name: str
    config: RunConfig
    fold_seconds: float
    spent: float
    trials: list[Trial] = field(default_factory=list)
    searched: dict[str, float] = field(default_factory=dict)


@dataclass
class Climb:
    """`measured` are answers by name, from simple to dear; `skipped` says why a rung was not tried.

    With `keep` every choice becomes the run folder, which `kept` names; `overhead` are the seconds that a folder takes
    besides the training.
    """

    bench: Bench
    wishes: AutoStrategy
    clock: Clock
    keep: Keep | None = None
    overhead: float = 0.0
    measured: dict[str, Answers] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    curve: Curve | None = None
    kept: str = "probe"
    ended: str = "everything worth trying was tried"
    interrupted: bool = False
    _trained: dict[str, Trained] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judge = self.bench.judge

    def run(self) -> None:
        """Climb until the budget ends or nothing is left that could change the choice; Ctrl-C ends it as well.

        Raises `KeyboardInterrupt` where it came before anything was measured.
        """
        try:
            self._heads()
            self._settle()  # the better head costs seconds; what follows, minutes
            self._baselines()
            for number, name in enumerate(TRAINED):
                self._try(name, len(TRAINED) - number)
            self._settle()
            self._more_folds()
            self._settle()
        except KeyboardInterrupt:
            if not self.measured:
                raise
            self.interrupted = True
            self._stays("interrupted")

    @property
    def deployable(self) -> list[Answers]:
        """From simple to dear; of the two heads, which cost alike, the one of the higher estimate first."""
        heads, trained = (
            [self.measured[name] for name in names if name in self.measured] for names in (HEADS, TRAINED)
        )
        return sorted(heads, key=lambda head: -self.judge.gain(head, heads[0])) + trained

    @property
    def chosen(self) -> Answers:
        return self.judge.choose(self.deployable, self.wishes.prefer)

    # --- heads and baselines ------------------------------------------------------------------------------------------

    def _heads(self) -> None:
        plain = self.bench.readouts(self.bench.config.head)
        self.curve = self.bench.probes(plain)
        self._note(self.curve.answers("probe", plain, {"strategy.type": "probe"}))
        if self.bench.config.head.layer == "last":
            self._best_layer()

    def _best_layer(self) -> None:
        """A head on every block, where the network can be cut above them and the budget holds it."""
        wanted = self.bench.readouts(self.bench.config.head.model_copy(update={"layer": "best"}))
        if len(wanted) == len(self.curve.losses):
            return
        seconds = self.bench.pass_seconds + self.curve.solving * len(wanted) / len(self.curve.losses)
        needed = seconds if self.keep is None else 2 * seconds + self.overhead
        if needed > self.clock.left:
            return self._skip("best-layer", self._too_dear(needed))
        self.curve = self.bench.probes(wanted)
        changes = {"strategy.type": "probe", "head.layer": "best"}
        self._note(self.curve.answers("best-layer", wanted, changes))

    def _baselines(self) -> None:
        self._note(self.bench.majority())
        steps = {"raw": self.bench.raw_input} if self.bench.data.kind.content else {}
        steps["random"] = self._random_features
        for name, measure in steps.items():
            cost = self.measured["probe"].seconds  # of the same order: one pass, some heads
            if cost > self.clock.left:
                self._skip(name, self._too_dear(cost))
            else:
                self._note(measure())

    def _random_features(self) -> Answers:
        curve = self.bench.random_features()
        return curve.answers("random", list(curve.losses), None)

    # --- trainings ----------------------------------------------------------------------------------------------------

    def _try(self, name: str, rungs_left: int) -> None:
        """One fold of a rung, with its learning rate chosen first where there is time for it."""
        reason = self._not_worth(name)
        if reason:
            return self._skip(name, reason)
        try:
            rung = self._timed(name)
        except UserError as error:  # nothing to adapt in this network
            return self._skip(name, str(error))
        needed = rung.fold_seconds + self._final_seconds(rung)
        if needed > self.clock.left:
            return self._skip(name, self._too_dear(needed))
        self._choose_rate(rung, self.clock.left / rungs_left - needed)
        self._trained[name] = rung
        self._add_fold(rung)

    def _not_worth(self, name: str) -> str | None:
        chosen = self.chosen
        if chosen.folds == len(self.bench.folds) and not self.judge.could_be_beaten(chosen, self.wishes.prefer):
            what = "be told from" if self.wishes.prefer == "simplicity" else "be better than"
            return f"even a faultless rung could not {what} {TITLES[chosen.name]} on these {len(chosen.rows)} rows"
        gain = self.transfer_gain
        if name == "scratch" and gain is not None and gain.is_better:
            return "pretrained features are better than random ones here"
        least = self.bench.row_seconds * 3 * TIMED_STEPS * self.bench.config.training.per_device_train_batch_size
        return self._too_dear(least) if least > self.clock.left else None

    def _timed(self, name: str) -> Trained:
        """A few steps, for what a step takes; the prediction for a fold follows from it."""
        begin = time.perf_counter()
        config = self._config({"strategy.type": name})
        fold, training = self.bench.folds[0], config.training
        steps = self.bench.steps(config)
        unjudged = {"early_stopping_patience": None, "extra": training.extra | UNTRACKED}
        few = training.model_copy(update={"max_steps": min(TIMED_STEPS, steps)} | unjudged)
        trial = self.bench.train(config.model_copy(update={"training": few}), fold)
        looked_at = training.evaluations * len(fold.train) / 7 + len(fold.held_out)
        seconds = trial.seconds - trial.training_seconds + steps * trial.training_seconds / trial.steps
        seconds += self.bench.row_seconds * looked_at
        return Trained(name, config, seconds, time.perf_counter() - begin)

    def _config(self, changes: dict[str, Any]) -> RunConfig:
        return with_overrides(self.bench.config.model_dump(mode="json"), changes)

    def _choose_rate(self, rung: Trained, seconds: float) -> None:
        """Successive halving (Jamieson & Talwalkar 2016): short runs at three rates, longer ones at the better two."""
        steps = self.bench.steps(rung.config)
        named = rung.config.training.learning_rate is not None
        if named or len(self.bench.rate_rows) < ROWS_TO_CHOOSE_A_RATE or rung.fold_seconds > seconds or steps < 16:
            return
        begin = time.perf_counter()
        own = rung.config.strategy.defaults_for(self.bench.data.modality, self.bench.work.model).learning_rate
        rate = halve([own * factor for factor in RATES], steps // 8, lambda *how: self._short(rung, *how))
        rung.config = self._config({"strategy.type": rung.name, "training.learning_rate": rate})
        rung.spent += time.perf_counter() - begin
        log.info("%s: learning rate %.3g (%s)", TITLES[rung.name], rate,
                 ", ".join(f"{name} {loss:.3g}" for name, loss in rung.searched.items()))  # fmt: skip

    def _short(self, rung: Trained, rate: float, steps: int) -> float:
        training = rung.config.training.model_copy(update={"learning_rate": rate, "max_steps": steps, "evaluations": 1})
        trial = self.bench.train(rung.config.model_copy(update={"training": training}), self.bench.folds[0])
        rung.searched[f"{rate:.3g} for {steps} steps"] = trial.loss
        return trial.loss

    def _add_fold(self, rung: Trained) -> None:
        trial = self.bench.train(rung.config, self.bench.folds[len(rung.trials)])
        rung.trials.append(trial)
        rung.spent += trial.seconds
        rung.fold_seconds = max(found.seconds for found in rung.trials)
        self._note(self._answers(rung))

    def _answers(self, rung: Trained) -> Answers:
        trials, folds = rung.trials, self.bench.folds[: len(rung.trials)]
        changes: dict[str, Any] = {"strategy.type": rung.name}
        rows, scores = np.concatenate([fold.held_out for fold in folds]), np.concatenate([t.scores for t in trials])
        if rung.searched:
            changes["training.learning_rate"] = trials[0].learning_rate
            fair = ~np.isin(rows, self.bench.rate_rows)  # the others chose the rate that they would score
            rows, scores = rows[fair], scores[fair]
        return Answers(
            rung.name, rows, scores, len(trials), float(np.mean([t.seconds for t in trials])), rung.spent,
            trials[0].trainable_share, 1000 * self.bench.row_seconds, changes,
            {"steps": trials[0].steps, "learning_rate": trials[0].learning_rate, "rates": rung.searched},
        )  # fmt: skip

    def _more_folds(self) -> None:
        """Time that is left goes to rungs that may still change the choice, the nearest to it first."""
        while True:
            rung = self._unsettled()
            if rung is None:
                return
            if rung.fold_seconds + self._final_seconds(rung) > self.clock.left:
                self.ended = SPENT
                return
            self._add_fold(rung)

    def _unsettled(self) -> Trained | None:
        """The rung that gets the next fold; none where no rung with folds left may change the choice."""
        chosen, folds = self.chosen, {name: len(rung.trials) for name, rung in self._trained.items()}
        others = [name for name in folds if name != chosen.name and folds[name] < len(self.bench.folds)]
        gains = {
            name: self.judge.gain(self.measured[name], chosen)
            for name in others
            if not self.judge.difference(self.measured[name], chosen).is_worse
        }
        name = next_to_measure(chosen.name, gains, folds, len(self.bench.folds))
        return self._trained[name] if name else None

    # --- the run folder -----------------------------------------------------------------------------------------------

    def _final_seconds(self, rung: Trained) -> float:
        """Training once more on all rows, for the run folder."""
        if self.keep is None or rung.name == self.kept:
            return 0.0
        return self.overhead + rung.fold_seconds * self.bench.labels / len(self.bench.folds[0].train)

    def _settle(self) -> None:
        """The choice becomes the run folder, where there is time for it."""
        chosen = self.chosen
        if self.keep is None or chosen.name == self.kept:
            return
        rung = self._trained.get(chosen.name)
        needed = self._final_seconds(rung) if rung else self.overhead + chosen.seconds
        if needed > self.clock.left:
            return self._stays(self._too_dear(needed))
        log.info("%s takes the place of %s: training on all rows", TITLES[chosen.name], TITLES[self.kept])
        self.keep(chosen.changes)
        self.kept = chosen.name

    def _stays(self, reason: str) -> None:
        """The climb ended, and where a folder is kept, it may hold less than the choice."""
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
        return self.judge.difference(self.measured[new], self.measured[old])

    def gain_after_choice(self, answers: Answers) -> Difference:
        """Return the gain over the probe, corrected for the choice among all candidates and for the training sets."""
        fold = self.bench.folds[0]
        found = self.judge.difference(answers, self.measured["probe"])
        return found.corrected(len(self.deployable) - 1, len(fold.held_out) / len(fold.train))

    def by_folds(self, answers: Answers) -> Difference | None:
        """The gain over the probe from fold to fold."""
        folds = self.bench.folds[: answers.folds]
        held_out = [np.intersect1d(fold.held_out, answers.rows) for fold in folds]
        trained_on = len(folds[0].train)
        return self.judge.by_folds(answers, self.measured["probe"], held_out, trained_on)

    def _note(self, answers: Answers) -> None:
        self.measured[answers.name] = answers
        score = self.judge.score(answers)
        log.info("%s: %s %.4f (%.4f to %.4f), %d of %d folds, %.1f s", TITLES[answers.name], self.judge.metric,
                 score.value, score.low, score.high, answers.folds, len(self.bench.folds), answers.total_seconds)  # fmt: skip

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        log.info("%s is not tried: %s", TITLES.get(name, name), reason)

    def _too_dear(self, seconds: float) -> str:
        """Said of what is left out for lack of time, which is then why the climb ended."""
        self.ended = SPENT
        return f"it needs about {seconds:.0f} s, {max(0, math.floor(self.clock.left))} s of the budget are left"


def next_to_measure(chosen: str, gains: dict[str, float], folds: dict[str, int], most: int) -> str | None:
    """The rival of the highest gain over the chosen rung, or this rung itself where it has no more folds than that.

    `gains` holds the rungs that may still change the choice, `folds` how many each has been trained on, `most` at most. In
    made-up climbs this lost less than folds shared out evenly (`scripts/simulate_advice.py`).
    """
    nearest = max(gains, key=gains.__getitem__, default=None)
    behind = folds.get(chosen, most) <= (most - 1 if nearest is None else folds[nearest])
    return chosen if behind else nearest


def halve(rates: Sequence[float], steps: int, loss: Callable[[float, int], float]) -> float:
    """The better half of `rates` goes on with twice the steps until one is left."""
    rates = list(rates)
    while len(rates) > 1:
        losses = {rate: loss(rate, steps) for rate in rates}
        rates = sorted(rates, key=losses.__getitem__)[: math.ceil(len(rates) / 2)]
        steps *= 2
    return rates[0]
