"""Draw the figures of docs/transfer-learning.md from the cells of `scripts/article.py` and of earlier measurements.

A mark is the mean over draws. A line through it is the mean of the 95 % intervals of the test rows, or the range of the draws
where that is wider.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

DATA = Path(__file__).parents[1] / "docs" / "data"
Cells = list[dict[str, Any]]
COLOURS = {"scratch": "C3", "probe": "C0", "frozen": "C2", "full": "C1"}
TITLES = {
    "digits": "Digits", "flowers5": "Flowers", "clothing10": "Clothes", "tiles": "Tiles", "bbc": "News (texts)",
    "digits:4-9": "to two classes", "digits:4-6-7-8-9": "to five classes", "wbc": "Blood cells, another laboratory",
    "spectrograms": "Spoken digits as pictures", "spoken": "Spoken digits as sound",
}  # fmt: skip


def draw_all(cells: Cells, docs: Path, data: Path = DATA) -> list[Path]:
    """Write a figure for each claim that has cells, and the map of the rule of thumb; return their paths.

    `data` holds earlier measurements: strategies (`scripts/prior.py`) and masks (`scripts/results_masks.py`).
    """
    kinds, masks = (read(data / f"{name}.jsonl") for name in ("strategies", "masks"))
    own = {number: [cell for cell in cells if cell["figure"] == number] for number in range(1, 9)}
    own[5] = own[1]  # the curves are of the same trainings
    drawings = DRAWINGS | {1: lambda found: claim_1(found, kinds, masks)}
    written = [save(drawings[number](found), docs / f"article-{number}.svg") for number, found in own.items() if found]
    maps = {"article-4": claim_4, "article-rule": rule_map}
    return [*written, *(save(drawn(kinds), docs / f"{name}.svg") for name, drawn in maps.items())]


def read(path: Path) -> Cells:
    return [json.loads(line) for line in path.read_text().splitlines()]


def save(figure: Figure, path: Path) -> Path:
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
    return path


def mark(cells: Cells, key: str = "score") -> tuple[float, float, float]:
    """Return the mean of the draws and the wider of the mean interval and the range of the draws."""
    values = [cell[key] for cell in cells]
    middle = mean(values)
    low, high = (mean(cell[end] for cell in cells) if key == "score" else middle for end in ("low", "high"))
    return middle, min(low, *values), max(high, *values)


def group(cells: Cells, *names: str) -> dict[tuple, Cells]:
    found: dict[tuple, Cells] = defaultdict(list)
    for cell in cells:
        found[tuple(cell[name] for name in names)].append(cell)
    return found


def plot(axes: Axes, points: Iterable[tuple[float, Cells]], colour: str, label: str, style: str = "-") -> None:
    """Draw marks with their intervals, joined by a line."""
    drawn = sorted(points, key=lambda point: point[0])
    places, marks = [place for place, _ in drawn], [mark(found) for _, found in drawn]
    axes.plot(places, [middle for middle, _, _ in marks], style, marker="o", markersize=4, color=colour, label=label)
    axes.vlines(places, [low for _, low, _ in marks], [high for _, _, high in marks], colour, alpha=0.35)


def panels(names: list[str], width: float = 3.1, height: float = 3.0, rows: int = 1) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(width * len(names), height * rows), layout="constrained")
    axes = figure.subplots(rows, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(TITLES.get(name, name), fontsize=10)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
    return figure, axes.tolist()


def sets_of(cells: Cells) -> list[str]:
    return list(dict.fromkeys(cell["data"] for cell in cells))


# --- the claims -------------------------------------------------------------------------------------------------------


def claim_1(cells: Cells, kinds: Cells, masks: Cells) -> Figure:
    """Test score by number of labels: earlier means of five draws, and of masks; a ring is the score of trained rows."""
    names = ["digits", "flowers5", "clothing10", "bbc"]
    figure, axes = panels([*names, "masks of blood cells"], width=2.6)
    for axis, name in zip(axes[0], names, strict=False):
        own = sorted((kind for kind in kinds if kind["set"] == name), key=lambda kind: kind["labels"])
        for arm in COLOURS:
            values = [kind["reached"][arm] for kind in own]
            axis.plot([kind["labels"] for kind in own], values, marker="o", markersize=4, color=COLOURS[arm], label=arm)
        for (arm,), found in group([cell for cell in cells if cell["data"] == name], "strategy").items():
            axis.plot(50, mean(cell["train_score"] for cell in found), "o", color=COLOURS[arm], fillstyle="none")
        axis.set(xlabel="labels a class", ylim=(0, 1.05))
    own = [line for line in masks if line["data"] == "wbc" and not line["extra"]]
    for (arm,), found in group(own, "strategy").items():
        if arm in COLOURS:
            sizes = sorted(group(found, "images").items())
            values = [mean(line["test"]["mean_iou"]["value"] for line in some) for _, some in sizes]
            axes[0][-1].plot([key[0] for key, _ in sizes], values, marker="o", markersize=4, color=COLOURS[arm])
    axes[0][-1].set(xlabel="images", ylabel="mean IoU")
    axes[0][0].set_ylabel("test accuracy (ring: of trained rows)")
    for axis, ticks in zip(axes[0], [(5, 20, 50, 100)] * 4 + [(20, 50, 300)], strict=True):
        axis.set_xscale("log")
        axis.set_xticks(ticks, ticks)
        axis.xaxis.set_minor_locator(NullLocator())
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def claim_2(cells: Cells) -> Figure:
    """Accuracy by the number of pretrained blocks that are kept, and of a probe on each block."""
    names = sets_of(cells)
    figure, axes = panels(names, width=4)
    lines = {"frozen": ("C2", "kept blocks frozen"), "trained": ("C1", "kept blocks trained")}
    for axis, name in zip(axes[0], names, strict=True):
        own = group([cell for cell in cells if cell["data"] == name], "strategy")
        for how, (colour, label) in lines.items():
            points = [(int(arm.split()[0]), found) for (arm,), found in own.items() if arm.endswith(f"kept, {how}")]
            plot(axis, points, colour, label)
        probes = [(int(arm.split()[-1]), found) for (arm,), found in own.items() if arm.startswith("probe")]
        plot(axis, probes, "C0", "probe of the block", ":")
        axis.set(xlabel="blocks from the checkpoint (of 7)", ylim=(0, 1))
    axes[0][0].set_ylabel("test accuracy")
    axes[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def bars(axis: Axes, found: dict[str, Cells], colour: Callable[[str], str]) -> None:
    """Draw one horizontal mark with its interval for each name, the first on top."""
    for place, (name, some) in enumerate(found.items()):
        middle, low, high = mark(some)
        axis.plot([low, high], [place, place], color=colour(name), alpha=0.45, linewidth=3)
        axis.plot(middle, place, "o", color=colour(name))
    axis.set_yticks(range(len(found)), list(found))
    axis.set_ylim(len(found) - 0.5, -0.5)
    axis.set_xlabel("test accuracy")


def arms_of(cells: Cells, name: str) -> dict[str, Cells]:
    own = group([cell for cell in cells if cell["data"] == name], "strategy")
    return {arm: found for (arm,), found in own.items()}


def claim_3(cells: Cells) -> Figure:
    """Every source and strategy on a target of two and of five classes."""
    names = sets_of(cells)
    figure, axes = panels(names, width=4.4)
    sources = {"two": "C1", "five": "C0", "ImageNet": "C2", "scratch": "C3"}
    for axis, name in zip(axes[0], names, strict=True):
        bars(axis, arms_of(cells, name), lambda arm: next(c for key, c in sources.items() if key in arm))
    return figure


DEPTHS = {"probe": "0", "frozen": "1/4", "full": "all"}  # strategy -> share of the blocks that trains


def claim_4(kinds: Cells) -> Figure:
    """Draw which share of the blocks is best to train, by set and labels a class, and its lead in points."""
    figure, axis, names, sizes = grid(kinds)
    best = [[float("nan")] * len(names) for _ in sizes]
    for kind in kinds:
        row, column = sizes.index(kind["labels"]), names.index(kind["set"])
        second, first = sorted((kind["reached"][arm], place) for place, arm in enumerate(DEPTHS))[1:]
        best[row][column] = first[1]
        lead = f"{list(DEPTHS.values())[first[1]]}\n+{100 * (first[0] - second[0]):.1f}"
        axis.text(column, row, lead, ha="center", va="center", fontsize=9)
    axis.imshow(best, cmap="Pastel1_r", vmin=-0.5, vmax=8.5, aspect="auto", origin="lower")
    axis.set_title("share of the blocks that is best to train, and its lead in points", fontsize=10)
    return figure


def claim_5(cells: Cells) -> Figure:
    """Curves over steps, with the step at which 95 % of the last value is reached."""
    names = sets_of(cells)
    figure, axes = panels(names, width=4)
    for axis, name in zip(axes[0], names, strict=True):
        for arm, found in arms_of(cells, name).items():
            for number, cell in enumerate(found):
                steps, heights = zip(*cell["curve"], strict=True)
                label = arm if number == 0 else None
                axis.plot(steps, heights, marker=".", color=COLOURS[arm], alpha=0.8, label=label)
                axis.axvline(reached(cell), color=COLOURS[arm], linestyle=":", alpha=0.6)
        axis.set(ylim=(0, 1.03), xlabel="steps (dotted: 95 % of the final value)")
    axes[0][0].set_ylabel("accuracy on rows held out")
    axes[0][0].legend(frameon=False, loc="lower right")
    return figure


def reached(cell: dict[str, Any], share: float = 0.95) -> int:
    """Return the first step of the curve with so large a share of its last value."""
    last = cell["curve"][-1][1]
    return next(step for step, value in cell["curve"] if value >= share * last)


def claim_6(cells: Cells) -> Figure:
    """Draw accuracy by strength of L2-SP."""
    figure, axes = panels([""], width=5)
    for number, name in enumerate(sets_of(cells)):
        arms = arms_of(cells, name)
        order = sorted(arms, key=lambda arm: int(arm.split()[1]))
        points = [(place + 0.05 * number, arms[arm]) for place, arm in enumerate(order)]
        plot(axes[0][0], points, f"C{number}", TITLES[name])
        axes[0][0].set_xticks(range(len(order)), [arm.split()[1] for arm in order])
    axes[0][0].set(xlabel="strategy.l2_sp", ylabel="test accuracy, 10 labels a class", ylim=(0, 1))
    axes[0][0].legend(frameon=False, fontsize=8, ncols=2)
    return figure


def claim_7(cells: Cells) -> Figure:
    """Strategies on domains far from the checkpoint."""
    named = {f"{TITLES[name]}: {arm}": found for name in sets_of(cells) for arm, found in arms_of(cells, name).items()}
    figure, axes = panels([""], width=8, height=0.6 + 0.34 * len(named))
    bars(axes[0][0], named, lambda name: COLOURS[name.split(": ")[1]])
    axes[0][0].set_xlim(0, 1)
    return figure


def claim_8(cells: Cells) -> Figure:
    """Each kind of regularisation alone, by labels a class: points above none of them, paired by draw."""
    names = sets_of(cells)
    figure, axes = panels(names, width=4.2)
    for axis, name in zip(axes[0], names, strict=True):
        arms = arms_of(cells, name)
        base = {(cell["labels"], cell["seed"]): cell["score"] for cell in arms.pop("none")}
        for number, (arm, found) in enumerate(arms.items()):
            gains = defaultdict(list)
            for cell in found:
                if (cell["labels"], cell["seed"]) in base:
                    gains[cell["labels"]].append(100 * (cell["score"] - base[cell["labels"], cell["seed"]]))
            places = [place + 0.12 * (number - 1) for place in range(len(gains))]
            axis.plot(places, [mean(gains[labels]) for labels in sorted(gains)], "o", color=f"C{number}", label=arm)
            for place, labels in zip(places, sorted(gains), strict=True):
                axis.vlines(place, min(gains[labels]), max(gains[labels]), f"C{number}", alpha=0.5)
            axis.set_xticks(range(len(gains)), sorted(gains))
        axis.axhline(0, color="0.5", linewidth=0.8)
        axis.set_xlabel("labels a class")
    axes[0][0].set_ylabel("points above none (line: range of draws)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


# --- the rule of thumb ------------------------------------------------------------------------------------------------

FAR = (
    "digits",
    "tiles",
    "wbc",
    "sick",
    "stsb",
)  # unlike the source: other pictures than photographs, relations of texts
MANY = 20  # labels a class from which they count as many


def rule_says(kind: dict[str, Any], bold: bool) -> str:
    """Return what the rule of thumb says: full (fine-tuning) or probe (feature extraction).

    "Few or similar: extract; many or different: fine-tune" contradicts itself for few examples of another domain, and for
    many of a similar one. `bold` fine-tunes in both cases; the cautious reading extracts in both.
    """
    different, many = kind["set"] in FAR, kind["labels"] >= MANY
    return "full" if (different or many if bold else different and many) else "probe"


def gain(kind: dict[str, Any]) -> float:
    """Return the points that full training is above the probe."""
    return 100 * (kind["reached"]["full"] - kind["reached"]["probe"])


def rule_is_right(kinds: Cells, bold: bool, tie: float = 1.0) -> tuple[int, int]:
    """Return how many kinds the rule decides rightly, and how many are not level within `tie` points."""
    clear = [kind for kind in kinds if abs(gain(kind)) > tie]
    return sum((gain(kind) > 0) == (rule_says(kind, bold) == "full") for kind in clear), len(clear)


def grid(kinds: Cells) -> tuple[Figure, Axes, list[str], list[int]]:
    """Return axes with a column for each set, those like the source first, and a row for each number of labels."""
    names = sorted(dict.fromkeys(kind["set"] for kind in kinds), key=lambda name: (name in FAR, name))
    sizes = sorted({kind["labels"] for kind in kinds})
    figure = Figure(figsize=(8.6, 3), layout="constrained")
    axis = figure.subplots()
    axis.set_xticks(range(len(names)), names, rotation=20)
    axis.set_yticks(range(len(sizes)), sizes)
    axis.set_ylabel("labels a class")
    return figure, axis, names, sizes


def rule_map(kinds: Cells) -> Figure:
    """Draw full training above the probe; framed where the rule says to fine-tune (dotted: if read boldly)."""
    figure, axis, names, sizes = grid(kinds)
    gains = [[float("nan")] * len(names) for _ in sizes]
    for kind in kinds:
        row, column = sizes.index(kind["labels"]), names.index(kind["set"])
        gains[row][column] = gain(kind)
        colour = "white" if abs(gain(kind)) > 9 else "black"
        axis.text(column, row, f"{gain(kind):+.0f}", ha="center", va="center", color=colour)
        if rule_says(kind, bold=True) == "full":
            style = "-" if rule_says(kind, bold=False) == "full" else ":"
            left, right, low, high = column - 0.46, column + 0.46, row - 0.44, row + 0.44
            axis.plot([left, right, right, left, left], [low, low, high, high, low], f"k{style}", linewidth=1.6)
    image = axis.imshow(gains, cmap="RdBu", vmin=-15, vmax=15, aspect="auto", origin="lower")
    figure.colorbar(image, ax=axis, label="full above probe, points")
    return figure


DRAWINGS: dict[int, Callable[[Cells], Figure]] = {
    2: claim_2, 3: claim_3, 5: claim_5, 6: claim_6, 7: claim_7, 8: claim_8,
}  # fmt: skip
