"""Four-bit floats (e2m1) with a scale for 16 or 32 of them: MXFP4, with powers of two, and NVFP4, with a second scale.

Layouts: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf; gpt-oss in Hugging Face
transformers (integrations/mxfp4.py); compressed-tensors (nvfp4-pack-quantized); NVIDIA TensorRT Model Optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from teleojax.sources._dequantised import Grid, Levels, OfTile, every, spread
from teleojax.sources._packed import nibbles
from teleojax.sources._quantised_plan import MAIN, Arrays, Layout, Parts, Plan, UnlikeLayout

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
LEVELS = Levels.of(np.concatenate([E2M1, -E2M1]))
MX_GROUP, NV_GROUP = 32, 16
SHARED = ("weight_global_scale", "weight_scale_2", "_scale_2")  # the second scale; by the first of them one divides


def plan_fp4(parts: Parts, scale: str) -> Plan:
    """Bytes of two values each, the low one first, with their scales under the key `scale`."""
    shape = (*parts.main.shape[:-1], 2 * parts.main.shape[-1])
    rows, columns = math.prod(shape[:-1]), shape[-1]
    if "weight_zero_point" in parts.beside:
        raise UnlikeLayout("zero points of four-bit floats")
    if parts.beside[scale].dtype == "uint8":
        parts.need(scale, ("uint8",), (*shape[:-1], columns // MX_GROUP))
        return Plan(shape, "mxfp4", _grid(scale, rows, columns, MX_GROUP, _powers))
    parts.need(scale, ("float8_e4m3fn",), (*shape[:-1], columns // NV_GROUP))
    second = next((k for k in SHARED if k in parts.beside), None)
    if second is None:
        raise UnlikeLayout("four-bit floats without their second scale")
    parts.need(second, ("float32",), (), (1,))

    def scales(arrays: Arrays) -> Callable[[np.ndarray], np.ndarray]:
        factor = np.float32(arrays[second].reshape(-1)[0])
        divides = second == SHARED[0]
        return lambda each: each.astype(np.float32) / factor if divides else each.astype(np.float32) * factor

    return Plan(shape, "nvfp4", _grid(scale, rows, columns, NV_GROUP, scales))


def _grid(
    scale: str, rows: int, columns: int, group: int, scales: Callable[[Arrays], Callable[[np.ndarray], np.ndarray]]
) -> Callable[[Arrays], Grid]:
    if columns % group:
        raise UnlikeLayout(f"{columns} columns in groups of {group}")

    def grid(arrays: Arrays) -> Grid:
        packed, number = arrays[MAIN].reshape(rows, -1), scales(arrays)
        stored: OfTile = spread(arrays[scale].reshape(rows, -1), every(1), every(group))
        return Grid(
            rows, columns, lambda r, c: nibbles(packed[r], c.start, c.stop), lambda r, c: number(stored(r, c)), LEVELS
        )

    return grid


def _powers(_: Arrays) -> Callable[[np.ndarray], np.ndarray]:
    return powers_of_two


def powers_of_two(exponents: np.ndarray) -> np.ndarray:
    """Bytes of type e8m0 as float32; 255 is NaN."""
    found = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
    return np.where(exponents == 255, np.float32(np.nan), found)


def _plan_blocks(parts: Parts) -> Plan:
    """gpt-oss: (..., out, groups, 16) bytes and (..., out, groups) scales; values are (..., out, in)."""
    shape = parts.main.shape
    if len(shape) < 3 or 2 * shape[-1] != MX_GROUP:
        raise UnlikeLayout(f"blocks of shape {shape}, not (..., {MX_GROUP // 2})")
    parts.need("_scales", ("uint8",), shape[:-1])
    rows, columns = math.prod(shape[:-2]), shape[-2] * MX_GROUP
    grid = _grid("_scales", rows, columns, MX_GROUP, _powers)
    return Plan((*shape[:-2], columns), "mxfp4", grid)


LAYOUTS = (Layout("MXFP4", "_blocks", "", ("uint8",), ("_scales",), {"_scales": "scale"}, _plan_blocks),)
