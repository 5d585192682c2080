"""The command: the ranking as a table, as JSON, and as a plot of score against latency."""

from pathlib import Path
from typing import TYPE_CHECKING

from hftransfer.core.errors import UserError
from hftransfer.core.terminal import show
from hftransfer.evaluation.intervals import Measured
from hftransfer.evaluation.kinds import titled
from hftransfer.planning.checkpoints.ranking import Limits, Ranked, Ranking
from hftransfer.planning.checkpoints.ranking import rank as ranked_checkpoints
from hftransfer.report.figures import FIRST, INK, MUTED, check_figure_name, drawn, log_x

if TYPE_CHECKING:
    from rich.console import Group

    from hftransfer.config import RunConfig


def named_models(models: list[str], rest: list[str], candidates: str | None) -> tuple[list[str], list[str]]:
    """Checkpoints and overrides. In `--models A B C key=value` what follows A and is no key=value is a name too.

    Raises `UserError` where both or neither are named.
    """
    if candidates not in (None, "auto"):
        raise UserError(f"--candidates takes auto, found {candidates!r}. Name checkpoints with --models.")
    if bool(models) == bool(candidates):
        raise UserError(
            "Name the checkpoints with --models A B C, or let --candidates auto choose them: one of the two."
        )
    names = [word for word in rest if "=" not in word] if models else []
    return [*models, *names] or ["auto"], [word for word in rest if word not in names]


def rank(
    config: "RunConfig",
    names: list[str],
    rows: int,
    metric: str | None,
    limits: Limits,
    plot: Path | None,
    as_json: bool,
) -> Ranking:
    """Rank, print, draw. Raises `UserError`."""
    if plot:
        check_figure_name(plot)
    ranking = ranked_checkpoints(config, names, rows, metric, limits)
    if plot:
        draw(ranking, plot)
    show(ranking.to_dict(), lambda: as_table(ranking), as_json)
    return ranking


def as_table(ranking: Ranking) -> "Group":
    """Return the ranking for a terminal, best first, and the verdict."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = f"Cross-validated probe on {ranking.rows} rows, 95 % intervals"
    table = Table(title=title, title_justify="left")
    table.add_column("checkpoint", overflow="fold")
    for column in (titled(ranking.metric), "best is better by", "ms a row", "size"):
        table.add_column(column, justify="right")
    for checkpoint in ranking.checkpoints:
        table.add_row(*_cells(ranking, checkpoint))
    return Group(table, *_remarks(ranking), Text(ranking.verdict, "bold"))


def _cells(ranking: Ranking, found: Ranked) -> list[str]:
    pair = ranking.pairs_of_best.get(found.name)
    against = "" if pair is None else _against(ranking, pair.difference, pair.low, pair.high, pair.separated)
    size = f"{found.bytes / 1e6:,.0f} MB"
    score = _span(found.metrics[ranking.metric])
    return [found.name, score, against, f"{found.milliseconds:.3g}", size]


def _against(ranking: Ranking, difference: float, low: float, high: float, separated: bool) -> str:
    return f"{difference:+.3f} ({low:+.3f} to {high:+.3f})" + ("" if separated else ", tie")


def _remarks(ranking: Ranking) -> list[str]:
    known = [checkpoint for checkpoint in ranking.checkpoints if checkpoint.objective]
    said = [f"  {found.name}: {found.objective}; licence {found.licence or 'unknown'}" for found in known]
    return said + [f"  {name} is left out: {reason}" for name, reason in ranking.left_out.items()]


def _span(found: Measured) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def draw(ranking: Ranking, path: Path) -> None:
    """Score with its interval against latency; checkpoints that no other one beats in both are joined."""
    with drawn(path, 6.4, 4.2) as figure:
        axes = figure.add_subplot()
        for found in ranking.checkpoints:
            score, front = found.metrics[ranking.metric], found.name in ranking.pareto
            reach = [[abs(score.value - score.low)], [abs(score.high - score.value)]]
            axes.errorbar(
                found.milliseconds,
                score.value,
                yerr=reach,
                fmt="o",
                color=FIRST if front else MUTED,
                capsize=3,
                markersize=6,
            )
            axes.annotate(
                Path(found.name).name, (found.milliseconds, score.value), (6, 6), textcoords="offset points",
                fontsize=8, color=INK,
            )  # fmt: skip
        front = {checkpoint.name: checkpoint for checkpoint in ranking.checkpoints}
        line = [(front[name].milliseconds, front[name].metrics[ranking.metric].value) for name in ranking.pareto]
        axes.plot(*zip(*line, strict=True), color=FIRST, linewidth=1, linestyle="--")
        log_x(axes)
        axes.margins(x=0.25)
        axes.set_xlabel("milliseconds a row on this machine (log scale)")
        axes.set_ylabel(f"{titled(ranking.metric)}, {ranking.rows} rows, 95 %")
