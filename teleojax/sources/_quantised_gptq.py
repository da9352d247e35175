"""GPTQ and AWQ: `qweight`, `qzeros`, `scales`, told apart by which axis is packed.

GPTQ packs inputs, in checkpoint format "gptq" with zero points less one; AWQ's GEMM version packs outputs, interleaved.
Layouts: https://github.com/ModelCloud/GPTQModel (nn_modules/qlinear), https://github.com/casper-hansen/AutoAWQ.
"""

from __future__ import annotations

import numpy as np

from teleojax.sources._dequantised import Grid, Index, as_float, every, listed, spread
from teleojax.sources._packed import WORD, unpacked, unpacked_awq
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
)

BITS = (2, 3, 4, 8)
LESS_ONE = {"gptq": True, "gptq_v2": False}  # checkpoint format -> whether zero points are stored less one


def _plan(parts: Parts) -> Plan:
    method = parts.config.get("quant_method", "gptq")
    if method not in ("gptq", "awq"):
        raise UnlikeLayout(f"the quantisation method {str(method)[:40]!r} packs in ways of its own")
    packed, scales = parts.main.shape, parts.need("scales", SCALES).shape
    if len(packed) != 2 or len(scales) != 2:
        raise UnlikeLayout(f"qweight of shape {packed} and scales of shape {scales}")
    awq = packed[1] != scales[1]
    if parts.config.get("quant_method") == ("gptq" if awq else "awq"):
        raise UnlikeLayout(f"qweight of shape {packed} and scales of shape {scales}, which is not how {method} packs")
    return _awq(parts, *packed, *scales) if awq else _gptq(parts, *packed, *scales)


def _gptq(parts: Parts, words: int, out: int, groups: int, _: int) -> Plan:
    zeros = parts.need("qzeros", ("int32",)).shape
    bits = next((b for b in BITS if zeros == (groups, out * b // WORD) and out * b % WORD == 0), None)
    given = parts.config_number("bits", "w_bit")
    if bits is None or given not in (None, bits) or words * WORD % bits:
        raise UnlikeLayout(f"qzeros of shape {zeros} for {groups} groups of {out} outputs in {given or '?'} bits")
    inputs = words * WORD // bits
    length = group_length(inputs, groups, parts.config_number("group_size"))
    form = parts.config.get("checkpoint_format", "gptq")
    if not parts.config or not isinstance(form, str) or form not in LESS_ONE:
        told = f"the checkpoint format {str(form)[:40]!r} does not say" if parts.config else "no configuration says"
        raise UnlikeLayout(f"{told} whether zero points are stored less one")
    more = np.uint8(LESS_ONE[form])
    if "g_idx" in parts.beside:
        parts.need("g_idx", ("int32", "int64"), (inputs,))

    def grid(arrays: Arrays) -> Grid:
        codes, scales, qzeros = arrays[MAIN], arrays["scales"], arrays["qzeros"]
        group, shared = _order(arrays.get("g_idx"), inputs, groups, length)

        def code(rows: slice, columns: slice) -> np.ndarray:
            zero = (unpacked(qzeros.T, bits, rows.start, rows.stop) + more) & np.uint8(2**bits - 1)
            found = unpacked(codes[:, rows], bits, columns.start, columns.stop).T
            return found.astype(np.int16) - zero[:, group(columns)]

        return Grid(out, inputs, code, as_float(spread(scales.T, every(1), group)), shared=shared)

    return Plan((out, inputs), f"gptq-int{bits}", grid)


def _order(g_idx: np.ndarray | None, inputs: int, groups: int, length: int) -> tuple[Index, int]:
    """The group of each input, and how many inputs one after another share one. All zeros stand for the usual order."""
    usual = np.arange(inputs) // length
    if g_idx is None or not g_idx.any() or np.array_equal(g_idx, usual):
        return every(length), length if inputs % length == 0 else 1
    return listed(in_range(g_idx, groups)), 1


def _awq(parts: Parts, inputs: int, words: int, groups: int, out: int) -> Plan:
    version = parts.config.get("version", "gemm")
    if str(version).lower() != "gemm":
        raise UnlikeLayout(f"AWQ in the version {str(version)[:40]!r}, not 'gemm'")
    if parts.config_number("bits", "w_bit") not in (None, 4) or words * 8 != out:
        raise UnlikeLayout(f"qweight of shape {(inputs, words)} for {out} outputs of 4 bits")
    parts.need("qzeros", ("int32",), (groups, words))
    length = group_length(inputs, groups, parts.config_number("group_size", "q_group_size"))

    def grid(arrays: Arrays) -> Grid:
        codes, group = arrays[MAIN], every(length)

        def code(rows: slice, columns: slice) -> np.ndarray:
            zero = unpacked_awq(arrays["qzeros"], rows.start, rows.stop)
            found = unpacked_awq(codes[columns], rows.start, rows.stop).astype(np.int16)
            return (found - zero[group(columns)]).T

        scale = as_float(spread(arrays["scales"].T, every(1), group))
        return Grid(out, inputs, code, scale, shared=length if inputs % length == 0 else 1)

    return Plan((out, inputs), "awq-int4", grid)


LAYOUTS = (
    Layout(
        "GPTQ or AWQ", "qweight", "weight", ("int32",), (),
        {"qzeros": "zero point", "scales": "scale", "g_idx": "group of each input"}, _plan,
    ),
)  # fmt: skip
