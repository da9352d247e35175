"""PyTorch tensors in memory as leaves of a tree: views of their memory, or what can be copied when its turn comes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from teleojax.sources._index import COMPLEX, numpy_dtype, skip_reason

Memory = tuple[str, int, int, int]  # device, first byte, last value, number of values


@dataclass(frozen=True, slots=True)
class Unread:
    """A tensor that cannot be measured, and why."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Tied:
    """A further name of a leaf that was there before."""

    first: Any


class Elsewhere:
    """A tensor that neither the host nor JAX reads in place: `np.asarray` of it makes a copy on the host."""

    def __init__(self, tensor: Any, dtype: np.dtype) -> None:
        self._tensor, self.shape, self.dtype = tensor, tuple(tensor.shape), dtype
        self.size = tensor.numel()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return _viewed(self._tensor.cpu().resolve_neg().resolve_conj(), self.dtype)


def is_tensor(leaf: Any) -> bool:
    """Whether a leaf is a PyTorch tensor. PyTorch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "Tensor") and isinstance(leaf, torch.Tensor)


def read_tensor(tensor: Any, seen: dict[Memory, Any]) -> Any:
    """What stands for a tensor in a tree: an array that shares its memory, an Elsewhere, an Unread or a Tied.

    `seen` holds what stands for the tensors before it, by their memory, and takes this one's: a second name of the same
    values is tied. A tensor on a GPU that JAX has too becomes a JAX array there, without a copy.
    """
    reason = _unreadable(tensor)
    if reason is not None:
        return Unread((), str(tensor.dtype).removeprefix("torch."), 0, reason)
    t = tensor.detach()
    dtype, shape = str(t.dtype).removeprefix("torch."), tuple(t.shape)
    reason = (skip_reason(dtype, shape) if dtype not in COMPLEX else None) or _without_values(t)
    if reason is not None:
        return Unread(shape, dtype, t.numel() * t.element_size(), reason)
    memory = _memory(t)
    if memory in seen:
        return Tied(seen[memory])
    seen[memory] = _placed(t, numpy_dtype(dtype))
    return seen[memory]


def _placed(t: Any, dtype: np.dtype) -> Any:
    if t.device.type == "cpu" and not (t.is_neg() or t.is_conj()):
        return _viewed(t, dtype)
    shared = shared_with_jax(t) if t.device.type == "cuda" else None
    return Elsewhere(t, dtype) if shared is None else shared


def shared_with_jax(t: Any) -> Any:
    """A JAX array in the memory of a tensor, None where JAX lacks the device, the type or the layout."""
    import jax

    try:
        array = jax.dlpack.from_dlpack(t)
    except Exception:  # RuntimeError, TypeError, BufferError, NotImplementedError: as versions have it
        return None
    return array if array.dtype.name == str(t.dtype).removeprefix("torch.") else None


def _unreadable(t: Any) -> str | None:
    """Why not even shape and type of a tensor are of use; None if they are."""
    import torch  # pyright: ignore[reportMissingImports]

    if torch.nn.parameter.is_lazy(t):
        return "lazy parameter without values"
    plain = torch.Tensor.__torch_dispatch__  # pyright: ignore[reportAttributeAccessIssue]
    if type(t).__torch_dispatch__ is not plain:
        return f"a tensor of class {type(t).__name__}, which has no plain memory"
    if t.is_nested:
        return "nested"
    if t.layout != torch.strided:
        return f"sparse ({t.layout})".replace("torch.", "")
    return f"quantised {t.dtype}".replace("torch.", "") if t.is_quantized else None


def _without_values(t: Any) -> str | None:
    if t.device.type == "meta":
        return "meta tensor without values"
    repeats = any(n > 1 and stride == 0 for n, stride in zip(t.shape, t.stride(), strict=True))
    return "an expanded view, which repeats its values" if repeats else None


def _memory(t: Any) -> Memory:
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return str(t.device), t.data_ptr(), last, t.numel()


def _viewed(t: Any, dtype: np.dtype) -> np.ndarray:
    """The values of a tensor on the host, in place. NumPy knows some types only by the integers of their width."""
    import torch  # pyright: ignore[reportMissingImports]

    if dtype.isbuiltin == 1:
        return t.numpy()
    return t.view(torch.int16 if dtype.itemsize == 2 else torch.uint8).numpy().view(dtype)
