"""A table of pictures, texts and values with a label that each of them tells a known part of."""

import random
from pathlib import Path

import pandas as pd

from tests.support import tiny

KINDS = {"photo": "image", "caption": "text", "price": "number", "brand": "category"}


def table(folder: Path, rows: int = 120, seed: int = 0, missing: bool = True) -> Path:
    """Write `listings.csv` with pictures beside it, and return its path.

    Colour of the picture and topic of the text each are one of two; the label names both, so that either alone leaves a coin
    toss. The brand tells nothing; the price is above 10 for warm goods.
    """
    rng, rows_made = random.Random(seed), []
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for row in range(rows):
        colour, topic = row % 2, (row // 2) % 2
        name = f"photos/{row:03d}.png"
        tiny.image(("red", "blue")[colour], 48, seed=row).save(folder / name)
        rows_made.append({
            "photo": name, "caption": tiny.sentence([topic], rng), "price": rng.gauss(5 + 10 * colour, 1),
            "brand": rng.choice(("acme", "bolt", "core")), "label": f"{('red', 'blue')[colour]}-{topic}",
        })  # fmt: skip
    frame = pd.DataFrame(rows_made)
    if missing:
        for place, column in enumerate(KINDS):
            frame[column] = frame[column].astype(object).where(frame.index % 20 != 7 + place)
    frame.to_csv(folder / "listings.csv", index=False)
    return folder / "listings.csv"
