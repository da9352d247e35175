"""Formulas as MathML, which browsers set themselves: no script, no fonts, no request."""

from __future__ import annotations

import re
from html import unescape

from latex2mathml.converter import convert

SHOWN = {"span": "inline", "div": "block"}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
NAME = r"(?:<mi>(?:ln|softmax)</mi>|<msup><mi>ln</mi><mn>2</mn></msup>)"
AFTER = re.compile(rf"({NAME})(?=<m(?:i|over|sub|subsup|sup)\b)")
BEFORE = re.compile(rf"(</mi>|</msub>)(?={NAME})")
SPACE = r'\1<mspace width="0.167em"/>'
BAR = re.compile(r'<mo stretchy="false">(?:\||&#x0007C;)</mo>')


def with_mathml(html: str) -> str:
    """The page with every formula that pymdownx.arithmatex has marked set as MathML."""
    return FORMULA.sub(lambda m: _spaced(convert(unescape(m[2]).strip(), display=SHOWN[m[1]])), html)


def _spaced(mathml: str) -> str:
    """ln x with thin spaces, |w| with none: browsers know neither from what latex2mathml writes."""
    mathml = BEFORE.sub(SPACE, AFTER.sub(SPACE, mathml))
    return BAR.sub('<mo stretchy="false" lspace="0" rspace="0">|</mo>', mathml)
