"""Checks of inputs as files, whatever their kind: what a folder holds beside them, and what cannot be read."""

from collections.abc import Iterator

from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding


def check_files(facts: Facts) -> Iterator[Finding]:
    """Yield what a folder of inputs holds beside them."""
    sources, kind = facts.read.sources if facts.read else [], facts.kind
    files = [path for source in sources for path in source.passed_over]
    if passed_over := kind.describe_passed_over(files):
        yield Finding(
            "file-passed-over", passed_over, tuple(path for path in files if kind.describe_passed_over([path]))
        )
    empty = tuple(path for source in sources for path in source.empty)
    if empty:
        yield Finding("folder-empty", f"Folders without {kind.describe_input()}: {len(empty)}.", empty)


def check_readable(facts: Facts) -> Iterator[Finding]:
    """Yield one finding about the inputs that cannot be used."""
    broken = [index for index, inspection in enumerate(facts.inspections) if inspection.fault]
    if broken:
        named = tuple(f"{facts.frame['where'].iloc[index]}: {facts.inspections[index].fault}" for index in broken)
        verb = "decoded" if facts.kind.files else "read"
        message = f"Cannot be {verb}: {len(broken)} of {len(facts.inspections)} {facts.kind.plural}."
        yield Finding(facts.kind.fault_finding, message, named)
