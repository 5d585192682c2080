"""A cleaned copy of a data set: what can be cured without a decision, and nothing in place."""

import html
import json
import logging
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.core.files import replacing, strict_json
from hftransfer.data import DataConfig
from hftransfer.data.sources import CLASS_FOLDER, Source
from hftransfer.doctor.copies import rows_with_partner
from hftransfer.doctor.examination import gather_facts
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.images import SAME_FORMAT, format_of
from hftransfer.doctor.labels import names_of, near_equal_names
from hftransfer.doctor.texts import HTML_ENTITY, HTML_TAG, reread
from hftransfer.modalities.duplicates import components

log = logging.getLogger(__name__)


@dataclass
class Repair:
    """What is to change: rows to leave out with the finding that says why, and new names for classes."""

    left_out: dict[int, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def leave_out(self, rows: np.ndarray | list[int], reason: str) -> None:
        for row in rows:
            self.left_out.setdefault(int(row), reason)


def fix(config: DataConfig) -> list[Path]:
    """Write a cleaned copy beside the data and return its paths.

    The copy is `NAME-cleaned/` for a folder, `NAME.cleaned.csv` for a table.

    Left out are broken and empty inputs, rows without label, second copies with the same label, and training rows with a
    copy or near copy in validation or test. Near-equal class names become one, suffixes follow the content, wrongly
    decoded texts and HTML are repaired. Contradicting labels are left for a person. Raises `UserError` for data that is
    neither folder nor table, or when the copy exists.
    """
    facts = gather_facts(config)
    facts.require("doctor --fix")
    for source in facts.read.sources:
        if source.kind == "dataset":
            raise UserError(f"--fix writes copies of folders and tables; {source.name} is neither. Save it as a table.")
    repair = find_repair(facts)
    _log_repair(repair)
    written, start = [], 0
    for source, columns in zip(facts.read.sources, facts.read.columns, strict=True):
        count = sum(map(len, source.parts.values()))
        rows = range(start, start + count)
        start += count
        if source.kind == CLASS_FOLDER:
            written.append(_write_folder(source, facts, repair, rows))
        else:
            written += _write_tables(source, columns.input, columns.label, facts, repair, rows)
    return written


def find_repair(facts: Facts) -> Repair:
    """Decide what to change, without changing anything."""
    repair = Repair()
    broken = [index for index, inspection in enumerate(facts.inspections) if inspection.fault]
    repair.leave_out(broken, facts.kind.fault_finding)
    repair.leave_out(np.flatnonzero(~facts.labelled), "label-missing")
    sizes = Counter(name for label in facts.frame["label"] for name in names_of(label))
    for first, *others in near_equal_names(dict(sizes)):
        repair.renamed |= dict.fromkeys(others, first)
    if facts.frame["split"].notna().any():
        for reason, kinds in (("leak", ["equal"]), ("leak-near", ["equal", "nearly equal"])):
            repair.leave_out(_trained_partners(facts, np.concatenate([facts.links[kind] for kind in kinds])), reason)
    repair.leave_out(_second_copies(facts, repair), "duplicate")
    return repair


def _trained_partners(facts: Facts, pairs: np.ndarray) -> list[int]:
    """Training rows that are connected to a row of validation or test."""
    component = components(len(facts.frame), pairs)
    evaluated = {component[row] for split in ("test", "validation") for row in rows_with_partner(facts, pairs, split)}
    trained = (facts.frame["split"] == "train").to_numpy()
    return [row for row in range(len(component)) if trained[row] and component[row] in evaluated]


def _second_copies(facts: Facts, repair: Repair) -> list[int]:
    seen, second = set(), []
    for row, (inspection, label, split) in enumerate(
        zip(facts.inspections, facts.frame["label"], facts.frame["split"], strict=True)
    ):
        names = sorted(repair.renamed.get(name, name) for name in names_of(label)) or label
        key = (inspection.digest, json.dumps(names), split)
        if row not in repair.left_out and key in seen:
            second.append(row)
        seen.add(key)
    return second


def _log_repair(repair: Repair) -> None:
    for reason, count in Counter(repair.left_out.values()).most_common():
        log.info("Left out: %d rows (%s).", count, reason)
    for old, new in repair.renamed.items():
        log.info("Class %r becomes %r.", old, new)


def _free(path: Path) -> Path:
    if path.exists():
        raise UserError(f"The cleaned copy {path} exists already: move it away first.")
    return path


def _write_folder(source: Source, facts: Facts, repair: Repair, rows: range) -> Path:
    target = _free(source.root.with_name(f"{source.root.name}-cleaned"))
    with replacing(target) as temporary:
        for row in rows:
            if row not in repair.left_out:
                origin = Path(facts.frame["input"].iloc[row])
                inside = origin.relative_to(source.root)
                parts = [repair.renamed.get(part.strip(), part.strip()) for part in inside.parent.parts]
                copy = temporary.joinpath(*parts, _suffixed(inside, facts.inspections[row].format).name)
                if copy.exists():
                    copy = copy.with_stem(f"{copy.stem}-{row}")  # two classes became one
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin, copy)
    return target


