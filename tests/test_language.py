"""The language of README, docs, messages and docstrings: standard terms, short sentences (docs/glossary.md)."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = 25  # in a sentence, on every page
BANNED = re.compile(
    r"\b(rungs?|ladders?|readouts?|convex heads?|cures?|climbs?|judged|dearer|strangeness|way (there|back)|receipts?(?!\.json))\b",
    re.IGNORECASE,
)


def sentences(page: str) -> list[str]:
    """Return the sentences of prose: no code, tables, headings, links' addresses and remarks in brackets."""
    page = re.sub(r"```.*?```|<!--.*?-->", "", page, flags=re.DOTALL)
    lines = [line for line in page.split("\n") if not re.match(r"\s*(\||#|!\[)|    (?![-*\d])\S", line)]
    found = []
    for item in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", "\n".join(lines)):
        text = re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "", item)
        text = re.sub(r"`[^`]*`", "CODE", text)
        text = re.sub(r"\([^()]*\)", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))
        found += re.split(r"(?<=[.!?:;])\s+(?=[A-Z\"(*]|CODE)", " ".join(text.split()))
    return [sentence for sentence in found if sentence]


def test_the_parts_of_a_page_that_are_prose():
    page = "# Head\n\nOne. Two `a b`\nthree.\n\n- item (aside) one\n- item two\n\n```\ncode\n```\n| a | b |\n"
    assert sentences(page) == ["One.", "Two CODE three.", "item one", "item two"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page):
    found = sentences(page.read_text(encoding="utf-8"))
    assert [sentence for sentence in found if len(sentence.split()) > WORDS] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_the_terms_of_the_glossary(page):
    text = page.read_text(encoding="utf-8")
    if page.name == "glossary.md":  # its last column names the older words
        text = re.sub(r"\|[^|\n]*\|$", "|", text, flags=re.MULTILINE)
    assert BANNED.findall(text) == []


def test_messages_and_docstrings_use_the_terms_of_the_glossary():
    found = []
    for path in sorted((ROOT / "hftransfer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
            if is_text and BANNED.search(node.value):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {BANNED.search(node.value)[0]}")
    assert found == []
