"""Template, styles, scripts and data -> the text of a page that needs nothing else and may fetch nothing."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from teleojax._errors import MissingExtraError, printable
from teleojax._version import __version__
from teleojax.report.page._figures import figures_json
from teleojax.report.plots._style import STYLES

SCRIPTS = ("table.js", "figures.js", "detail.js", "page.js")
HERE = files("teleojax.report.page")


def require_page() -> None:
    """Raises MissingExtraError where a page cannot be made."""
    for package in ("jinja2", "bokeh"):
        try:
            importlib.import_module(package)
        except ImportError as e:
            raise MissingExtraError("html", package=package, extra="report") from e


def render(*, data: dict[str, Any], lines: str, **words: Any) -> str:
    """The page: `data` for its scripts, `lines` the JSON lines it lists and gives back, `words` what the template says.

    Scripts and styles are allowed by their hashes alone; those that Bokeh adds by a nonce made from the content, so
    that equal results give equal pages. Raises MissingExtraError without the extra.
    """
    require_page()
    jinja2 = importlib.import_module("jinja2")
    markupsafe = importlib.import_module("markupsafe")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)  # fmt: skip
    environment.filters["printable"] = printable
    style = _palette() + _own("page.css")
    bokeh, own = _bokeh(), "\n".join(['"use strict";', *map(_own, SCRIPTS)])
    islands = {"data": _inert(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
               "lines": _inert(lines), "figures": _inert(figures_json())}  # fmt: skip
    nonce = _hash("".join(islands.values())).removeprefix("sha256-")
    boot = _own("boot.js").replace("NONCE", nonce)
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(f"'{_hash(script)}'" for script in (boot, bokeh, own)),
            f"style-src '{_hash(style)}' 'nonce-{nonce}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    safe = {name: markupsafe.Markup(text) for name, text in
            {"style": style, "boot": boot, "bokeh": bokeh, "own": own, **islands}.items()}  # fmt: skip
    template = environment.from_string(_own("page.html.j2"))
    return template.render(policy=policy, version=__version__, **safe, **words)


def _own(name: str) -> str:
    return HERE.joinpath(name).read_text(encoding="utf-8")


def _bokeh() -> str:
    """Bokeh's script with its licence notice, as its wheel has it."""
    static = importlib.import_module("bokeh.util.paths").bokehjs_path()
    return Path(static, "js", "bokeh.min.js").read_text(encoding="utf-8").replace("\r", "")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inert(text: str) -> str:
    """JSON that cannot end the element it stands in, and says the same."""
    return text.replace("<", "\\u003c")


def _palette() -> str:
    """The colours of the figures as variables of the style sheet, for light paper and for dark."""
    blocks = []
    for look in STYLES.values():
        colours = {"paper": look.paper, "ink": look.ink, "muted": look.muted}
        colours |= {f"s{i}": colour for i, colour in enumerate(look.series)}
        blocks.append(":root {" + "".join(f"--{name}: {colour};" for name, colour in colours.items()) + "}\n")
    return f"{blocks[0]}@media (prefers-color-scheme: dark) {{ {blocks[1]} }}\n"
