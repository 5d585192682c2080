"""Checks of recordings, from one look at each: rates and channels, silence, clipping, and the window of the model."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.models.windows import window_of

QUIET = -50  # decibels of full scale: the noise of a cheap microphone peaks above
CLIPPED = 0.001  # of the samples; a recording that was scaled to full scale has one or two
USUAL_WINDOW = 30.0  # seconds: that of Whisper, the longest of the usual models


def check_recordings(facts: Facts, processor: Any = None) -> Iterator[Finding]:
    """Yield findings about the recordings; with the `processor` of a model its window is the longest length."""
    inspections = facts.inspections
    good = [index for index, inspection in enumerate(inspections) if not inspection.fault]
    yield from _mixed(facts, good, "recording-rates", "Several sample rates", "rate", " Hz")
    yield from _mixed(facts, good, "recording-channels", "Several numbers of channels", "channels", "")
    limit = 10 ** (QUIET / 20)
    silent = [index for index in good if inspections[index].peak < limit]
    yield from _counted(facts, "recording-silent", silent, f"Silent (never above {QUIET} dB of full scale)")
    clipped = [index for index in good if inspections[index].clipped > CLIPPED]
    yield from _counted(
        facts, "recording-clipped", clipped, f"Clipped (more than {CLIPPED:.1%} of the samples at full scale)"
    )
    yield from _long(facts, good, processor)


def _mixed(facts: Facts, good: list[int], id_: str, what: str, field: str, unit: str) -> Iterator[Finding]:
    """Yield a finding where a `field` of the inspections differs; its rows are those unlike most."""
    counts = Counter(getattr(facts.inspections[index], field) for index in good).most_common()
    if len(counts) > 1:
        shown = ", ".join(f"{value}{unit} {count}" for value, count in counts)
        odd = [index for index in good if getattr(facts.inspections[index], field) != counts[0][0]]
        yield Finding(id_, f"{what}: {shown}.", facts.where(odd))


def _long(facts: Facts, good: list[int], processor: Any) -> Iterator[Finding]:
    window = USUAL_WINDOW if processor is None else window_of(processor)
    if window is None or not good:
        return
    seconds = np.array([facts.inspections[index].seconds for index in good])
    rows = [index for index, length in zip(good, seconds, strict=True) if length > window]
    whose = "most models read (--model REF tells)" if processor is None else "the model reads"
    yield from _counted(
        facts, "recording-long", rows, f"Longer than the {window:g} s that {whose}, the longest {seconds.max():.1f} s"
    )


def _counted(facts: Facts, id_: str, rows: list[int], what: str) -> Iterator[Finding]:
    if rows:
        yield Finding(id_, f"{what}: {len(rows)} of {len(facts.inspections)} recordings.", facts.where(rows))
