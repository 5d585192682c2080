"""What is found in data before a training: inputs, task, classes and split, and the findings of the doctor, as HTML."""

import html
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from hftransfer.config import parse_overrides, with_overrides
from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig
from hftransfer.data.sources import CLASS_FOLDER, SPLITS
from hftransfer.doctor.examination import check_data, gather_facts
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import KINDS, Finding
from hftransfer.doctor.labels import names_of
from hftransfer.doctor.repair import fix
from hftransfer.report.gallery import thumbnail, words
from hftransfer.studio.place import Place

CLASSES, EXAMPLES, ROWS = 20, 8, 5  # that are shown
CHARACTERS = 140  # of a text
ORDER = ("error", "warning", "note")


def data_config(place: Place, name: str | None, options: str = "") -> DataConfig:
    """Return the configuration of the data called `name`, with one key=value a line in `options`. Raises `UserError`."""
    where = name if name and name.startswith(("starter/", "hub:")) else str(place.path(checked_name(name)))
    return with_overrides({"data": {"train": where}}, parse_overrides(lines_of(options))).data


def checked_name(name: str | None) -> str:
    """Return the name of data. Raises `UserError` where none was chosen."""
    if not name:
        raise UserError("Choose the data first.")
    return name


def lines_of(options: str | None) -> list[str]:
    """Return the lines that hold something."""
    return [line.strip() for line in (options or "").splitlines() if line.strip()]


def examined(config: DataConfig) -> tuple[str, list[Finding]]:
    """Return what was detected, as HTML, and the findings of the doctor; a mistake is a finding."""
    try:
        facts = gather_facts(config)
    except UserError as error:
        return "", [Finding("data-unreadable", str(error))]
    findings = sorted(check_data(facts), key=lambda finding: ORDER.index(finding.severity))
    return facts_html(facts), findings


def can_be_fixed(findings: Sequence[Finding]) -> bool:
    """Whether `doctor --fix` repairs something of it."""
    return any("doctor DATA --fix" in KINDS[finding.id].fix for finding in findings)


def fixed(place: Place, name: str, config: DataConfig) -> str:
    """Write a cleaned copy and return what it is called. Raises `UserError`, also where it would lie outside."""
    if place.path(name) == place.root:
        raise UserError("The cleaned copy would lie beside the studio's folder: start the studio one folder higher.")
    return fix(config)[0].resolve().relative_to(place.root).as_posix()


def facts_html(facts: Facts) -> str:
    """Return counts, task, split, sizes of classes and some examples."""
    rows = {
        "examples": f"{len(facts.frame):,} {facts.kind.plural}",
        "task": f"{facts.task.type.replace('_', ' ')}, {len(facts.task.names)} {facts.task.outputs}",
        "split": _split(facts),
    }
    if facts.read and facts.read.sources[0].kind != CLASS_FOLDER:
        rows |= _columns(facts)
    listed = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in rows.items())
    return f'<dl class="facts">{listed}</dl>{_classes(facts)}{_examples(facts)}'


def _columns(facts: Facts) -> dict[str, str]:
    columns = facts.read.columns[0]
    return {"input": ", ".join(columns.input), "label": ", ".join(columns.label)}


def _split(facts: Facts) -> str:
    given = facts.frame["split"].notna().any()
    divided = facts.frame if given else facts.divided
    if divided is None:
        return "divided when the training starts"
    counts = divided["split"].value_counts()
    parts = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS if split in counts)
    return f"{parts} ({'given by the data' if given else 'cut at random, copies on one side'})"


def _classes(facts: Facts) -> str:
    if facts.task.by_pixel or not facts.task.has_classes:
        return ""
    sizes = Counter(name for label in facts.frame["label"] for name in names_of(label)).most_common()
    most = max((size for _, size in sizes), default=1)
    bars = "".join(
        f'<tr><th scope="row">{html.escape(str(name))}</th><td>{size:,}</td>'
        f'<td class="bar"><span style="width: {100 * size / most:.0f}%"></span></td></tr>'
        for name, size in sizes[:CLASSES]
    )
    more = f"<p>and {len(sizes) - CLASSES} more</p>" if len(sizes) > CLASSES else ""
    return f'<table class="classes"><caption>Examples of each class</caption>{bars}</table>{more}'


def _examples(facts: Facts) -> str:
    whole = [row for row, inspection in enumerate(facts.inspections) if not inspection.fault]
    drawn = np.random.default_rng(0).permutation(whole)[:EXAMPLES]
    shown = "".join(_example(facts, int(row)) for row in drawn)
    return f'<div class="examples" tabindex="0" role="group" aria-label="Some examples">{shown}</div>'


def _example(facts: Facts, number: int) -> str:
    row = facts.frame.iloc[number]
    if facts.kind.shows == "words":
        text = str(row["input"])
        inner = f"<p>{html.escape(text[:CHARACTERS] + ('…' if len(text) > CHARACTERS else ''))}</p>"
    else:
        picture = thumbnail(row["input"], 160, facts.kind)
        inner = f'<img alt="" src="{picture}">' if picture else "<p>(cannot be shown)</p>"
    label = "masks" if facts.task.by_pixel else words(row["label"])
    return f"<figure>{inner}<figcaption>{html.escape(label[:60])}</figcaption></figure>"


def findings_html(findings: Sequence[Finding]) -> str:
    """Return every finding with its first rows, its meaning and its fix."""
    if not findings:
        return '<p class="good">The doctor has nothing to report.</p>'
    return "".join(_finding(finding) for finding in findings)


def _finding(finding: Finding) -> str:
    rows = "".join(f"<li>{html.escape(row)}</li>" for row in _shown(finding.rows))
    meaning = html.escape(KINDS[finding.id].meaning)
    return (f'<details class="finding {finding.severity}"><summary><b>{finding.severity}</b> {html.escape(finding.message)}'
            f"</summary><p>{meaning}</p><ul>{rows}</ul><p>→ {html.escape(finding.fix)}</p></details>")  # fmt: skip


def _shown(rows: Sequence[str]) -> Iterator[str]:
    yield from rows[:ROWS]
    if len(rows) > ROWS:
        yield f"… and {len(rows) - ROWS} more"
