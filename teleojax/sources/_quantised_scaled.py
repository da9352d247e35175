"""Eight-bit integers and floats, a value each, with scales beside them: of the tensor, channels, groups or blocks.

As written by compressed-tensors (naive-, int- and float-quantized), DeepSeek-V3 (`weight_scale_inv`, which multiplies,
in blocks of 128 × 128), vLLM, FBGEMM and others. The values are the weight's times the scale, whatever it is called.
"""

from __future__ import annotations

import math

import numpy as np

from teleojax.sources._dequantised import Grid, Index, Levels, as_float, every, every_in, listed, spread
from teleojax.sources._index import numpy_dtype
from teleojax.sources._quantised_fp4 import SHARED, plan_fp4
from teleojax.sources._quantised_plan import (
    FLOAT8,
    MAIN,
    SCALES,
    Arrays,
    Layout,
    Parts,
    Plan,
    UnlikeLayout,
    in_range,
    weights_of,
)

BLOCK = (128, 128)  # of DeepSeek-V3, where no configuration says
INVERSE, USUAL = ("weight_scale_inv", "_scale_inv"), ("weight_scale", "_scale")
OTHERS = ("scale", "scale_weight", "qscale_weight")


def _plan(parts: Parts) -> Plan:
    key = next(k for k in (*INVERSE, *USUAL, *OTHERS) if k in parts.beside)
    shape, kind = parts.main.shape, parts.main.dtype
    if kind == "uint8" and shape and any(k in parts.beside for k in SHARED):
        return plan_fp4(parts, key)
    if kind == "uint8":
        raise UnlikeLayout("bytes with a scale of which nobody knows how they are packed")
    scale = parts.need(key, (*SCALES, "float8_e8m0fnu"))
    how, form, row, column, shared = _shares(parts, shape, scale.shape, blocks=key in INVERSE)
    rows, columns = math.prod(shape[:-1]), shape[-1] if shape else 1
    zero = next((k for k in ("weight_zero_point", "_zero_point") if k in parts.beside), None)
    if zero is not None:
        if kind != "int8":
            raise UnlikeLayout(f"zero points of {kind}")
        parts.need(zero, ("int8",), scale.shape)
    order = next((k for k in ("weight_g_idx", "_g_idx") if k in parts.beside), None)
    if order is not None and how != "group":
        raise UnlikeLayout(f"groups of inputs for a scale a {how}")
    if order is not None:
        parts.need(order, ("int32", "int64"), (columns,))

    def grid(arrays: Arrays) -> Grid:
        codes, chosen, alike = arrays[MAIN].reshape(rows, columns), column, shared
        if order is not None and (arrays[order] >= 0).all():  # -1: in order
            chosen, alike = listed(in_range(arrays[order], form[1])), 1
        scales = as_float(spread(arrays[key].reshape(form), row, chosen))
        if kind != "int8":
            levels = Levels.of(np.arange(256, dtype=np.uint8).view(numpy_dtype(kind)))
            return Grid(rows, columns, lambda r, c: codes[r, c].view(np.uint8), scales, levels)
        if zero is None:
            return Grid(rows, columns, lambda r, c: codes[r, c], scales, shared=alike)
        zeros = spread(arrays[zero].reshape(form), row, chosen)
        return Grid(rows, columns, lambda r, c: codes[r, c].astype(np.int16) - zeros(r, c), scales, shared=alike)

    return Plan(shape, f"{'int8' if kind == 'int8' else kind}-{how}", grid)


def _shares(
    parts: Parts, shape: tuple[int, ...], scale: tuple[int, ...], *, blocks: bool
) -> tuple[str, tuple[int, int], Index, Index, int]:
    """What has a scale of its own, the scales' rows and columns, which of them a value has, how many in a row share."""
    if math.prod(scale) == 1:
        return "tensor", (1, 1), every(1), every(1), 0
    if len(shape) < 2 or not math.prod(scale):
        raise UnlikeLayout(f"a scale of shape {scale} for a weight of shape {shape}")
    rows, columns = math.prod(shape[:-1]), shape[-1]
    size = _block(parts)
    if size is not None or blocks:
        size = tuple(min(n, of) for n, of in zip(size or BLOCK, shape[-2:], strict=True))
        each = (-(-shape[-2] // size[0]), -(-columns // size[1]))
        if scale == (*shape[:-2], *each):
            form = (math.prod(scale[:-1]), scale[-1])
            return "block", form, every_in(shape[-2], size[0]), every(size[1]), math.gcd(size[1], columns)
        raise UnlikeLayout(f"a scale of shape {scale} for a weight of shape {shape} in blocks of {size}")
    if scale in (shape[:-1], (*shape[:-1], 1)):
        return "channel", (rows, 1), every(1), every(1), columns
    if scale[:-1] == shape[:-1] and columns % scale[-1] == 0:
        length = columns // scale[-1]
        given = [n for n in weights_of(parts.config, "group_size") if n != -1]
        if given and length not in given:
            raise UnlikeLayout(f"groups of {length} inputs, not {str(given)[:40]}")
        return "group", (rows, scale[-1]), every(1), every(length), length
    raise UnlikeLayout(f"a scale of shape {scale} for a weight of shape {shape}")


def _block(parts: Parts) -> tuple[int, int] | None:
    """Rows and columns of a block as the configuration says. Raises UnlikeLayout for what is no such thing."""
    found = [parts.config["weight_block_size"]] if parts.config.get("weight_block_size") is not None else []
    found += weights_of(parts.config, "block_structure")
    for size in found:
        pair = tuple(size) if isinstance(size, list | tuple) else ()
        if len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
            raise UnlikeLayout(f"blocks of {str(size)[:40]}")
        return pair
    return None


ACTIVATIONS = {
    **dict.fromkeys(("input_scale", "input_scale_ub", "qscale_act", "output_scale"), "scale of what goes with"),
    **dict.fromkeys(("input_zero_point", "output_zero_point"), "zero point of what goes with"),
    "input_global_scale": "scale of what goes with",
}
_SCALED = {
    "scale": "scale",
    "scale_inv": "scale",
    "scale_2": "second scale",
    "zero_point": "zero point",
    "g_idx": "group of each input",
}
LAYOUTS = (
    Layout(
        "a weight with scales", "weight", "weight", ("int8", "uint8", *FLOAT8), ("weight_scale", "weight_scale_inv"),
        {f"weight_{end}": what for end, what in _SCALED.items()} | ACTIVATIONS, _plan,
    ),
    Layout(
        "a weight with scales", "weight", "weight", FLOAT8, OTHERS, dict.fromkeys(OTHERS, "scale") | ACTIVATIONS, _plan,
    ),
    Layout(
        "a tensor with scales", "", "", ("int8", "uint8", *FLOAT8), ("_scale", "_scale_inv"),
        {f"_{end}": what for end, what in _SCALED.items()}, _plan,
    ),
)  # fmt: skip
