"""The training examples of a run on a plane: their features along the two directions in which they differ most."""

import html
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.apps.review.items import Row
from hftransfer.apps.review.page import patch_of
from hftransfer.core.errors import UserError
from hftransfer.data.patch import append
from hftransfer.modalities import kind_of
from hftransfer.prediction.reliability import Reliability, unit
from hftransfer.report.gallery import words
from hftransfer.runs.reader import RecordedRun, plain_label
from hftransfer.studio.examples import example_html

SIZE, MARGIN, MOST = 600, 14, 2000  # of the drawing, and the points in it
COLOURS = ("#0d9488", "#d97706", "#7c3aed", "#dc2626", "#2563eb", "#65a30d", "#db2777", "#0891b2", "#a16207", "#64748b")


@dataclass(frozen=True)
class FeatureMap:
    """`rows` of the training part and their places (N, 2), from 0 to 1."""

    run: RecordedRun
    rows: pd.DataFrame
    places: np.ndarray

    @classmethod
    def of(cls, run: RecordedRun) -> "FeatureMap":
        """Draw the features that the run keeps. Raises `UserError` for a run that keeps none, and without classes."""
        run.task.require("review")
        known = Reliability.read(run.folder, run.task) if run.task.exclusive else None
        if known is None or known.reference is None or not len(known.ids):
            raise UserError("This run keeps no features of its examples, or has no classes: there is nothing to draw.")
        ids = list(known.ids)[:MOST]
        rows = run.splits.set_index("id").loc[ids].reset_index()
        return cls(run, rows.assign(label=rows["label"].map(plain_label)), plane(known.reference[: len(ids)]))

    def svg(self) -> str:
        """Return the drawing; a point bears its number, which a click sends."""
        numbers = {name: place for place, name in enumerate(self.run.task.names)}
        points = "".join(
            f'<circle data-row="{number}" cx="{MARGIN + x * (SIZE - 2 * MARGIN):.1f}" '
            f'cy="{MARGIN + y * (SIZE - 2 * MARGIN):.1f}" r="6" fill="{COLOURS[numbers.get(label, 0) % len(COLOURS)]}">'
            f"<title>{html.escape(words(label))}</title></circle>"
            for number, ((x, y), label) in enumerate(zip(self.places, self.rows["label"], strict=True))
        )
        legend = "".join(
            f'<li><span class="swatch" style="background: {COLOURS[place % len(COLOURS)]}"></span> {html.escape(name)}</li>'
            for name, place in numbers.items()
        )
        return (f'<ul class="legend">{legend}</ul><svg class="map" viewBox="0 0 {SIZE} {SIZE}" role="img" '
                f'aria-label="Training examples by their features">{points}</svg>')  # fmt: skip

    def example_html(self, number: int) -> str:
        """Return one example with its label."""
        row = self.rows.iloc[number]
        caption = f"labelled <b>{html.escape(words(row['label']))}</b> <small>{html.escape(row['id'][-60:])}</small>"
        return example_html(kind_of(self.run.record.modality), row, caption)

    def relabel(self, number: int, label: Any) -> str:
        """Write the right label of an example into the patch, and say so. Raises `UserError` without one."""
        if label not in self.run.task.names:
            raise UserError("Choose the right label first.")
        row, when = self.rows.iloc[number], datetime.now(UTC).isoformat(timespec="seconds")
        decision = Row(row["id"], row["digest"], row["split"], row["label"], row["input"]).decision
        patch = patch_of(self.run)
        append(patch, [decision("keep", when) if row["label"] == label else decision("relabel", when, label=label)])
        return f"{row['id']} is {label} from now on: kept in {patch.name}."


def plane(features: np.ndarray) -> np.ndarray:
    """Return (N, 2) from 0 to 1: the first two principal components of features (N, D), brought to length 1."""
    rows = unit(np.asarray(features, dtype=np.float64))
    rows = rows - rows.mean(0)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    found = rows @ directions[:2].T
    found = np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
    return (found - found.min(0)) / np.maximum(np.ptp(found, axis=0), 1e-12)
