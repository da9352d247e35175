"""Formulas as MathML, which browsers set themselves: no script, no fonts, no request."""

from __future__ import annotations

import re
from html import unescape

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def with_mathml(html: str) -> str:
    """The page with every formula that pymdownx.arithmatex has marked set as MathML."""
    return FORMULA.sub(lambda m: convert(unescape(m[2]).strip(), display="block" if m[1] == "div" else "inline"), html)
