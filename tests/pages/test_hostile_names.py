"""Names that would be markup, mathematics or control of a terminal stay text on a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

import teleojax as tj
from teleojax._errors import printable
from tests.pages.conftest import Opened

Visit = Callable[..., Opened]
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(3)>",
    "\"'><svg onload=alert(4)>",
    "\x1b[31mred\x07\nnew\r\trow\x00",
    "q\u202egnp.lacitirc\u2066",
    "\\u003c \\\\u003c &lt;b&gt; ${alert(5)} {{ 7*7 }} $$\\frac{1}{2}$$ \\(x\\)",
    "\u2028line\u2029 \ue000 é",
]
WIDE = {ord("$"): "\uff04", ord("\\"): "\uff3c"}  # so that no figure takes a name for mathematics


def test_names_are_never_more_than_text(page: Path, visit: Visit, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = [f"layers.{i}.{n}.q_proj.weight" for i, n in enumerate(HOSTILE)]
    hostile = {n: rng.normal(size=(40, 40)).astype(np.float32) for n in [*HOSTILE, *deep]}
    report = tj.fit(hostile)
    report.to_html(tmp_path / "page.html")
    opened = visit(tmp_path / "page.html")
    assert set(opened.every_row()) == {printable(n) for n in hostile}
    for i in range(opened.page.locator("#table tbody tr").count()):
        row = opened.page.locator("#table tbody tr").nth(i)
        row.click()
        assert opened.page.inner_text("#detail-name") == row.locator("button").text_content()
    elements = "[...new Set([...document.querySelectorAll('*')].map(e => e.localName))].sort()"
    assert opened.page.evaluate(elements) == visit(page).page.evaluate(elements)
    assert opened.page.evaluate("document.querySelectorAll('script').length") == 6
    handlers = "[...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => /^on/.test(a.name))).length"
    assert opened.page.evaluate(handlers) == 0
    text = opened.page.inner_text("body")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
    named = set(opened.source("depths", "points")["name"])
    assert len(named) > 5
    assert named <= {printable(n).translate(WIDE) for n in deep}
    canvas = opened.page.locator("#figure-depths")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for x in range(60, 1000, 12):  # what is under the pointer is told by its name
        opened.page.mouse.move(box["x"] + x, box["y"] + 120)
    assert opened.saved("#save-jsonl") == report.jsonl()
    assert opened.saved("#save-csv") == report.csv()
