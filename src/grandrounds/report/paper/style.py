"""A paper's figures are styled and written here, with matplotlib but without its global state.

An arm has the colour, the dash and the marker that it has on the page. The same figure gives the
same bytes: it has no dates and no random identifiers. Its letters are laid out in DejaVu Sans,
which comes with matplotlib; an SVG asks for Arial first, which is narrower and what journals want.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grandrounds.report.page.style import Style

DPI = 300
WIDE, MIDDLE = 7.1, 5.2  # inches: 180 mm are two columns of a journal, 132 mm one and a half
TALL = 9.2  # inches that a page has room for
ROW = 0.24  # inches for a line of text
_MARKERS = ("o", "s", "^", "D", "P")  # and dashes: those of the page, as matplotlib names them
_DASHES = ("-", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)))
_FONT, _FONTS = "'DejaVu Sans'", "Arial, Helvetica, 'DejaVu Sans'"
_STYLE = {
    "font.size": 8,
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,  # a dollar in a title is a dollar, not mathematics
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 8,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.unicode_minus": True,
    "grid.color": "#d5d8dc",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters stay text: journals edit and search it
    "svg.hashsalt": "grandrounds",
    "pdf.fonttype": 42,  # embedded whole: journals refuse Type 3
    "savefig.dpi": DPI,
    "figure.dpi": DPI,
}


def marker_of(style: Style) -> str:
    """Return matplotlib's name of an arm's marker."""
    return _MARKERS[style.number % len(_MARKERS)]


def dash_of(style: Style) -> str | tuple[float, tuple[float, ...]]:
    """Return an arm's dash as matplotlib writes it."""
    return _DASHES[style.number % len(_DASHES)]


@contextmanager
def house_style() -> Generator[None]:
    """Draw with these settings alone, whatever a user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)  # pyright: ignore[reportCallIssue, reportArgumentType]
        yield


def as_files(figure: Figure) -> dict[str, bytes]:
    """Write a figure as .svg, .pdf and .png, by suffix."""
    drawing = _written(figure, "svg", {"Date": None, "Creator": None})
    return {
        ".svg": drawing.replace(_FONT.encode(), _FONTS.encode()),
        ".pdf": _written(figure, "pdf", {"CreationDate": None, "Creator": None, "Producer": None}),
        ".png": _written(figure, "png", {"Software": None}),
    }


def _written(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    file = BytesIO()
    figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


def rows_of(figure: Figure, labels: list[str]) -> Axes:
    """Return axes with a row for each label, from the top, and light grid lines."""
    axes = figure.subplots()
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return axes
