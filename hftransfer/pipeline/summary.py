"""What a run says by default: at most ten lines. Everything else that is logged takes `-v` (see `core.terminal`)."""

import logging
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hftransfer.config import RunConfig
from hftransfer.core.terminal import only_errors
from hftransfer.core.wording import ends, percent
from hftransfer.data import LabelledData
from hftransfer.data.sources import SPLITS
from hftransfer.evaluation.contributions import sentences
from hftransfer.evaluation.kinds import titled
from hftransfer.pipeline.run_context import RunContext
from hftransfer.runs.folder import MODELS
from hftransfer.runs.record import MetricsRecord
from hftransfer.strategies import Plan
from hftransfer.training.freeze_check import Sizes

log = logging.getLogger(__name__)
details = logging.getLogger("hftransfer.doctor")

MOST_NAMES = 6  # of classes
MOST_FINDINGS = 3


def silent() -> AbstractContextManager[None]:
    """Leave these lines out: of a fold or a further seed, which is no run of the user's."""
    return only_errors(log)


def log_data(config: RunConfig, data: LabelledData) -> None:
    """Log what was detected: examples, columns, task, classes and split."""
    source = config.data.train or "the data given from Python"
    columns = ", ".join(f"{role} {', '.join(map(repr, names))}" for role, names in data.columns.items())
    log.info("Data: %d %s from %s%s.", len(data.frame), data.kind.plural, source, f" ({columns})" if columns else "")
    task, names = data.task, data.task.names
    shown = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
    counts = data.frame["split"].value_counts()
    parts = ", ".join(f"{counts[split]} {split}" for split in SPLITS if split in counts)
    log.info("Task: %s, %d %s (%s). Split: %s.", task.type.replace("_", " "), len(names),
             task.outputs if len(names) > 1 else task.output, shown, parts)  # fmt: skip


def log_findings(config: RunConfig, findings: Sequence[Any]) -> None:
    """Warn of the worst that the doctor found; name the command that shows the rows, and the other findings."""
    command = f"hftransfer doctor {shlex.quote(config.data.train)}" if config.data.train else "-v"
    serious = [finding for finding in findings if finding.severity != "note"]
    serious.sort(key=lambda finding: finding.severity != "error")
    for finding in serious[:MOST_FINDINGS]:
        log.warning(finding.as_text(3), extra={"shown_by": command})
    for finding in serious[MOST_FINDINGS:]:
        details.info(finding.as_text(3))
    if len(serious) > MOST_FINDINGS:
        log.warning("Findings that are not shown: %d (%s shows them).", len(serious) - MOST_FINDINGS, command)


def log_training(context: RunContext, plan: Plan, sizes: Sizes) -> None:
    """Log what is trained of which checkpoint."""
    log.info("Strategy: %s on %s, %d of %d parameters train (%s), the lowest in %s.", context.config.strategy.type,
             context.config.model.name, sum(sizes.trainable.values()), sum(sizes.all.values()),
             percent(sizes.trainable_share), plan.layer_groups.name_of(plan.lowest_depth))  # fmt: skip


def result_lines(folder: Path, metrics: MetricsRecord) -> list[str]:
    """Return the result with its interval, where it lies, and what comes next."""
    run = shlex.quote(str(folder))
    places = f"{MODELS}/" if metrics.contributions else "model/"
    lines = [f"Run folder: {folder} ({places}, report.html)"]
    if metrics.contributions:
        lines = [*sentences(metrics.contributions), *lines]
    if metrics.headline:
        name, found = next(iter(metrics.parts[metrics.headline].items()))
        title = metrics.describe_part(metrics.headline)
        interval = f"95 % interval {ends(found)}, {found['n']} examples"
        lines.insert(0, f"Result: {title} {titled(name)} {found['value']:.4f} ({interval}).")
    return [*lines, f"Next: hftransfer evaluate {run} · hftransfer predict {run} INPUTS · hftransfer demo {run}"]
