"""The figures of a page as Bokeh documents without data: scripts of the page fill them, and fill them again."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

HEIGHT = 250  # pixels
EMPTY = {
    "bars": ("left", "right", "top", "bottom", "color", "alpha"),
    "lines": ("xs", "ys", "color", "dash", "width"),
    "points": ("x", "y", "color", "marker", "name"),
}
# what is said of the glyph under the pointer
HOVER = {
    "density": ("bars", [("ln |w|", "@left{0.000} to @right{0.000}"), ("density", "@top{0.00000}")]),
    "utility": ("points", [("ln |w|", "@x{0.000}"), ("utility", "@y{0.000} nats")]),
    "roles": ("points", [("", "@name"), ("", "@x{0.00000}")]),
    "depths": ("points", [("", "@name"), ("", "@y{0.00000}")]),
}
AXES = {
    "density": ("ln |w|", "density, per unit of ln |w|"),
    "utility": ("ln |w|", "effective utility, nats"),
    "roles": ("", ""),
    "depths": ("depth, blocks", ""),
}


@cache
def figures_json() -> str:
    """A JSON object: kind of figure -> what `Bokeh.embed.embed_item` takes. Sources are named bars, lines, points."""
    from bokeh.embed import json_item

    return json.dumps({kind: json_item(_figure(kind)) for kind in AXES}, separators=(",", ":"))


def _figure(kind: str) -> Any:
    from bokeh.models import ColumnDataSource, FactorRange, HoverTool, Range1d
    from bokeh.plotting import figure

    x, y = AXES[kind]
    y_range = FactorRange(factors=[]) if kind == "roles" else Range1d(start=0.1, end=1)
    plot = figure(
        name=kind, height=HEIGHT, sizing_mode="stretch_width", toolbar_location=None, tools="",
        y_axis_type="log" if kind == "density" else "auto", x_axis_label=x, y_axis_label=y,
        background_fill_color=None, border_fill_color=None, outline_line_color=None, min_border_right=12,
        x_range=Range1d(start=0, end=1), y_range=y_range,
    )  # fmt: skip
    sources = {name: ColumnDataSource({c: [] for c in columns}, name=name) for name, columns in EMPTY.items()}
    glyphs = {
        "bars": plot.quad(
            left="left", right="right", top="top", bottom="bottom", source=sources["bars"],
            fill_color="color", fill_alpha="alpha", line_color=None,
        ),
        "points": plot.scatter(
            x="x", y="y", source=sources["points"], size=5, marker="marker", fill_color="color", line_color="color"
        ),
        "lines": plot.multi_line(
            xs="xs", ys="ys", source=sources["lines"], line_color="color", line_dash="dash", line_width="width"
        ),
    }  # fmt: skip
    drawn, tooltips = HOVER[kind]
    plot.add_tools(HoverTool(tooltips=tooltips, renderers=[glyphs[drawn]]))
    for grid in plot.grid:
        grid.grid_line_alpha = 0.15
    for axis in plot.axis:
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
    return plot
