"""Reference quantisers: each layout written from its published description, with the values that it stands for.

Bits are packed one by one and levels found by search, so that nothing here shares a way with what is tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]

NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32,
)  # fmt: skip
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / np.float32(12)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True)
class Written:
    """Tensors of a file, the configuration beside it, and what is to be read: values and how they are stored."""

    tensors: Tensors
    values: np.ndarray
    stored_as: str
    config: dict[str, Any] = field(default_factory=dict)
    name: str = "a.weight"

    def save(self, folder: Path) -> Path:
        """The file, and beside it the configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        contiguous = {name: np.asarray(array, order="C") for name, array in self.tensors.items()}
        save_file(contiguous, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder


def words(codes: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Unsigned integers as int32 words along an axis, lowest bit first."""
    rows = np.moveaxis(codes, axis, -1).astype(np.int64)
    single = (rows[..., None] >> np.arange(bits)) & 1
    flat = single.reshape(*rows.shape[:-1], -1)
    flat = np.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, -flat.shape[-1] % 32)])
    packed = np.packbits(flat.astype(np.uint8), axis=-1, bitorder="little").view("<i4")
    return np.ascontiguousarray(np.moveaxis(packed, -1, axis))


def pairs(codes: np.ndarray, *, high_first: bool = False) -> np.ndarray:
    """Unsigned integers of four bits as bytes along the last axis."""
    a, b = codes[..., ::2].astype(np.uint8), codes[..., 1::2].astype(np.uint8)
    return a * 16 + b if high_first else b * 16 + a


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The code of the level next to each value."""
    order = np.argsort(levels, kind="stable")
    ends = (levels[order][1:].astype(np.float64) + levels[order][:-1]) / 2
    return order[np.searchsorted(ends, x)].astype(np.uint8)


def grouped(w: np.ndarray, size: int) -> np.ndarray:
    return w.reshape(len(w), -1, size)


def uniform(
    w: np.ndarray, bits: int, group: int, *, symmetric: bool, dtype: Any = np.float16, order: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes (out, in), zero points and scales (out, groups), values; `order`: the columns in order of their groups."""
    order = np.arange(w.shape[1]) if order is None else order
    parts, most = grouped(w[:, order], group).astype(np.float64), 2**bits - 1
    if symmetric:
        scale = (np.abs(parts).max(axis=2) / (most / 2)).astype(dtype)
        zero = np.full(scale.shape, 2 ** (bits - 1))
    else:
        low, high = np.minimum(parts.min(axis=2), 0), np.maximum(parts.max(axis=2), 0)
        scale = ((high - low) / most).astype(dtype)
        zero = np.clip(np.rint(-low / scale.astype(np.float64)), 0, most).astype(np.int64)
    code = np.clip(np.rint(parts / scale.astype(np.float64)[..., None]) + zero[..., None], 0, most).astype(np.int64)
    values = (code - zero[..., None]) * scale.astype(np.float64)[..., None]
    back = np.argsort(order)
    return (
        code.reshape(w.shape)[:, back], zero, scale, values.reshape(w.shape)[:, back].astype(np.float32),
    )  # fmt: skip


def gptq(
    bits: int = 4, group: int = 128, *, symmetric: bool = True, shuffled: bool = False, form: str = "gptq"
) -> Callable[[np.ndarray], Written]:
    def write(w: np.ndarray) -> Written:
        columns = w.shape[1]
        order = np.random.default_rng(5).permutation(columns) if shuffled else np.arange(columns)
        code, zero, scale, values = uniform(w, bits, group, symmetric=symmetric, order=order)
        g_idx = np.empty(columns, np.int32)
        g_idx[order] = np.arange(columns) // group
        stored = (zero - 1) % 2**bits if form == "gptq" else zero
        tensors = {
            "a.qweight": words(code.T, bits, 0), "a.qzeros": words(stored.T, bits, 1),
            "a.scales": np.ascontiguousarray(scale.T), "a.g_idx": g_idx,
        }  # fmt: skip
        if not shuffled and not symmetric:
            del tensors["a.g_idx"]
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": form}
        return Written(tensors, values, f"gptq-int{bits}", {"quantization_config": config})

    return write


def awq(w: np.ndarray) -> Written:
    code, zero, scale, values = uniform(w, 4, 128, symmetric=False)

    def pack(columns: np.ndarray) -> np.ndarray:
        out = np.zeros((len(columns), columns.shape[1] // 8), np.int64)
        for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            out |= columns[:, column::8] << (4 * place)
        return out.astype(np.uint32).view(np.int32)

    tensors = {"a.qweight": pack(code.T), "a.qzeros": pack(zero.T), "a.scales": np.ascontiguousarray(scale.T)}
    config = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
    return Written(tensors, values, "awq-int4", {"quantization_config": config})


def bitsandbytes(kind: str, *, nested: bool = False) -> Callable[[np.ndarray], Written]:
    def write(w: np.ndarray) -> Written:
        table, block = (NF4 if kind == "nf4" else FP4), 64
        flat = np.pad(w.reshape(-1), (0, -w.size % block)).reshape(-1, block)
        absmax = np.abs(flat).max(axis=1).astype(np.float32)
        state: dict[str, Any] = {
            "quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(w.shape),
        }  # fmt: skip
        tensors: Tensors = {"a.weight.quant_map": table}
        if nested:
            levels, offset = np.linspace(-1, 1, 256, dtype=np.float32), np.float32(absmax.mean())
            outer = np.pad(absmax - offset, (0, -len(absmax) % 256)).reshape(-1, 256)
            most = np.abs(outer).max(axis=1)
            codes = nearest(outer / most[:, None], levels)
            tensors |= {"a.weight.nested_absmax": most, "a.weight.nested_quant_map": levels}
            state |= {"nested_blocksize": 256, "nested_offset": float(offset), "nested_dtype": "float32"}
            tensors["a.weight.absmax"] = codes.reshape(-1)[: len(absmax)]
            absmax = (levels[codes] * most[:, None]).reshape(-1)[: len(absmax)] + offset
        else:
            tensors["a.weight.absmax"] = absmax
        code = nearest(flat / absmax[:, None], table)
        values = (table[code] * absmax[:, None]).reshape(-1)[: w.size].reshape(w.shape)
        tensors["a.weight"] = pairs(code.reshape(-1)[: w.size + w.size % 2], high_first=True)[:, None]
        raw = json.dumps(state).encode()
        tensors[f"a.weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(raw, np.uint8)
        return Written(tensors, values, kind)

    return write


def llm_int8(w: np.ndarray) -> Written:
    most = np.abs(w).max(axis=1).astype(np.float32)
    code = np.rint(w / most[:, None] * 127).astype(np.int8)
    values = code * (most * np.float32(1 / 127))[:, None]
    tensors = {"a.weight": code, "a.SCB": most, "a.weight_format": np.zeros((), np.uint8)}
    return Written(tensors, values, "int8-channel")


def compressed(
    bits: int, group: int | None, *, symmetric: bool = True, shuffled: bool = False
) -> Callable[[np.ndarray], Written]:
    """pack-quantized."""

    def write(w: np.ndarray) -> Written:
        columns = w.shape[1]
        order = np.random.default_rng(6).permutation(columns) if shuffled else np.arange(columns)
        code, zero, scale, values = uniform(
            w, bits, group or columns, symmetric=symmetric, dtype=ml_dtypes.bfloat16, order=order
        )
        tensors = {
            "a.weight_packed": words(code, bits, 1), "a.weight_scale": scale, "a.weight_shape": np.array(w.shape),
        }  # fmt: skip
        if not symmetric:
            tensors["a.weight_zero_point"] = words(zero, bits, 0)
        if shuffled:
            g_idx = np.empty(columns, np.int32)
            g_idx[order] = np.arange(columns) // (group or columns)
            tensors["a.weight_g_idx"] = g_idx
        weights = {"num_bits": bits, "type": "int", "group_size": group, "strategy": "group" if group else "channel"}
        config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
        kind = f"int{bits}-{'group' if group else 'channel'}"
        return Written(tensors, values, kind, {"quantization_config": config})

    return write


def int8(how: str, *, symmetric: bool = True) -> Callable[[np.ndarray], Written]:
    """int-quantized, with scales of the tensor, of channels or of groups of 128."""

    def write(w: np.ndarray) -> Written:
        rows = w.reshape(1, -1) if how == "tensor" else w
        group = 128 if how == "group" else rows.shape[1]
        code, zero, scale, values = uniform(rows, 8, group, symmetric=symmetric, dtype=np.float32)
        shape = (1,) if how == "tensor" else scale.shape
        tensors = {"a.weight": (code - 128).astype(np.int8).reshape(w.shape), "a.weight_scale": scale.reshape(shape)}
        if not symmetric:
            tensors["a.weight_zero_point"] = (zero - 128).astype(np.int8).reshape(shape)
        return Written(tensors, values.reshape(w.shape), f"int8-{how}")

    return write


def float8(how: str, dtype: str = "float8_e4m3fn", scale_name: str | None = None) -> Callable[[np.ndarray], Written]:
    def write(w: np.ndarray) -> Written:
        kind, most = np.dtype(getattr(ml_dtypes, dtype)), float(ml_dtypes.finfo(dtype).max)
        if how == "block":
            size = 128
            shape = tuple(-(-n // size) for n in w.shape)
            largest = np.array(
                [
                    [np.abs(w[i : i + size, j : j + size]).max() for j in range(0, w.shape[1], size)]
                    for i in range(0, w.shape[0], size)
                ]
            )
            scale = (largest / most).astype(np.float32)
            each = np.repeat(np.repeat(scale, size, axis=0), size, axis=1)[: w.shape[0], : w.shape[1]]
        else:
            largest = np.abs(w).max(axis=1, keepdims=True) if how == "channel" else np.abs(w).max()
            each = np.asarray(largest / most, np.float32)
            scale, shape = each, each.shape
        code = np.clip(w / each, -most, most).astype(kind)
        values = code.astype(np.float32) * each
        name = scale_name or ("weight_scale_inv" if how == "block" else "weight_scale")
        config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
        return Written(
            {"a.weight": code, f"a.{name}": scale.reshape(shape)}, values, f"{dtype}-{how}",
            config if how == "block" else {},
        )  # fmt: skip

    return write


def mxfp4(w: np.ndarray) -> Written:
    """As gpt-oss stores experts: here one."""
    parts = grouped(w, 32)
    power = np.floor(np.log2(np.abs(parts).max(axis=2))).astype(np.int64) - 2
    code = nearest(np.clip(parts / np.exp2(power)[..., None], -6, 6), E2M1)
    values = (E2M1[code] * np.exp2(power)[..., None]).astype(np.float32).reshape(1, *w.shape)
    tensors = {"a.down_proj_blocks": pairs(code)[None], "a.down_proj_scales": (power + 127).astype(np.uint8)[None]}
    return Written(tensors, values, "mxfp4", name="a.down_proj")


def nvfp4(*, multiplies: bool) -> Callable[[np.ndarray], Written]:
    """With a second scale that multiplies (Model Optimizer) or divides (compressed-tensors)."""

    def write(w: np.ndarray) -> Written:
        parts = grouped(w, 16)
        shared = np.float32(np.abs(w).max() / (6 * 448))
        second = shared if multiplies else np.float32(1 / shared)
        scale = (np.abs(parts).max(axis=2) / 6 / shared).astype(ml_dtypes.float8_e4m3fn)
        whole = scale.astype(np.float32) * second if multiplies else scale.astype(np.float32) / second
        with np.errstate(divide="ignore", invalid="ignore"):
            code = nearest(np.nan_to_num(np.clip(parts / whole[..., None], -6, 6)), E2M1)
        values = (E2M1[code] * whole[..., None]).astype(np.float32).reshape(w.shape)
        names = ("weight", "weight_scale_2") if multiplies else ("weight_packed", "weight_global_scale")
        tensors = {
            f"a.{names[0]}": pairs(code).reshape(len(w), -1), "a.weight_scale": scale,
            f"a.{names[1]}": second if multiplies else second.reshape(1),
        }  # fmt: skip
        return Written({k: np.asarray(v) for k, v in tensors.items()}, values, "nvfp4")

    return write


QUANTISERS: dict[str, Callable[[np.ndarray], Written]] = {
    "gptq 4": gptq(),
    "gptq 2": gptq(2, 32),
    "gptq 3": gptq(3),
    "gptq 8": gptq(8),
    "gptq asymmetric": gptq(symmetric=False),
    "gptq shuffled": gptq(shuffled=True, symmetric=False),
    "gptq v2": gptq(form="gptq_v2", symmetric=False),
    "awq": awq,
    "nf4": bitsandbytes("nf4"),
    "nf4 nested": bitsandbytes("nf4", nested=True),
    "fp4": bitsandbytes("fp4"),
    "llm.int8": llm_int8,
    "packed 4": compressed(4, 128),
    "packed 8": compressed(8, None),
    "packed asymmetric": compressed(4, 32, symmetric=False),
    "packed shuffled": compressed(4, 128, shuffled=True),
    "int8 tensor": int8("tensor"),
    "int8 channel": int8("channel"),
    "int8 group": int8("group"),
    "int8 asymmetric": int8("channel", symmetric=False),
    "fp8 tensor": float8("tensor"),
    "fp8 channel": float8("channel"),
    "fp8 block": float8("block"),
    "fp8 e5m2": float8("tensor", "float8_e5m2"),
    "fp8 scale": float8("tensor", scale_name="scale_weight"),
    "mxfp4": mxfp4,
    "nvfp4": nvfp4(multiplies=False),
    "nvfp4 modelopt": nvfp4(multiplies=True),
}
