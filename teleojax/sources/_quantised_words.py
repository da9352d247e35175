"""compressed-tensors: `weight_packed`, integers in 32-bit words along the inputs, or four-bit floats in bytes.

Layout: https://github.com/vllm-project/compressed-tensors (compressors: pack_quantized, nvfp4, mxfp4).
"""

from __future__ import annotations

import numpy as np

from teleojax.sources._dequantised import Grid, as_float, every, listed, spread
from teleojax.sources._packed import WORD, unpacked
from teleojax.sources._quantised_fp4 import plan_fp4
from teleojax.sources._quantised_plan import (
    MAIN,
    SCALES,
    Arrays,
    Layout,
    Parts,
    Plan,
    UnlikeLayout,
    group_length,
    in_range,
    weights_of,
)
from teleojax.sources._quantised_scaled import ACTIVATIONS

BITS = (2, 4, 8)
SHAPE, SCALE, ZERO, ORDER = "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx"


def _plan(parts: Parts) -> Plan:
    if len(parts.main.shape) != 2:
        raise UnlikeLayout(f"weight_packed of shape {parts.main.shape}")
    if SCALE not in parts.beside:
        raise UnlikeLayout("no weight_scale")
    if parts.main.dtype == "uint8":
        return plan_fp4(parts, SCALE)
    out, words = parts.main.shape
    parts.need(SHAPE, ("int64", "int32"), (2,))
    rows, columns = parts.small(SHAPE).tolist()
    widths = weights_of(parts.config, "num_bits")
    fitting = [b for b in BITS if words == -(-columns // (WORD // b)) and (not widths or b in widths)]
    if rows != out or columns < 1 or len(fitting) != 1:
        raise UnlikeLayout(f"weight_packed of shape {parts.main.shape} for a weight of shape {(rows, columns)}")
    bits = fitting[0]
    scale = parts.need(SCALE, SCALES).shape
    form = (1, 1) if scale in ((), (1,)) else scale if len(scale) == 2 and scale[0] in (1, out) else (0, 0)
    if not all(form):
        raise UnlikeLayout(f"a weight_scale of shape {scale} for a weight of shape {(rows, columns)}")
    given = [n for n in weights_of(parts.config, "group_size") if type(n) is int] if form[1] > 1 else []
    length = group_length(columns, form[1], given[0] if len(given) == 1 else None)
    if ZERO in parts.beside:
        packed_zeros = (-(-form[0] // (WORD // bits)), form[1])
        stored = parts.need(ZERO, ("int32", "int8"), packed_zeros, scale)
        if stored.shape != (packed_zeros if stored.dtype == "int32" else scale):
            raise UnlikeLayout(f"a weight_zero_point of type {stored.dtype} and shape {stored.shape}")
    if ORDER in parts.beside:
        parts.need(ORDER, ("int32", "int64"), (columns,))

    def grid(arrays: Arrays) -> Grid:
        ordered = ORDER in arrays and (arrays[ORDER] >= 0).all()  # -1: in order
        group = listed(in_range(arrays[ORDER], form[1])) if ordered else every(length)
        zeros = spread(_zeros(arrays, bits, form), every(1), group)

        def code(r: slice, c: slice) -> np.ndarray:
            return unpacked(arrays[MAIN][r].T, bits, c.start, c.stop).T.astype(np.int16) - zeros(r, c)

        scales = as_float(spread(arrays[SCALE].reshape(form), every(1), group))
        shared = 0 if form == (1, 1) else 1 if ordered or columns % length else length
        return Grid(out, columns, code, scales, shared=shared)

    how = "tensor" if form == (1, 1) else "channel" if form[1] == 1 else "group"
    return Plan((out, columns), f"int{bits}-{how}", grid)


def _zeros(arrays: Arrays, bits: int, form: tuple[int, int]) -> np.ndarray:
    """Zero points as they lie among the codes, which are stored without a sign: int16."""
    half = 1 << (bits - 1)
    if ZERO not in arrays:
        return np.full((1, 1), half, np.int16)
    if arrays[ZERO].dtype == np.int32:
        return unpacked(arrays[ZERO], bits, 0, form[0]).astype(np.int16)
    return arrays[ZERO].reshape(form).astype(np.int16) + np.int16(half)


LAYOUTS = (
    Layout(
        "compressed-tensors", "weight_packed", "weight", ("int32", "uint8"), (),
        {
            SCALE: "scale", ZERO: "zero point", SHAPE: "shape", ORDER: "group of each input",
            "weight_global_scale": "second scale", **ACTIVATIONS,
        },
        _plan,
    ),
)  # fmt: skip
