"""How figures look: the colours of Okabe and Ito on light or dark paper, which differ for colour-blind eyes too.

Reference: Okabe & Ito (2008), Color universal design.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from teleojax._errors import MissingExtraError, UsageError, printable

BLUE, SKY, VERMILION, ORANGE = "#0072b2", "#56b4e9", "#d55e00", "#e69f00"
GREEN, PURPLE, YELLOW = "#009e73", "#cc79a7", "#f0e442"
SIZE = (5.2, 3.6)  # inches
LONGEST = 56  # characters of a name in a title
MARKERS = "os^DvP*<X>"
DASHES = ("--", "-", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))


@dataclass(frozen=True, slots=True)
class Style:
    """Colours of the paper, of text and axes, of what stays in the background, and of `series` in turn."""

    paper: str
    ink: str
    muted: str
    series: tuple[str, ...]

    def line(self, i: int) -> dict[str, Any]:
        """Colour and dashes of the i-th line: unlike in both, so that print without colours is readable too."""
        return {"color": self.series[i % len(self.series)], "linestyle": DASHES[i % len(DASHES)]}

    def marks(self, i: int) -> dict[str, Any]:
        """Colour and marker of the i-th series of points."""
        return {"color": self.series[i % len(self.series)], "marker": MARKERS[i % len(MARKERS)]}


STYLES = {
    "light": Style("#ffffff", "#222222", "#c8c8c8", (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#222222")),
    "dark": Style("#16181d", "#e8e8e8", "#555a63", (SKY, ORANGE, GREEN, PURPLE, YELLOW, VERMILION, "#e8e8e8")),
}


def style_named(name: str) -> Style:
    """The style of that name. Raises UsageError for another."""
    if name not in STYLES:
        raise UsageError("style", found=repr(name), needed=f"one of {', '.join(STYLES)}", remedy="Choose one of them.")
    return STYLES[name]


def canvas(ax: Any, style: Style, size: tuple[float, float] = SIZE) -> Any:
    """The given Axes, or those of a new figure, in the style. Raises MissingExtraError without matplotlib."""
    if ax is None:
        try:
            plt = importlib.import_module("matplotlib.pyplot")
        except ImportError as e:
            raise MissingExtraError("figures", package="matplotlib", extra="plots") from e
        ax = plt.subplots(figsize=size, layout="constrained", facecolor=style.paper)[1]
    ax.set_facecolor(style.paper)
    ax.tick_params(colors=style.ink, which="both", labelsize=8, width=0.6)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=style.ink, linewidth=0.6)
    for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
        text.set(color=style.ink, fontsize=9)
    return ax


def legend(ax: Any, style: Style, *handles: Any, **options: Any) -> None:
    """A legend without a frame."""
    given = {"handles": handles} if handles else {}
    ax.legend(frameon=False, fontsize=7.5, labelcolor=style.ink, **given, **options)


def plain(name: str) -> str:
    """A name as text for matplotlib, which would set what stands between dollars as mathematics."""
    text = printable(name)
    text = text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"
    return text.replace("$", r"\$")