def _suffixed(path: Path, found: str) -> Path:
    """`path` with the suffix of the format that its content has."""
    found = SAME_FORMAT.get(found, found)
    if format_of(str(path)) == found:
        return path
    usual = {"JPEG": ".jpg", "TIFF": ".tif"}
    suffixes = [suffix for suffix, name in Image.registered_extensions().items() if name == found]
    return path.with_suffix(usual.get(found) or f".{found.lower()}" if suffixes else path.suffix)


def _write_tables(
    source: Source, inputs: tuple[str, ...], labels: tuple[str, ...], facts: Facts, repair: Repair, rows: range
) -> list[Path]:
    written, start, path = [], rows.start, Path(source.name)
    divided_by_files = path.is_dir()
    frames = []
    for part, frame in source.parts.items():
        kept = [index for index in range(len(frame)) if start + index not in repair.left_out]
        start += len(frame)
        cleaned = _clean_cells(frame.iloc[kept], inputs if facts.kind.content == "words" else (), labels, repair, facts)
        if divided_by_files:
            (file,) = (name for name in path.iterdir() if _is_part(name, part))
            written.append(_write_table(cleaned, _free(file.with_name(f"{file.stem}.cleaned{file.suffix}"))))
        frames.append(cleaned)
    if divided_by_files:
        return written
    whole = pd.concat(frames).sort_index()
    return [_write_table(whole, _free(path.with_name(f"{path.stem}.cleaned{path.suffix}")))]


def _is_part(path: Path, part: str) -> bool:
    from hftransfer.data.sources import SPLIT_WORDS
    from hftransfer.data.tables import READERS

    return path.suffix.lower() in READERS and SPLIT_WORDS.get(path.stem.lower()) == part


def _clean_cells(
    frame: pd.DataFrame, texts: tuple[str, ...], labels: tuple[str, ...], repair: Repair, facts: Facts
) -> pd.DataFrame:
    frame = frame.copy()
    for name in texts:
        frame[name] = [clean_text(value) if isinstance(value, str) else value for value in frame[name]]
    if facts.task.exclusive and len(labels) == 1:
        frame[labels[0]] = [
            repair.renamed.get(str(value).strip(), value) if isinstance(value, str) else value
            for value in frame[labels[0]]
        ]
    return frame


def clean_text(text: str) -> str:
    """Return a text without HTML tags and entities, and with UTF-8 that was read as Windows-1252 read rightly."""
    text = reread(text)
    if not HTML_TAG.search(text) and not HTML_ENTITY.search(text):
        return text
    return " ".join(html.unescape(HTML_TAG.sub(" ", text)).split())


def _write_table(frame: pd.DataFrame, target: Path) -> Path:
    with replacing(target) as temporary:
        if target.suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        elif target.suffix in (".csv", ".tsv"):
            frame.to_csv(temporary, index=False, sep="\t" if target.suffix == ".tsv" else ",")
        else:
            rows = [strict_json(row) for row in frame.to_dict("records")]
            content = "\n".join(rows) if target.suffix in (".jsonl", ".ndjson") else f"[{', '.join(rows)}]"
            temporary.write_text(content, encoding="utf-8")
    return target
