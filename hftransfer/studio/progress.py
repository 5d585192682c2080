"""What a running command shows: its phase, how far it is, what was measured so far, and its last words, as HTML."""

import html
from collections.abc import Sequence
from typing import Any

from hftransfer.core.wording import ends
from hftransfer.evaluation.kinds import titled
from hftransfer.runs.folder import COMPLETE
from hftransfer.runs.record import MetricsRecord
from hftransfer.studio.jobs import Job

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 220, 52, 24  # of a curve, in its own units
STATES = {"running": "running", "done": "done", "failed": "ended without a result"}


def status_html(job: Job | None) -> str:
    """Return the state of a job, its phases, its curves and its result."""
    if job is None:
        return '<p class="quiet">Nothing has been trained here yet.</p>'
    lines = job.progress()
    minutes, seconds = divmod(int(job.seconds), 60)
    state = job.state
    head = (f'<p><span class="state {state}">{STATES[state]}</span> {minutes}:{seconds:02d} '
            f"<code>{html.escape(job.command)}</code></p>")  # fmt: skip
    parts = [head, _phases(lines, state == "running"), curves_html(lines), _end(job, state)]
    return f'<section class="job">{"".join(parts)}</section>'


def _phases(lines: Sequence[dict[str, Any]], running: bool) -> str:
    """Return a bar for each phase, in the order in which they began."""
    last = {line["phase"]: line for line in lines}
    if not last:
        return '<p class="quiet">Starting…</p>' if running else ""
    bars = "".join(
        f'<li><span>{html.escape(phase)}</span> <progress max="{line["total"] or 1}" value="{line["done"]}" '
        f'aria-label="{html.escape(phase, quote=True)}"></progress> <span>{_count(line)}</span></li>'
        for phase, line in list(last.items())[-8:]
    )
    return f'<ul class="phases">{bars}</ul>'


def _count(line: dict[str, Any]) -> str:
    total = f" of {line['total']:,.0f}" if line["total"] else ""
    return f"{line['done']:,.0f}{total} {html.escape(line['unit'])}s"


def series(lines: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return (step, value) of everything that was measured, by name; a curve that begins again replaces the one before."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line["values"].items():
            points = found.setdefault(name, [])
            if points and line["done"] < points[-1][0]:
                points.clear()
            if value is not None:
                points.append((line["done"], float(value)))
    return {name: points for name, points in found.items() if points}


def curves_html(lines: Sequence[dict[str, Any]]) -> str:
    """Return one small plot for each measured number."""
    return "".join(_curve(name, points) for name, points in series(lines).items())


def _curve(name: str, points: list[tuple[float, float]]) -> str:
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    space = (high - low) or abs(high) or 1.0
    across = lambda step: LEFT + (WIDTH - LEFT - 8) * step / (max(steps) or 1)  # noqa: E731
    down = lambda value: 12 + (HEIGHT - BOTTOM - 24) * (high - value) / space  # noqa: E731
    path = " ".join(f"{across(step):.1f},{down(value):.1f}" for step, value in points)
    dots = "".join(f'<circle cx="{across(s):.1f}" cy="{down(v):.1f}" r="3"/>' for s, v in points[-1:])
    title = html.escape(name.replace("_", " "))
    labels = "".join(
        f'<text x="{LEFT - 6}" y="{down(value) + 4:.0f}" text-anchor="end">{value:.3g}</text>' for value in {low, high}
    )
    return (f'<figure class="curve"><figcaption>{title}: {values[-1]:.4g} at step {steps[-1]:,.0f}</figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} over the steps"><polyline points="{path}"/>'
            f'{dots}{labels}<text x="{LEFT}" y="{HEIGHT - 6}">0</text><text x="{WIDTH - 8}" y="{HEIGHT - 6}" '
            f'text-anchor="end">step {max(steps):,.0f}</text></svg></figure>')  # fmt: skip


def _end(job: Job, state: str) -> str:
    if state == "failed":
        said = next((line for line in reversed(job.log()) if line.startswith("Error: ")), "It was stopped.")
        return f'<p class="bad">{html.escape(said)}</p>'
    if state == "done" and job.output is not None and (job.output / COMPLETE).is_file():
        return f'<p class="good">{html.escape(headline(MetricsRecord.read(job.output)))}</p>'
    return ""


def headline(metrics: MetricsRecord) -> str:
    """Return what a run is told by, with its interval."""
    if not metrics.headline:
        return "Nothing was measured: there are no held-out examples."
    name, found = next(iter(metrics.parts[metrics.headline].items()))
    part = metrics.describe_part(metrics.headline).capitalize()
    return f"{part} {titled(name)} {found['value']:.3f} (95 % interval {ends(found, 3)}, {found['n']} examples)"
