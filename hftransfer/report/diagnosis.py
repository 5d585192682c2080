"""What the curves and tables of a run say, in plain words: each finding is one sentence and one command.

Every rule is a pure function of `Evidence`. The thresholds are deliberate: a finding should be right rather than early, so
each asks for a clear case, and a run without findings is the usual one.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hftransfer.runs.reader import RecordedRun
from hftransfer.tasks import Task


@dataclass(frozen=True)
class Finding:
    """What is wrong, and what to try."""

    kind: str
    sentence: str
    command: str


@dataclass(frozen=True)
class Evidence:
    """The facts that the rules look at. Shares are by class name, over the test rows.

    `run` is the folder and `history` the Trainer's log; `guess` is the loss of equal probabilities (of the mean, for
    regression); `softened` tells that mixed inputs or smoothed labels keep the training loss up; `test` and `validation`
    hold the metrics of `metrics.json`; `test_given` tells that the test part was not cut off from the rows,
    `cross_validated` that the run is told by folds over all rows; `train_rows`
    has the training rows of each class, and `balanced` tells that classes counted alike already; `truncated` is the share
    of texts that lost their end, None where not measured.
    """

    run: str
    guess: float = 1.0
    softened: bool = False
    headline: str = "accuracy"
    history: Sequence[dict[str, Any]] = ()
    test: dict[str, dict] = field(default_factory=dict)
    validation: dict[str, dict] = field(default_factory=dict)
    test_given: bool = False
    cross_validated: bool = False
    per_class: Sequence[dict] = ()
    actual: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    train_rows: dict[str, int] = field(default_factory=dict)
    balanced: bool = False
    truncated: float | None = None
    learning_rate: float | None = None

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and values of one entry of the log."""
        points = [(entry["step"], entry[key]) for entry in self.history if key in entry]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps, dtype=float), np.array(values, dtype=float)

    def again(self, change: str) -> str:
        """Return the command that trains once more, beside the first run, with one change."""
        return f"hftransfer train {shlex.quote(f'{self.run}/config.yaml')} --output {shlex.quote(f'{self.run}-2')} {change}"

    def weighed_up(self, otherwise: str) -> str:
        """Return the command that makes rare classes count as much as common ones; `otherwise` where they did."""
        return otherwise if self.balanced else self.again("training.imbalance=balanced")


def gather(run: RecordedRun) -> Evidence:
    """Return the evidence of a finished run."""
    task, part = run.task, run.part(run.evaluated)
    actual, predicted = {}, {}
    if task.exclusive:
        actual, predicted = _shares(task, part.targets), _shares(task, task.decide(part.scores))
    settings = run.config
    return Evidence(
        run=str(run.folder),
        guess=task.uninformed_loss,
        softened=bool(settings.get("training", {}).get("label_smoothing_factor")),
        headline=task.headline if task.has_classes else "r2",
        history=run.history,
        test=run.metrics.parts[run.evaluated],
        validation=run.metrics.validation if run.evaluated == "test" else {},
        test_given="test" in (run.record.data.given or ()),
        cross_validated=run.metrics.headline == "cross_validation",
        per_class=run.metrics.per_class[run.evaluated] if task.has_classes else (),
        actual=actual,
        predicted=predicted,
        train_rows=run.train_rows,
        balanced=settings.get("training", {}).get("imbalance") == "balanced",
        truncated=run.record.truncated_share,
        learning_rate=run.record.learning_rate
        or settings.get("training", {}).get("learning_rate")
        or max((entry.get("learning_rate", 0.0) for entry in run.history), default=None),
    )


def _shares(task: Task, targets: np.ndarray) -> dict[str, float]:
    counts = np.bincount(targets, minlength=task.head_size)
    return dict(zip(task.names, (counts / len(targets)).tolist(), strict=True))


def diagnose(evidence: Evidence) -> list[Finding]:
    """Return findings, gravest first; one about the learning at the most, for one cause shows in several ways."""
    learning = (
        _diverged, _never_learned, _by_heart, _rate_too_low, _collapsed, _gained_nothing, _overfit, _underfit, _transform_gap,
    )  # fmt: skip
    first = next((finding for rule in learning if (finding := rule(evidence))), None)
    starved = _silent(evidence) or _starving(evidence)
    others = (_rows_differ(evidence), _truncated(evidence), starved, _too_few_test_rows(evidence))
    return [finding for finding in (first, *others) if finding]


