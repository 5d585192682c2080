"""The command: findings to the terminal as they turn up, or as JSON, and an exit code for scripts."""

import sys
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from hftransfer.core.files import strict_json
from hftransfer.data import DataConfig
from hftransfer.doctor.examination import examine
from hftransfer.doctor.findings import Finding, exit_code
from hftransfer.doctor.repair import fix

if TYPE_CHECKING:
    from hftransfer.config import RunConfig


def doctor(
    data: DataConfig,
    run: "RunConfig | None" = None,
    repair: bool = False,
    as_json: bool = False,
    strict: bool = False,
    measure: bool = False,
    stream: TextIO | None = None,
) -> int:
    """Examine and report to `stream` (standard output); with `repair` write a cleaned copy of the data afterwards.

    `run` adds the checks of model and machine, `measure` what a random split would have reported.

    Returns the exit code: 0, or 1 when there is an error (with `strict` a warning too). Raises `UserError` from the
    repair.
    """
    stream = stream or sys.stdout
    findings = _shown(examine(data, run, measure=measure), None if as_json else stream)
    copies = [str(path) for path in fix(data)] if repair else []
    code = exit_code(findings, strict)
    if as_json:
        report = {"findings": [finding.as_dict() for finding in findings], "cleaned": copies, "exit_code": code}
        print(strict_json(report, indent=2), file=stream)
    else:
        print(_summary(findings), file=stream)
        for path in copies:
            print(f"Cleaned copy: {path}", file=stream)
    return code


def _shown(findings: Iterable[Finding], stream: TextIO | None) -> list[Finding]:
    kept = []
    for finding in findings:
        kept.append(finding)
        if stream:
            print(finding.as_text(), file=stream, flush=True)
    return kept


def _summary(findings: list[Finding]) -> str:
    counts = Counter(finding.severity for finding in findings)
    parts = [
        f"{counts[severity]} {severity}{'s' if counts[severity] != 1 else ''}"
        for severity in ("error", "warning", "note")
    ]
    return (
        f"{', '.join(parts)}. `hftransfer explain ID` says more about any of them."
        if findings
        else "Nothing to report."
    )
