"""The figures of the page, as SVG that takes its colours from the page's style sheet.

matplotlib draws with stand-in colours that are replaced by CSS variables, so that one figure serves light, dark and print.
Text stays text. Figures are as wide as a phone (about 350 px): wider pages put two or three of them in a row.
"""

import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hftransfer.evaluation.kinds import BOUNDED, titled

_INK, _MUTED, _GRID, _FIRST, _SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "grid", _FIRST: "first", _SECOND: "second"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hftransfer",
    "text.parse_math": False,  # a class may be called "$x$"
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "figure.constrained_layout.use": True,
}
_FONT = "font-family: 'DejaVu Sans'"
_WIDTH = 3.7  # inches at 96 px: what a phone shows without shrinking, and three times on a desktop
_MOST_NUMBERED = 12  # classes up to which a cell of the confusion matrix has room for its numbers


def metrics_plot(splits: dict[str, dict[str, dict]]) -> str:
    """Dots and whiskers of the metrics that are shares, one row each; `splits`: split -> metric -> value, low, high."""
    names = [name for name in BOUNDED if any(name in found for found in splits.values())]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(height=0.75 + 0.36 * len(names))
        for position, (split, found) in enumerate(splits.items()):
            rows = [row for row, name in enumerate(names) if name in found]
            _whiskers(axes, [found[names[row]] for row in rows], np.array(rows) + 0.22 * position, split, position)
        axes.set_yticks(range(len(names)), [titled(name) for name in names], color=_INK)
        axes.set_ylim(len(names) - 0.4, -0.5)
        shown = [
            found[name][key] for found in splits.values() for name in names if name in found for key in ("low", "value")
        ]
        left = np.nanmin(shown)
        axes.set_xlim(left - 0.05 * (1 - left), 1 + 0.02 * (1 - left))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", visible=False)
        _legend_above(axes, len(splits))
        return _svg(figure, "Metrics with 95 % intervals")


def _whiskers(axes, found: list[dict], y: np.ndarray, label: str, position: int) -> None:
    values, low, high = (np.array([entry[key] for entry in found]) for key in ("value", "low", "high"))
    axes.errorbar(
        values, y, xerr=np.abs([values - low, high - values]), fmt="os"[position % 2], label=label, markersize=5,
        color=(_FIRST, _SECOND)[position % 2], elinewidth=1.6, capsize=3,
    )  # fmt: skip


def curve_plot(curves: dict[str, tuple[Sequence[float], Sequence[float]]], title: str) -> str:
    """Lines over steps; `curves`: name -> steps and values. Two together are losses, which begin at 0."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(height=2.7)
        for position, (name, (steps, values)) in enumerate(curves.items()):
            mark = "o" if len(steps) <= 30 else None
            axes.plot(steps, values, label=name, color=(_FIRST, _SECOND)[position % 2], marker=mark, markersize=4)
        axes.set_xlabel("step")
        axes.set_ylabel(title)
        axes.yaxis.set_major_formatter("{x:.3g}")
        if len(curves) > 1:
            axes.set_ylim(bottom=0)
            _legend_above(axes, len(curves))
        return _svg(figure, f"{title} over training steps")


def confusion_plot(counts: np.ndarray, names: Sequence[str]) -> str:
    """Rows are the truth, columns the answer; shaded by the share of the row, with numbers while there is room."""
    classes, room = len(names), len(names) <= _MOST_NUMBERED
    cell = float(np.clip(2.6 / classes, 0.42, 0.8)) if room else 0.125
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    margin = 0.25 + 0.066 * min(24, max(map(len, names))) * (1 if room else 0.75)
    size = classes * cell + margin
    with matplotlib.rc_context(_STYLE | {"axes.grid": False, "font.size": 9 if room else 6.5}):
        figure = Figure(figsize=(size + 0.3, size + 0.3), layout="constrained")
        axes = figure.add_subplot()
        shade = np.zeros((*shares.shape, 4))
        # The root lets a few errors be seen beside a full diagonal; see-through, it suits light and dark pages.
        shade[..., :3], shade[..., 3] = matplotlib.colors.to_rgb("#3b7dd8"), 0.95 * np.sqrt(shares)
        axes.imshow(shade, interpolation="none")
        shown = [name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}" for name in names]
        axes.set_xticks(range(classes), shown, rotation=90, color=_INK)
        axes.set_yticks(range(classes), shown, color=_INK)
        axes.tick_params(length=0)
        axes.set_xlabel("answered")
        axes.set_ylabel("true")
        if room:
            _write_cells(axes, counts, shares)
        return _svg(figure, "Confusion matrix")


def _write_cells(axes, counts: np.ndarray, shares: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = shares[row, column]
        axes.text(
            column, row, f"{counts[row, column]}\n{share:.0%}", ha="center", va="center", fontsize=7, linespacing=1.1,
            color="white" if share > 0.4 else _INK,
        )  # fmt: skip


def reliability_plot(points: dict[str, list[dict]]) -> str:
    """How often statements of a confidence come true; `points`: name -> the bins of `calibration.reliability`."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(height=3.6)
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle="--", label="perfect")
        for position, (name, bins) in enumerate(points.items()):
            x, y, low, high = (
                np.array([point[key] for point in bins]) for key in ("confidence", "frequency", "low", "high")
            )
            axes.errorbar(
                x, y, yerr=np.abs([y - low, high - y]), fmt="os"[position % 2], markersize=4, label=name, elinewidth=1,
                color=(_FIRST, _SECOND)[position % 2], capsize=2,
            )  # fmt: skip
        start = 0.05 * np.floor(20 * min([1.0, *(point["confidence"] for bins in points.values() for point in bins)]))
        axes.set_xlim(min(start, 0.9) - 0.01, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share that is right")
        _legend_above(axes, 1 + len(points))
        return _svg(figure, "Reliability diagram")


def scatter_plot(truth: np.ndarray, answer: np.ndarray, name: str) -> str:
    """Answers over true values of one regression target."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(height=3.6)
        ends = [min(truth.min(), answer.min()), max(truth.max(), answer.max())]
        axes.plot(ends, ends, color=_MUTED, linewidth=1, linestyle="--")
        axes.scatter(truth, answer, s=12, color=_FIRST, alpha=0.5, linewidths=0)
        axes.set_xlabel(f"true {name}")
        axes.set_ylabel("answered")
        return _svg(figure, f"Answers over true values of {name}")


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend_above(axes, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.1, handlelength=1.4)


def _svg(figure: Figure, title: str) -> str:
    """Return the figure as an element to stand in HTML: no prologue, no style or names of its own, colours by variable."""
    buffer = io.StringIO()
    nothing_about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing_about)
    text = buffer.getvalue()
    width, height = figure.get_size_inches()
    body = re.sub(r"<style.*?</style>", "", text[text.index(">", text.index("<svg")) + 1 :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return (
        f'<svg role="img" aria-label="{html.escape(title)}" width="{96 * width:.0f}" height="{96 * height:.0f}" '
        f'viewBox="0 0 {72 * width:g} {72 * height:g}" xmlns:xlink="http://www.w3.org/1999/xlink">'
        + body.replace(_FONT, "font-family: inherit")
    )