def _diverged(evidence: Evidence) -> Finding | None:
    """Find a rate that is too high: the training loss shoots far above guessing, ends above its start, or is no number.

    A hump from which the loss came down to well below its start is none: warm-up of a random head looks so.
    """
    _, loss = evidence.curve("loss")
    if len(loss) < 5:
        return None
    first, last = _ends(loss)
    shot_up = (loss > 1.5 * max(loss[0], evidence.guess)).mean() > 0.04  # one bad batch may
    mended = last < 0.5 * min(first, evidence.guess)
    if np.isfinite(loss).all() and (not shot_up or mended) and last < max(1.5 * first, first + 0.1):
        return None
    how = f"rose from {loss[0]:.3g} to {np.nanmax(loss):.3g}" if np.isfinite(loss).all() else "became infinite"
    return Finding(
        "rate too high",
        f"The training loss {how}: the learning rate of {_rate(evidence)} is too high.",
        evidence.again(f"training.learning_rate={_scaled(evidence, 0.1)}"),
    )


def _never_learned(evidence: Evidence) -> Finding | None:
    """Find a test score at chance, while the training loss, if there is one, stayed near that of guessing.

    Not so where validation rows are answered: then the test rows are others (see `_rows_differ`).
    """
    name = next((name for name in ("mcc", "r2") if name in evidence.test), None)
    _, loss = evidence.curve("loss")
    if name is None or not evidence.test[name]["low"] <= 0 or (len(loss) and _ends(loss)[1] < 0.9 * evidence.guess):
        return None
    if evidence.validation.get(name, {"low": 0})["low"] > 0:
        return None
    value = evidence.test[name]["value"]
    change = f"training.learning_rate={_scaled(evidence, 10)}" if evidence.learning_rate else "strategy.type=full"
    where = f" and the training loss stayed at {_ends(loss)[1]:.3g}" if len(loss) else ""
    return Finding(
        "never learned",
        f"The test {name} of {value:.2f} cannot be told from the 0 of guessing{where}: nothing of use was learned.",
        evidence.again(change),
    )


def _by_heart(evidence: Evidence) -> Finding | None:
    """Training rows were learned, validation rows never better than guessed."""
    _, validation = evidence.curve("eval_loss")
    _, loss = evidence.curve("loss")
    if len(validation) < 2 or len(loss) < 5:
        return None
    if _ends(loss)[1] > 0.6 * evidence.guess or validation.min() < 0.95 * evidence.guess:
        return None
    return Finding(
        "nothing carries over",
        f"The training loss fell to {_ends(loss)[1]:.3g}, but on validation rows it was never below {validation.min():.3g}, "
        f"where guessing has {evidence.guess:.3g}: check that labels belong to their inputs, and stay true under augmentation.",
        evidence.again("strategy.type=probe augmentation.level=none"),
    )


def _rate_too_low(evidence: Evidence) -> Finding | None:
    """Find a training loss that fell little, and as fast in its middle half as in its first."""
    _, loss = evidence.curve("loss")
    if len(loss) < 10:
        return None
    first, last = _ends(loss)
    quarter = [_smooth(loss)[int(share * (len(_smooth(loss)) - 1))] for share in (0, 0.25, 0.5, 0.75)]
    fell, early, middle = first - last, quarter[0] - quarter[2], quarter[1] - quarter[3]
    if not (0.02 < fell / first < 0.3 and 0.5 * early < middle < 2 * early):
        return None
    return Finding(
        "rate too low",
        f"The training loss went only from {first:.3g} to {last:.3g}, at an even pace: "
        f"the learning rate of {_rate(evidence)} is too low.",
        evidence.again(f"training.learning_rate={_scaled(evidence, 5)}"),
    )


