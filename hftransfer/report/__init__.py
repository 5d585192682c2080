"""One self-contained page about a finished run, made from its folder alone; torch is never imported."""

import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftransfer.core.files import write_text

if TYPE_CHECKING:
    from jinja2 import Template

    from hftransfer.runs.reader import RecordedRun


def write_report(run: str | Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises `UserError` for a folder that is missing, interrupted, or no run, and for one that measured nothing.
    """
    from hftransfer.runs.reader import RecordedRun

    recorded = RecordedRun.open(run)
    page = _template().render(_content(recorded))
    target = recorded.folder / "report.html"
    write_text(target, page)
    return target


@cache
def _template() -> "Template":
    """Return the page's template, compiled once per process."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hftransfer", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2")


def _content(run: "RecordedRun") -> dict[str, Any]:
    from hftransfer.modalities import kind_of
    from hftransfer.report import gallery, masks, sections, suspects
    from hftransfer.report.diagnosis import diagnose, gather
    from hftransfer.report.picked import SHOWN

    doubtful = suspects.label_errors(run)
    folder = str(run.folder)
    return {
        "name": run.name,
        "evaluated": run.evaluated,
        "shows": kind_of(run.record.modality).shows,
        "noun": kind_of(run.record.modality).noun,
        "pictured": kind_of(run.record.modality).shows != "words",
        "overview": sections.overview(run),
        "findings": diagnose(gather(run)),
        "metrics": sections.metrics(run),
        "contributions": sections.contributions(run),
        "curves": sections.curves(run),
        "confusion": sections.confusion(run),
        "scatter": sections.scatter(run),
        "calibration": sections.calibration(run),
        "sets": sections.sets(run),
        "classes": sections.classes(run),
        "errors": gallery.cards(run, gallery.confident_errors(run)),
        "suspects": gallery.cards(run, doubtful) if doubtful else [],
        "suspects_method": doubtful is not None,
        "searches_labels": suspects.searches_labels(run.task),
        "entity_errors": sections.entity_errors(run),
        "legend": masks.legend(run.task) if run.task.by_pixel else [],
        "unsure": gallery.cards(run, masks.unsure_masks(run, SHOWN // 2)) if run.task.by_pixel else [],
        "freeze_check": sections.freeze_check(run),
        "provenance": sections.provenance(run),
        "review": "" if run.lacks("review") else shlex.join(["hftransfer", "review", folder]),
        "command": f"hftransfer train {shlex.quote(f'{folder}/config.yaml')} --output {shlex.quote(f'{folder}-again')}",
        "number": sections.number,
        "interval": sections.interval,
    }
