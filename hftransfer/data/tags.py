"""Tags of words in any usual scheme, read as entities: IOB1, IOB2, BIOES, BILOU, or names of types alone (IO).

Ramshaw & Marcus 1995 (IOB1), Tjong Kim Sang & Veenstra 1999 (IOB2), Ratinov & Roth 2009 (BILOU).
"""

import re
from collections.abc import Sequence

PREFIXED = re.compile(r"([BIESLUM])[-_](.+)", re.IGNORECASE)
BEGINS, ENDS = {"B", "S", "U"}, {"E", "L", "S", "U"}
WordSpan = tuple[int, int, str]  # first word, the word after the last, type


def split_tag(tag: str) -> tuple[str, str]:
    """Return prefix and type of a tag; O has neither, a bare type has no prefix."""
    if tag.strip().upper() in ("O", ""):
        return "", ""
    found = PREFIXED.fullmatch(tag.strip())
    return (found[1].upper(), found[2]) if found else ("", tag.strip())


def entities_of(tags: Sequence[str], prefixed: bool = True) -> list[WordSpan]:
    """Return the entities of one sequence of tags; not `prefixed`, neighbours of one type make one entity.

    A tag that continues nothing begins an entity. That is how IOB1 is meant, and how `conlleval` reads the others.
    """
    found: list[WordSpan] = []
    is_open = False
    for place, tag in enumerate(tags):
        prefix, kind = split_tag(tag) if prefixed else ("", "" if split_tag(tag) == ("", "") else tag.strip())
        continues = is_open and prefix not in BEGINS and found[-1][2] == kind
        if kind and continues:
            found[-1] = (found[-1][0], place + 1, kind)
        elif kind:
            found.append((place, place + 1, kind))
        is_open = bool(kind) and prefix not in ENDS
    return found


def scheme_of(sequences: Sequence[Sequence[str]]) -> tuple[str, int]:
    """Return the name of the scheme, and in how many places tags break it."""
    distinct = {tag for tags in sequences for tag in tags}
    parts = {tag: split_tag(tag) for tag in distinct}
    if any(kind and not prefix for prefix, kind in parts.values()):
        return "IO", 0
    prefixes = {prefix for prefix, _ in parts.values()}
    if prefixes & set("LU"):
        return "BILOU", 0
    if prefixes & set("ESM"):
        return "BIOES", 0
    inside, apart = 0, 0  # entities that begin with I; entities whose B is not needed to tell them from the one before
    for tags in sequences:
        before = ("", "")
        for prefix, kind in map(parts.get, tags):
            inside += prefix == "I" and before[1] != kind
            apart += prefix == "B" and before[1] != kind
            before = (prefix, kind)
    if inside and not apart:
        return "IOB1", 0
    return "IOB2", inside
