"""The command `curve`: the forecast as sentences, a table, JSON and a plot."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hftransfer.core.errors import UserError
from hftransfer.core.files import write_json
from hftransfer.core.terminal import show
from hftransfer.data import load_data
from hftransfer.evaluation.kinds import titled
from hftransfer.pipeline.run_context import RunContext, probed
from hftransfer.pipeline.words import owners_of, words_of
from hftransfer.planning.labels.curve import Problem, Words
from hftransfer.planning.labels.forecast import Forecast, Gain, forecast
from hftransfer.report.figures import FIRST, INK, MUTED, SECOND, drawn

if TYPE_CHECKING:
    from rich.console import Group

    from hftransfer.config import RunConfig


def curve(config: "RunConfig", more: int | None, classes: int, output: Path | None, as_json: bool) -> Forecast:
    """Measure, print, and write `curve.json` and `curve.svg` into the folder `output`. Raises `UserError`."""
    found = measured(config, more, classes)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        draw(found, output / "curve.svg")
        write_json(output / "curve.json", found.to_dict())
    show(found.to_dict(), lambda: as_table(found), as_json)
    return found


def measured(config: "RunConfig", more: int | None, classes: int) -> Forecast:
    """One pass over the data, then the curves from its features; the test part judges. Raises `UserError`."""
    data = load_data(config.data)
    data.require("curve")
    if not (data.frame["split"] == "test").any():
        raise UserError(
            "A curve is measured on test rows, and there are none: set data.test, or data.split.test above 0."
        )
    context, probe = probed(config, data)
    problem = Problem(
        data.task, probe.features, context.targets, context.fitted, context.positions("test"), context.groups,
        _words(context),
    )  # fmt: skip
    logger = logging.getLogger("hftransfer.probe.solver")
    level = logger.level
    logger.setLevel(logging.WARNING)  # a line for each of a hundred fits says nothing
    try:
        return forecast(problem, probe.head, more, classes, seed=config.seed)
    finally:
        logger.setLevel(level)


def _words(context: RunContext) -> Words | None:
    if not context.data.task.by_word:
        return None
    rows, unit, _ = words_of(context, context.config.head)
    return Words(owners_of(context.targets), rows, unit)


def as_table(found: Forecast) -> "Group":
    """Return the curve for a terminal: sizes with what was measured and the law, then the sentences."""
    from rich.console import Group
    from rich.table import Table

    name = titled(found.metric)
    title = f"{name} on {found.held} held-out rows, power law with 95 % intervals"
    table = Table("rows", "measured", "law", title=title, title_justify="left")
    for point in found.points:
        table.add_row(f"{point.rows:,}", f"{point.measured:.3f}", _span(point.law))
    for point in found.beyond:
        table.add_row(f"{point.rows:,}", "forecast", _span(point.law), style="bold")
    sentences = [gain.words for gain in (*found.gains, *found.classes)]
    floor = f"As the law has it, the error does not fall below {_span(found.floor)} however many rows there are."
    return Group(table, *sentences, floor, *found.remarks)


def _span(found) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def draw(found: Forecast, path: Path) -> None:
    """Draw the curve with its forecast, and beside it what more examples of each class are worth."""
    shown = found.classes[:15]
    with drawn(path, 9.0 if shown else 5.2, max(3.4, 1.2 + 0.24 * len(shown))) as figure:
        left, *right = figure.subplots(1, 2, width_ratios=(5, 4)) if shown else [figure.add_subplot()]
        _draw_curve(found, left)
        if shown:
            _draw_classes(shown, right[0])


def _draw_curve(found: Forecast, axes) -> None:
    law = [*found.points, *found.beyond]
    rows = [point.rows for point in law]
    axes.fill_between(rows, [p.law.low for p in law], [p.law.high for p in law], color=FIRST, alpha=0.15, linewidth=0)
    axes.plot(
        rows[: len(found.points)], [point.law.value for point in found.points], color=FIRST, label="power law, 95 %"
    )
    ahead = [found.points[-1], *found.beyond]
    axes.plot([p.rows for p in ahead], [p.law.value for p in ahead], color=FIRST, linestyle="--", label="forecast")
    measured = [point.measured for point in found.points]
    axes.plot([point.rows for point in found.points], measured, "o", color=SECOND, markersize=4, label="measured")
    axes.axvline(found.rows, color=MUTED, linewidth=1, linestyle=":")
    axes.set_xscale("log")
    ticks = [*rows[: len(found.points) : 2], rows[-1]]
    axes.set_xticks(ticks, [f"{row:,}" for row in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training rows; beyond the dotted line: forecast")
    axes.set_ylabel(titled(found.metric))
    axes.legend(loc="best", fontsize=8)


def _draw_classes(shown: list[Gain], axes) -> None:
    gains, places = [gain.gain for gain in shown], range(len(shown))
    reach = [[100 * (g.value - g.low) for g in gains], [100 * (g.high - g.value) for g in gains]]
    axes.errorbar([100 * g.value for g in gains], places, xerr=reach, fmt="o", color=FIRST, capsize=3, markersize=4)
    axes.set_yticks(places, [f"{gain.name}: {gain.rows} + {gain.more}" for gain in shown], color=INK)
    axes.invert_yaxis()
    axes.set_xlabel("points of the mean over classes")
