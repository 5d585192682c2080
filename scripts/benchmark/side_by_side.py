"""The benchmark's results as a page: one table and one panel of the plot for each data set."""

import platform
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median

import torch

from hftransfer.runtime.devices import hardware

OURS, PEERS = "#1f6feb", "#8a8f98"


def write_report(results: list[dict], titles: dict[str, str], path: Path, note: str) -> None:
    """Write the page at `path`, and beside it the plot as SVG with the tables' numbers in its points."""
    sets = {name: _rows(results, titles, name) for name in dict.fromkeys(result["set"] for result in results)}
    plot = path.with_suffix(".svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    _plot(sets, plot)
    sections = [_section(name, rows, _sizes(results, name)) for name, rows in sets.items()]
    head = f"# Side by side\n\n{_machine()} {note}\n\nMade by `python scripts/benchmark.py`. Same weights, same rows, whole "
    head += "processes by the clock: from the command to the metrics, imports and searches included, empty caches. One "
    head += f"run is one draw: differences of a few points are noise.\n\n![Accuracy and seconds]({plot.name})\n\n"
    path.write_text(head + "\n".join(sections), encoding="utf-8")


def _rows(results: list[dict], titles: dict[str, str], name: str) -> list[dict]:
    """One row per method, the fastest first; methods that failed come last."""
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        runs = [result for result in results if (result["set"], result["method"]) == (name, method)]
        whole = [run for run in runs if "accuracy" in run]
        row = {"method": method, "title": titles[method], "runs": len(whole)}
        if whole:
            row |= {"accuracy": mean(run["accuracy"] for run in whole)}
            row |= {"spread": [run["accuracy"] for run in whole], "seconds": median(run["seconds"] for run in whole)}
        elif runs:
            row |= {"failure": runs[0]["failure"]}
        rows += [row] if runs else []
    return sorted(rows, key=lambda row: row.get("seconds", float("inf")))


def _sizes(results: list[dict], name: str) -> tuple[int, int]:
    return next(tuple(result["rows"]) for result in results if result["set"] == name)


def _section(name: str, rows: list[dict], sizes: tuple[int, int]) -> str:
    lines = [f"## {name}: {sizes[0]} rows to train on, {sizes[1]} to test", ""]
    lines += ["| | method | accuracy | seconds | times the fastest |", "|---|---|---|---|---|"]
    for number, row in enumerate(rows, start=1):
        if "failure" in row:
            lines.append(f"| {number} | {row['title']} | failed: `{row['failure'].replace('|', '/')}` | | |")
            continue
        low, high = min(row["spread"]), max(row["spread"])
        spread = f" ({low:.3f} to {high:.3f}, {row['runs']} runs)" if row["runs"] > 1 else ""
        factor = row["seconds"] / rows[0]["seconds"]
        lines.append(
            f"| {number} | {row['title']} | {row['accuracy']:.3f}{spread} | {row['seconds']:.0f} | {factor:.1f} |"
        )
    return "\n".join([*lines, ""])


def _machine() -> str:
    facts = hardware(torch.device("cpu"))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "scikit-learn"))
    memory = facts["memory_bytes"] / 2**30
    return f"{facts['cpu']}, {facts['cores']} cores, {memory:.0f} GB, Python {platform.python_version()}, {packages}."


def _plot(sets: dict[str, list[dict]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    across, down = min(2, len(sets)), -(-len(sets) // 2)
    figure, panels = plt.subplots(down, across, figsize=(5.6 * across, 6.4 * down), squeeze=False, layout="constrained")
    for panel in panels.flat[len(sets) :]:
        panel.set_axis_off()
    for panel, (name, rows) in zip(panels.flat, sets.items(), strict=False):
        for number, row in enumerate(rows, start=1):
            if "accuracy" in row:
                color = OURS if row["title"].startswith("hftransfer") else PEERS
                point, style = (
                    (row["seconds"], row["accuracy"]),
                    {"linestyle": "", "label": f"{number}  {row['title']}"},
                )
                panel.plot(*point, "o", color=color, markersize=13, markeredgecolor="white", **style)
                panel.annotate(str(number), point, color="white", fontsize=8, ha="center", va="center")
        panel.legend(loc="upper left", bbox_to_anchor=(0, -0.14), frameon=False, fontsize=8)
        panel.set(xscale="log", xlabel="seconds, whole process (log scale)", ylabel="test accuracy", title=name)
        panel.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))  # plain seconds, also where they span no decade
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.margins(0.08, 0.08)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    plt.close(figure)
