"""JSON and JSON Lines into rows, in the layouts that pandas, spaCy and the Hub write."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.encoding import decode_utf8
from hftransfer.data.label_studio import unfolded

log = logging.getLogger(__name__)


def read_jsonl(path: Path) -> tuple[pd.DataFrame, dict, dict]:
    """Return the rows of a file with one object in each line. Raises `UserError` that names the line."""
    rows = []
    for place, line in enumerate(decode_utf8(path).split("\n"), start=1):
        if line.strip():
            rows.append(_object(_parse_json(line, f"{path}, line {place}"), f"{path}, line {place}"))
    return frame_of(unfolded(rows)), {}, {}


def read_json(path: Path) -> tuple[pd.DataFrame, dict, dict]:
    """Return the rows of a JSON file in any usual layout. Raises `UserError` that names the entry."""
    text = decode_utf8(path)
    try:
        content = _parse_json(text, str(path))
    except UserError:
        if not text.lstrip().startswith("{") or "\n" not in text.strip():
            raise
        found = read_jsonl(path)  # lines of objects under the wrong suffix, as most data sets on the Hub
        log.info("%s is JSON Lines.", path)
        return found
    content = _records(content)
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else []
    if len(lists) == 1:  # {"data": [...], "version": …}
        content = lists[0]
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of objects, one per row, found {type(content).__name__}.")
    rows = [_object(row, f"{path}, entry {place}") for place, row in enumerate(content, start=1)]
    return frame_of(unfolded(rows)), {}, {}


def _records(content: Any) -> Any:
    """Return the rows of the layouts that `DataFrame.to_json` and others write; other content as it is."""
    if not isinstance(content, dict) or not content:
        return content
    if {"columns", "data"} <= content.keys():  # orient="split"
        return [dict(zip(content["columns"], row, strict=False)) for row in content["data"]]
    inner = list(content.values())
    if all(isinstance(value, dict) for value in inner):
        if all(value.keys() == inner[0].keys() for value in inner) and _are_columns(content, inner[0]):
            return [{name: content[name][row] for name in content} for row in inner[0]]  # orient="columns"
        return inner  # orient="index"
    lists = all(isinstance(value, list) for value in inner) and len({len(value) for value in inner}) == 1
    if lists and len(inner) > 1 and not any(isinstance(entry, dict) for value in inner for entry in value):
        return [dict(zip(content, row, strict=True)) for row in zip(*inner, strict=True)]
    if not any(isinstance(value, (dict, list)) for value in inner):
        return [content]  # a single row, or a single line of JSON Lines
    return content


def _are_columns(outer: dict, inner: dict) -> bool:
    """Return whether the outer keys name columns and the inner ones number rows: by their digits, else by their number."""
    numbered_outer, numbered_inner = (all(key.isdigit() for key in keys) for keys in (outer, inner))
    return numbered_inner if numbered_outer != numbered_inner else 1 < len(outer) <= len(inner)


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise UserError(f"{place} is not valid JSON: {error}.") from error


def _object(row: Any, place: str) -> dict:
    if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], dict):
        return dict(text=row[0]) | row[1]  # as spaCy 2 has a text and its entities
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected an object with one value per column, found {type(row).__name__}.")
    return row


def frame_of(rows: list[dict]) -> pd.DataFrame:
    """Rows as a frame whose columns keep the values as they are (integers stay integers beside missing ones)."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    nested = [name for name in columns if all(_is_nested(row.get(name)) for row in rows)]
    if rows and nested and set(columns) - set(nested) <= {"id"}:
        inner = nested[0] + ("." + next(iter(rows[0][nested[0]])) if isinstance(rows[0][nested[0]], dict) else "[0]")
        raise UserError(
            f"The values are nested ({', '.join(nested)}), such as {inner}: flatten them first, one column per value, for "
            "instance with pandas.json_normalize."
        )
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in columns})


def _is_nested(value: Any) -> bool:
    if isinstance(value, dict):
        return not {"bytes", "path"} <= value.keys()  # an image as `datasets` keeps it
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
