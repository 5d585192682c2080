"""Figures that stand alone, as a PNG or SVG file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from hftransfer.core.errors import UserError
from hftransfer.core.files import replacing

INK, MUTED, FIRST, SECOND, THIRD = "#1f2933", "#66737f", "#2563a8", "#c2571a", "#3f7d4e"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hftransfer",
    "text.parse_math": False,  # a class may be called "$x$"
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#c9d1d8",
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e7ebee",
    "xtick.color": "#c9d1d8",
    "ytick.color": "#c9d1d8",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
}


def check_figure_name(path: Path) -> None:
    """Raise `UserError` for another ending than .png and .svg: before the work, not after it."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise UserError(f"Cannot draw {path}: expected a name ending in .png or .svg.")


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of so many inches to draw on, written to `path` as a whole when the block ends. Raises `UserError`."""
    check_figure_name(path)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        about = {"Date": None} if path.suffix.lower() == ".svg" else {}
        try:
            with replacing(path) as temporary:
                figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150, metadata=about)
        except OSError as error:
            raise UserError(f"Cannot write {path}: {error.strerror}.") from None


def log_x(axes: Axes) -> None:
    """Draw a logarithmic x axis labelled 1, 2, 5, 10: matplotlib's own labels are formulas, which are not parsed here."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
