"""What all figures share: palette, style and axes, drawn without a screen; a page puts its own `INK` and `MUTED`."""

import re
from collections.abc import Iterable
from typing import Any, Literal
from xml.sax.saxutils import escape

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

INK, MUTED = "#16202c", "#808c99"
COLORS = ("#3d87c9", "#d9822b", "#2a9d78", "#b65a9e", "#c2483d", "#8a8f2a")
WIDTH = 4.6  # inches; as wide as a phone can show without the text becoming too small
DOTS = "dots"  # group of an SVG, before its number
STYLE: Any = {
    "font.size": 9, "font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "ray-ft",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": INK, "ytick.color": INK,
    "axes.titlesize": 9, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.7, "legend.frameon": False, "legend.fontsize": 8, "axes.facecolor": "none",
    "figure.facecolor": "none", "lines.linewidth": 1.3,
}  # fmt: skip


def draw_grid(n: int, height: float, n_columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure of n panels."""
    n_columns = min(n_columns, n)
    n_rows = -(-n // n_columns)
    figure = Figure(figsize=(WIDTH, height * n_rows), layout="constrained")
    axes = [figure.add_subplot(n_rows, n_columns, i + 1) for i in range(n)]
    return figure, axes


def use_log(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis with plain numbers, also where it spans less than a decade; not where nothing is above 0."""
    if axes.dataLim.max["xy".index(which)] <= 0:
        return
    getattr(axes, f"set_{which}scale")("log")
    axis, n_ticks, wide = (axes.yaxis, 4, 30) if which == "y" else (axes.xaxis, 2, 10)
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if high < wide * low:
        axis.set_major_locator(MaxNLocator(n_ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def add_legend(figure: Figure, entries: Iterable[tuple[str, Any]], n_columns: int) -> None:
    """Explain looks below the panels: names, and how lines of each are drawn."""
    handles = [Line2D([], [], label=name, **look) for name, look in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=n_columns)


def name_dots(dots: Artist, names: Iterable[str]) -> None:
    """Give each dot of a line without strokes a name, in their order, which `add_titles` writes into an SVG."""
    dots.set_gid(DOTS)
    dots.set_label("\n".join(names))


def number_dots(figure: Figure) -> dict[str, list[str]]:
    """Number the groups of dots that have names; return the names by group."""
    named = figure.findobj(lambda artist: str(artist.get_gid()).startswith(DOTS))
    for i, artist in enumerate(named):
        artist.set_gid(f"{DOTS}-{i}")
    return {str(artist.get_gid()): str(artist.get_label()).split("\n") for artist in named}


def add_titles(svg: str, names: dict[str, list[str]]) -> str:
    """Write the names of `number_dots` into an SVG, where browsers show them and read them out."""
    for group, own in names.items():
        before, opening, rest = svg.partition(f'<g id="{group}">')
        lead = re.match(r"\s*(<defs>.*?</defs>)?", rest, re.S)  # a look that was drawn before is not defined again
        assert lead is not None
        dots, ending, others = rest[lead.end() :].partition("</g>")
        waiting = iter(own)
        if dots.count("<use ") == len(own):  # a dot outside of the axes is not drawn
            dots = re.sub(
                r"<use ([^>]*)/>",
                lambda use: f'<use class="dot" {use[1]}><title>{escape(next(waiting))}</title></use>',  # noqa: B023
                dots,
            )
        svg = before + opening.replace(f' id="{group}"', "") + lead[0] + dots + ending + others
    return svg


def use_style() -> Any:
    """A context in which figures are drawn and saved."""
    return mpl.rc_context(STYLE)
