"""What each of several inputs adds: heads on every combination of them, compared on the same examples."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from hftransfer.core.wording import listed
from hftransfer.evaluation.kinds import higher_is_better, scale_of, titled
from hftransfer.runs.reader import Part
from hftransfer.runs.record import CombinationRecord, ContributionsRecord, GainRecord
from hftransfer.tasks import Task

if TYPE_CHECKING:
    from hftransfer.evaluation.comparison import Pair

MOST_INPUTS = 4  # of which every combination is measured: 15 heads
Names = tuple[str, ...]


def combinations_of(names: Sequence[str]) -> list[Names]:
    """Return the combinations to measure: all of up to four inputs; else each alone, each left out, and all together."""
    sizes = range(1, len(names) + 1) if len(names) <= MOST_INPUTS else (1, len(names) - 1, len(names))
    return [chosen for size in sizes for chosen in combinations(names, size)]


def contributions(
    task: Task, part: Part, scores: Mapping[Names, np.ndarray], how: str, resamples: int
) -> ContributionsRecord:
    """Return the headline metric of each combination, and what each input adds to the others, with paired intervals.

    Args:
        part: the examples, with the scores of all inputs together.
        scores: of each combination, (N, C), in the order of the examples.
        how: which examples they are, in words.
    """
    # scikit-learn and scipy.stats: `sentences` below is read by every run, before its first batch
    from hftransfer.evaluation.comparison import compare_parts
    from hftransfer.evaluation.intervals import measure

    parts = {names: Part(part.frame, part.targets, each) for names, each in scores.items()}
    measured = [
        measure(task, each.targets, each.scores, each.groups, resamples=resamples)[task.headline]
        for each in parts.values()
    ]
    labels = {_label(names): names for names in parts}
    pairs = compare_parts(task, list(parts.values()), list(labels), task.headline, resamples)
    gains = [gain for pair in pairs if (gain := _gain(labels, pair))]
    found = [
        CombinationRecord(inputs=names, value=each.value, low=each.low, high=each.high)
        for names, each in zip(parts, measured, strict=True)
    ]
    return ContributionsRecord(metric=task.headline, examples=len(part), how=how, combinations=found, gains=gains)


def _label(names: Names) -> str:
    return "\n".join(names)


def _gain(labels: Mapping[str, Names], pair: "Pair") -> GainRecord | None:
    """Return what one input adds, where it is all that two combinations differ by."""
    first, second = labels[pair.first], labels[pair.second]
    fewer, more = sorted((first, second), key=len)
    added = [name for name in more if name not in fewer]
    if len(added) != 1 or not set(fewer) <= set(more):
        return None
    seen = pair.seen_from(pair.second if more == second else pair.first)
    return GainRecord(input=added[0], to=fewer, difference=seen.difference, low=seen.low, high=seen.high)


def sentences(found: ContributionsRecord) -> list[str]:
    """Return what each input adds to all others together: "photo adds 4.1 points (1.2 to 7.0) to caption"."""
    most = max(len(each.inputs) for each in found.combinations)
    return [describe(gain, found.metric) for gain in found.gains if len(gain.to) == most - 1]


def describe(gain: GainRecord, metric: str) -> str:
    """Return one gain as a sentence: shares in points, other metrics in their own units."""
    sign = 1 if higher_is_better(metric) else -1
    value, *ends = (sign * each for each in (gain.difference, gain.low, gain.high))
    low, high = sorted(ends)
    others = listed(gain.to)
    if scale_of(metric) == "share":
        return f"{gain.input} adds {100 * value:.1f} points ({100 * low:.1f} to {100 * high:.1f}) to {others}."
    return f"{gain.input} improves the {titled(metric)} of {others} by {value:.3g} ({low:.3g} to {high:.3g})."
