"""What a block has drawn or written, for the page to show: figures inside it, files beside it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html import escape
from pathlib import Path

DPI = 144  # twice what a page shows, for fine screens
KEPT: dict[str, Path] = {}  # place in the site -> file, of those that the site is to hold


def drawn(code: str) -> str:
    """The open figures of matplotlib as HTML; they are closed. `code` is what drew them, for those who cannot see."""
    from matplotlib import pyplot as plt

    names = ", ".join(dict.fromkeys(re.findall(r"\bplot_\w+", code))) or "figure"
    images = []
    for number in plt.get_fignums():
        figure, file = plt.figure(number), io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        width = round(figure.get_figwidth() * DPI / 2)
        words = [f"{names}:", *dict.fromkeys(t for ax in figure.axes for t in (ax.get_title(), ax.get_ylabel()) if t)]
        data = base64.b64encode(file.getvalue()).decode("ascii")
        alt = escape(" ".join(words).replace("\\$", "$"), quote=True)
        images.append(f'<img alt="{alt}" width="{width}" src="data:image/png;base64,{data}">')
    plt.close("all")
    if not images:
        raise RuntimeError("this block draws, and no figure is open")
    return f'<p class="figures">{"".join(images)}</p>'


def kept(path: str, place: str, words: str) -> str:
    """A link to a file that a block has written; the site holds it at `place`, beside the page that links to it."""
    copy = Path(path).resolve().with_name(f"kept-{Path(place).name}")
    shutil.copyfile(path, copy)
    KEPT[place] = copy
    return f'<p><a href="{Path(place).name}">{escape(words)}</a></p>'
