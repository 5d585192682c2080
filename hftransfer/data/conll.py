"""Files in the format of the CoNLL shared tasks: a word a line with its tags behind it, a blank line between sentences."""

from collections import Counter
from pathlib import Path

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.tags import split_tag

SUFFIXES = (".conll", ".conll2003", ".iob", ".iob2", ".bio", ".bioes", ".ner")
DOCUMENT = "-DOCSTART-"
MOST_TAGS = 200  # of a column that is taken for one of tags
_LINES = 2000


def looks_like_conll(text: str) -> bool:
    """Return whether lines have equally many columns, the last of tags with O, and blank lines stand between them."""
    lines = [line.rstrip("\r") for line in text.split("\n")[:_LINES]]
    rows = [_columns(line) for line in lines if line.strip() and not line.startswith((DOCUMENT, "# "))]
    if len(rows) < 2 or len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        return False
    tags = {row[-1] for row in rows}
    prefixed = sum(bool(split_tag(tag)[0]) for tag in tags)
    return "O" in tags and prefixed == len(tags) - 1 and any(not line.strip() for line in lines[:-1])


def read_conll(text: str, path: Path) -> pd.DataFrame:
    """Return one row for each sentence: lists of `words`, of `tags` (the last column), and of columns between them.

    Sentences of a file with -DOCSTART- lines have a column `doc`. Raises `UserError` with the line where columns differ.
    """
    sentences, rows, document, documents = [], [], 0, []
    width = None
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith(DOCUMENT):
            if rows:
                sentences.append(rows)
                documents.append(document)
                rows = []
            document += line.startswith(DOCUMENT)
            continue
        columns = _columns(line)
        if line.startswith("# ") and len(columns) != width:
            continue  # a comment
        width = width or len(columns)
        if len(columns) != width:
            raise UserError(
                f"{path}, line {number}: expected {width} columns as in the lines before, found {len(columns)}: {line[:80]!r}."
            )
        rows.append(columns)
    if not sentences:
        raise UserError(
            f"{path} holds no sentences: expected a word and its tag on each line, and blank lines between."
        )
    return _as_frame(sentences, documents if document else None)


def _columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()


def _as_frame(sentences: list[list[list[str]]], documents: list[int] | None) -> pd.DataFrame:
    """Columns are `words` (behind numbers of words, where these come first), `column_2`, …, and `tags`, the last one."""
    width = len(sentences[0][0])
    numbered = width > 2 and all(row[0] == str(place) for rows in sentences for place, row in enumerate(rows, start=1))
    first = int(numbered)
    names = {first: "words", **{place: f"column_{place + 1}" for place in range(first + 1, width)}}
    if width > first + 1:
        names[width - 1] = "tags"
    lists = {name: [[row[place] for row in rows] for rows in sentences] for place, name in names.items()}
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in lists.items()})
    return frame if documents is None else frame.assign(doc=[f"{number:05d}" for number in documents])


def tag_columns(frame: pd.DataFrame, names: list[str]) -> list[str]:
    """Return those of some columns of lists whose values are tags: few different ones, O among them."""
    found = []
    for name in names:
        counts = Counter(tag for tags in frame[name] for tag in tags if isinstance(tag, str))
        if len(counts) <= MOST_TAGS and any(split_tag(tag) == ("", "") for tag in counts):
            found.append(name)
    return found
