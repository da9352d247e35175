"""bitsandbytes: NF4 and FP4 in blocks, whose maxima may be quantised in turn, and LLM.int8() with a scale a row.

Layouts: https://github.com/bitsandbytes-foundation/bitsandbytes (functional.py: QuantState, dequantize_4bit).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from teleojax._errors import CorruptInputError
from teleojax.sources._dequantised import Grid, Levels, as_float, every, spread
from teleojax.sources._packed import nibbles
from teleojax.sources._quantised_plan import MAIN, Arrays, Layout, Parts, Plan, UnlikeLayout
from teleojax.sources._safetensors import load_json

STATES = {".quant_state.bitsandbytes__nf4": "nf4", ".quant_state.bitsandbytes__fp4": "fp4"}
MOST = 3e38  # below the largest number of float32
ANY = ("uint8", "int8", "bfloat16", "float16", "float32")  # the codes may lie in values of any type (quant_storage)


def _plan_4bit(parts: Parts) -> Plan:
    key = next((k for k in STATES if k in parts.beside), None)
    if key is None:
        raise UnlikeLayout("no quant_state")
    state = _state(parts, key)
    shape, block = _sizes(state, "shape"), _size(state, "blocksize")
    n = math.prod(shape)
    if parts.main.nbytes != -(-n // 2) or not n:
        raise UnlikeLayout(f"{parts.main.nbytes} bytes for a shape of {shape}")
    block = min(block, n)
    blocks = -(-n // block)
    parts.need(".quant_map", ("float32",), (16,))
    nested = ".nested_absmax" in parts.beside
    parts.need(".absmax", ("uint8",) if nested else ("float32",), (blocks,))
    inner, offset = 1, 0.0
    if nested:
        inner, offset = min(_size(state, "nested_blocksize"), blocks), state.get("nested_offset")
        parts.need(".nested_absmax", ("float32",), (-(-blocks // inner),))
        parts.need(".nested_quant_map", ("float32",), (256,))
        if not isinstance(offset, int | float) or not abs(offset) < MOST:
            raise UnlikeLayout("a nested_offset that is no number of float32")

    def grid(arrays: Arrays) -> Grid:
        packed, absmax = arrays[MAIN].reshape(-1).view(np.uint8), arrays[".absmax"]

        def scale(_: slice, columns: slice) -> np.ndarray:
            first = columns.start // block
            each = absmax[first : -(-columns.stop // block)]
            if nested:
                each = arrays[".nested_quant_map"][each] * arrays[".nested_absmax"][_blocks(first, len(each), inner)]
                each = each + np.float32(offset)
            return each[np.arange(columns.start, columns.stop) // block - first][None]

        def code(_: slice, columns: slice) -> np.ndarray:
            return nibbles(packed, columns.start, columns.stop, high_first=True)[None]

        return Grid(1, n, code, scale, Levels.of(arrays[".quant_map"], closed=True))

    return Plan(shape, STATES[key], grid)


def _blocks(first: int, n: int, length: int) -> np.ndarray:
    return np.arange(first, first + n) // length


def _state(parts: Parts, key: str) -> dict[str, Any]:
    parts.need(key, ("uint8",))
    try:
        return load_json(parts.small(key).tobytes(), parts.main.name, "quant_state")
    except CorruptInputError as e:
        raise UnlikeLayout(e.found) from e


def _size(state: dict[str, Any], key: str) -> int:
    found = state.get(key)
    if type(found) is not int or found < 1:
        raise UnlikeLayout(f"a quant_state with the {key} {str(found)[:40]}")
    return found


def _sizes(state: dict[str, Any], key: str) -> tuple[int, ...]:
    found = state.get(key)
    if not isinstance(found, list) or not all(type(n) is int and n >= 0 for n in found):
        raise UnlikeLayout(f"a quant_state with the {key} {str(found)[:40]}")
    return tuple(found)


def _plan_int8(parts: Parts) -> Plan:
    shape = parts.main.shape
    if len(shape) != 2:
        raise UnlikeLayout(f"weight of shape {shape}")
    parts.need("SCB", ("float32",), (shape[0],))
    if "weight_format" in parts.beside:
        parts.need("weight_format", ("uint8",), (), (1,))
        if parts.small("weight_format").any():
            raise UnlikeLayout("a weight_format other than rows")

    def grid(arrays: Arrays) -> Grid:
        codes, scale = arrays[MAIN], as_float(spread(arrays["SCB"][:, None], every(1), every(1)))
        step = np.float32(1 / 127)
        return Grid(*shape, lambda r, c: codes[r, c], lambda r, c: scale(r, c) * step, shared=shape[1])

    return Plan(shape, "int8-channel", grid)


LAYOUTS = (
    Layout(
        "bitsandbytes", "", "", ANY, (*STATES, ".quant_map"),
        {
            **dict.fromkeys(STATES, "quantisation state"), ".quant_map": "levels", ".absmax": "scale",
            ".nested_absmax": "scale of the scale", ".nested_quant_map": "levels of the scale",
        },
        _plan_4bit,
    ),
    Layout(
        "LLM.int8()", "weight", "weight", ("int8",), ("SCB",),
        {"SCB": "scale", "weight_format": "format"}, _plan_int8,
    ),
)  # fmt: skip