def _collapsed(evidence: Evidence) -> Finding | None:
    """One class is nearly the only answer, though the test rows are mixed."""
    name, share = max(evidence.predicted.items(), key=lambda item: item[1], default=("", 0.0))
    if share < 0.95 or evidence.actual[name] > 0.8:
        return None
    return Finding(
        "one-class collapse",
        f"The model answers {name!r} for {share:.0%} of the test rows, of which {evidence.actual[name]:.0%} are: "
        "it has fallen back on one class.",
        evidence.weighed_up(otherwise=evidence.again("strategy.type=probe")),
    )


def _chosen_by(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Return steps, and the validation loss that chose among them."""
    calibrated = evidence.curve("eval_calibrated_log_loss")
    return calibrated if len(calibrated[0]) else evidence.curve("eval_loss")


def _gained_nothing(evidence: Evidence) -> Finding | None:
    """Find a validation loss that was lowest before the first step, so that the start was kept."""
    steps, validation = _chosen_by(evidence)
    if len(validation) < 2 or steps[0] > 0 or validation[0] > np.nanmin(validation):
        return None
    return Finding(
        "nothing gained",
        f"On validation rows nothing that was trained is better than the start ({validation[0]:.3g} before, "
        f"{np.nanmin(validation[1:]):.3g} at best after), so the start was kept: a lower rate than {_rate(evidence)} may help, "
        "or more labels.",
        evidence.again(f"training.learning_rate={_scaled(evidence, 0.1)}"),
    )


def _overfit(evidence: Evidence) -> Finding | None:
    """Find a validation loss, the one that chose the step, that rose while the training loss went on down."""
    steps, validation = _chosen_by(evidence)
    _, loss = evidence.curve("loss")
    if len(validation) < 3 or len(loss) < 5:
        return None
    best, last = int(validation.argmin()), validation[-1]
    if last < max(1.1 * validation[best], validation[best] + 0.05) or _ends(loss)[1] > 0.8 * min(last, _ends(loss)[0]):
        return None
    return Finding(
        "overfit",
        f"The validation loss was lowest at step {steps[best]:.0f} ({validation[best]:.3g}) and rose to {last:.3g} while the "
        f"training loss fell to {_ends(loss)[1]:.3g}: from there on the model learned the training rows by heart. "
        f"{_kept(evidence)}; stopping there saves the time.",
        evidence.again(f"training.max_steps={int(steps[best])}"),
    )


def _kept(evidence: Evidence) -> str:
    averaged = any(name.startswith("mean_") for entry in evidence.history for name in entry)
    return (
        "The mean of the weights over the second half of the steps was kept" if averaged else "The best step was kept"
    )


def _underfit(evidence: Evidence) -> Finding | None:
    """Both losses were still on their way down when training ended."""
    steps, validation = evidence.curve("eval_loss")
    _, loss = evidence.curve("loss")
    if len(validation) < 3 or len(loss) < 8:
        return None
    smooth = _smooth(loss)
    gained = max(validation[0], smooth[0]) - validation[-1]
    falling = validation[-2] - validation[-1] > 0.1 * gained > 0.01 and smooth[-1] < 0.97 * smooth[-len(smooth) // 4]
    if not falling:
        return None
    return Finding(
        "underfit",
        f"The validation loss was still falling when training ended (from {validation[-2]:.3g} to {validation[-1]:.3g} "
        "over the last stretch): more steps should help.",
        evidence.again(f"training.max_steps={int(3 * steps[-1])}"),
    )


def _transform_gap(evidence: Evidence) -> Finding | None:
    """Training rows are much harder than validation rows at the end: what augmentation makes of them is another task."""
    _, validation = evidence.curve("eval_loss")
    _, loss = evidence.curve("loss")
    if evidence.softened or len(validation) < 2 or len(loss) < 8:
        return None
    last = _ends(loss)[1]
    if last < 1.6 * validation[-1] or last < 0.2 * evidence.guess:
        return None
    return Finding(
        "transform gap",
        f"The loss ends at {last:.3g} on training rows and at {validation[-1]:.3g} on validation rows: augmentation makes "
        "training inputs much harder than those that are evaluated.",
        evidence.again("augmentation.level=light"),
    )


def _rows_differ(evidence: Evidence) -> Finding | None:
    """Find test rows that go far worse than validation rows, which no weight saw: they come from elsewhere."""
    name = evidence.headline
    test, validation = evidence.test.get(name), evidence.validation.get(name)
    if not test or not validation or not validation["low"] - test["high"] >= 0.05:  # NaN: not known
        return None
    return Finding(
        "test rows differ",
        f"The {name} is {validation['value']:.3f} on validation rows and {test['value']:.3f} on test rows, further apart than "
        "chance allows: the test rows are not like the training rows (another place, device, author or time). "
        "Label some that are, and look for what differs.",
        f"hftransfer doctor {shlex.quote(f'{evidence.run}/config.yaml')}",
    )


def _truncated(evidence: Evidence) -> Finding | None:
    if evidence.truncated is None or evidence.truncated < 0.05:
        return None
    return Finding(
        "truncation",
        f"{evidence.truncated:.0%} of the texts lost their end: the model never saw it.",
        evidence.again("model.max_length=512"),
    )


def _silent(evidence: Evidence) -> Finding | None:
    """Several labels: a third of them or more stand in the test rows and in no answer, as rare ones seldom reach one half."""
    if evidence.headline != "micro_f1" or not evidence.per_class:
        return None
    silent = [entry["name"] for entry in evidence.per_class if entry["recall"] and not entry["precision"]]
    if len(silent) < max(2, len(evidence.per_class) / 3):
        return None
    named = ", ".join(map(repr, silent[:3])) + (", …" if len(silent) > 3 else "")
    return Finding(
        "labels never answered",
        f"{len(silent)} of {len(evidence.per_class)} labels are never answered ({named}): none of their scores reaches one half. "
        f"{'Choose' if evidence.balanced else 'Weigh rare ones up, or choose'} from the scores, which `predict` writes for each.",
        evidence.weighed_up(otherwise=f"hftransfer predict {shlex.quote(evidence.run)} INPUT --output scores.csv"),
    )


def _starving(evidence: Evidence) -> Finding | None:
    """Return a class with few training rows that the model hardly ever finds."""
    typical = np.median(list(evidence.train_rows.values())) if evidence.train_rows else 0
    hungry = [
        entry for entry in evidence.per_class
        if entry.get("recall") and entry["recall"]["high"] < 0.6 and evidence.train_rows.get(entry["name"], typical) < typical / 2
    ]  # fmt: skip
    if not hungry:
        return None
    worst = min(hungry, key=lambda entry: entry["recall"]["value"])
    rows = evidence.train_rows[worst["name"]]
    others = f" (and {len(hungry) - 1} more)" if len(hungry) > 1 else ""
    return Finding(
        "class starving",
        f"Of {worst['name']!r}{others} {worst['recall']['value']:.0%} are found, with {rows} training rows where the "
        f"classes typically have {typical:.0f}: label more of it{'' if evidence.balanced else ', or weigh it up'}.",
        evidence.weighed_up(otherwise=f"hftransfer next POOL --run {shlex.quote(evidence.run)}"),
    )


def _too_few_test_rows(evidence: Evidence) -> Finding | None:
    """Return an interval so wide that most differences drown in it, unless folds tell the run by all rows."""
    found = evidence.test.get(evidence.headline)
    if evidence.cross_validated or found is None or not found["high"] - found["low"] >= 0.1:
        return None
    # Folds would divide a test part that was given; a comparison says how many rows a difference asks for.
    comparison = f"hftransfer compare {shlex.quote(evidence.run)} RUN"
    return Finding(
        "too few test rows",
        f"With {found['n']} test rows the {evidence.headline} lies between {found['low']:.1%} and {found['high']:.1%}: "
        "differences of a few points between models are noise.",
        comparison if evidence.test_given else evidence.again("evaluation.folds=5"),
    )


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return running means over a tenth of the curve: single batches are noisy."""
    width = max(1, len(values) // 10)
    return np.convolve(values, np.ones(width) / width, mode="valid")


def _ends(values: np.ndarray) -> tuple[float, float]:
    smooth = _smooth(values)
    return float(smooth[0]), float(smooth[-1])


def _rate(evidence: Evidence) -> str:
    return f"{evidence.learning_rate:.2g}" if evidence.learning_rate else "the strategy"


def _scaled(evidence: Evidence, factor: float) -> str:
    return f"{(evidence.learning_rate or 1e-4) * factor:.1g}"
