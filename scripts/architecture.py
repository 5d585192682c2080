"""Draw which package imports which, in their order from bottom to top: docs/architecture.svg.

    python scripts/architecture.py [--out docs/architecture.svg]

A filled cell in row A and column B means that A imports from B; its number is how many import statements do. All cells lie
below the diagonal, because a package imports only from the packages before it (tests/test_structure.py).
"""

import argparse
import ast
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hftransfer"


def order() -> list[str]:
    """Return the names of packages as the test of the structure has them."""
    tree = ast.parse((ROOT / "tests" / "test_structure.py").read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER"]
    return list(ast.literal_eval(assigned[0].value))


def imports(names: list[str]) -> Counter:
    """Count the import statements from each package in each other one."""
    found: Counter = Counter()
    for path in PACKAGE.rglob("*.py"):
        unit = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hftransfer"):
                inner = node.module.split(".")[1:2]
                targets = inner or [alias.name for alias in node.names]
                found.update((unit, target) for target in targets if target in names and target != unit)
    return found


def draw(names: list[str], found: Counter, path: Path) -> None:
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.add_subplot()
    most = max(found.values())
    for (above, below), count in found.items():
        if above in names:
            row, column = names.index(above), names.index(below)
            axes.add_patch(_cell(column, row, 0.15 + 0.85 * (count / most) ** 0.5))
            axes.text(column, row, count, ha="center", va="center", fontsize=7)
    axes.plot([-0.5, len(names) - 0.5], [-0.5, len(names) - 0.5], color="0.7", linewidth=0.8)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="left")
    axes.set_yticks(range(len(names)), names)
    axes.xaxis.tick_top()
    axes.set_ylabel("this package imports")
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("from this package (import statements)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(path, metadata={"Date": None})


def _cell(column: int, row: int, strength: float):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=(0.16, 0.47, 0.71, 0.75 * strength), edgecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "architecture.svg")
    place = parser.parse_args().out
    packages = order()
    counted = imports(packages)
    draw(packages, counted, place)
    print(
        f"{len(packages)} packages, {len(counted)} pairs, {sum(counted.values())} import statements between them: {place}"
    )
