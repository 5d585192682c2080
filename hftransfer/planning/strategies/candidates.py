"""The candidates of a search, from cheap to expensive: their names, what a training of one takes, and which is next."""

import time
from dataclasses import dataclass, field
from typing import Any

from hftransfer.config import RunConfig, with_overrides
from hftransfer.planning.strategies.experiments import Trial

# From cheap to expensive, as a sentence says them.
TITLES = {
    "majority": "the majority", "raw": "raw input", "random": "random weights", "probe": "the probe",
    "best-layer": "the best-layer probe", "frozen": "frozen", "lora": "LoRA", "full": "full", "scratch": "scratch",
}  # fmt: skip
HEADS = ("probe", "best-layer")
ADAPTED = ("frozen", "lora", "full")
TRAINED = (*ADAPTED, "scratch")


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """Return a configuration with changes. What it leaves open stays open: the kind of input decides it."""
    return with_overrides(config.model_dump(mode="json", exclude_unset=True), changes)


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
    """A candidate that trains: the configuration, the seconds of a fold, and the folds so far.

    `own_steps` are those of its strategy, `steps` what the budget holds. `fixed` seconds of a fold do not depend on them.
    """

    name: str
    changes: dict[str, Any]
    config: RunConfig
    own_steps: int
    steps: int
    step_seconds: float
    fixed: float
    spent: float
    trials: list[Trial] = field(default_factory=list)

    @property
    def fold_seconds(self) -> float:
        return self.fixed + self.steps * self.step_seconds

    def add(self, trial: Trial) -> None:
        """Note a fold: what it took is what the next one is expected to take."""
        self.trials.append(trial)
        self.spent += trial.seconds
        self.step_seconds = trial.training_seconds / trial.steps
        self.fixed = trial.seconds - trial.training_seconds


def next_to_measure(chosen: str, gains: dict[str, float], folds: dict[str, int], most: int) -> str | None:
    """Return the rival of the highest gain over the chosen candidate, or this one where it has no more folds than that.

    `gains` holds the candidates that may still change the choice, `folds` how many each has been trained on, `most` at most. In
    made-up searches this lost less than folds shared out evenly (`scripts/simulate_advice.py`).
    """
    nearest = max(gains, key=gains.__getitem__, default=None)
    behind = folds.get(chosen, most) <= (most - 1 if nearest is None else folds[nearest])
    return chosen if behind else nearest
