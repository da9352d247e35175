"""A named activation: an identity that every JAX transformation keeps, for `capture_activations` to find."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike

tag_p = Primitive("teleojax_activation")
tag_p.def_impl(lambda h, *, name: h)  # noqa: ARG005
tag_p.def_abstract_eval(lambda h, *, name: h)  # noqa: ARG005
mlir.register_lowering(tag_p, lambda ctx, h, *, name: [h])  # noqa: ARG005


def _jvp(primals: tuple[Any], tangents: tuple[Any], *, name: str) -> tuple[Any, Any]:
    return tag_p.bind(*primals, name=name), tangents[0]


def _batch(args: tuple[Any], dims: tuple[int], *, name: str) -> tuple[Any, int]:
    return tag_p.bind(jnp.moveaxis(args[0], dims[0], 0), name=name), 0  # neurons stay last


ad.primitive_jvps[tag_p] = _jvp
batching.primitive_batchers[tag_p] = _batch


def tag_activation(name: str, h: ArrayLike) -> Array:
    """The same array; `capture_activations` around the call counts its values under `name`, else nothing happens.

    For models that are plain functions, and for values that no module returns. Goes through jit, grad, vmap, scan and
    remat; a value under vmap is counted whole, all lanes. What is not of a floating-point type is returned as it is.
    """
    h = jnp.asarray(h)
    return tag_p.bind(h, name=name) if jnp.issubdtype(h.dtype, jnp.floating) else h


def tag_outputs(name: str, outputs: Any) -> Any:
    """A module's output with its arrays tagged: of several in tuples, lists and dicts each under a name of its own."""
    if isinstance(outputs, jax.Array):
        return tag_activation(name, outputs)
    if type(outputs) in (tuple, list):
        return type(outputs)(tag_outputs(f"{name}/{i}", o) for i, o in enumerate(outputs))
    if type(outputs) is dict:
        return {k: tag_outputs(f"{name}/{k}", o) for k, o in outputs.items()}
    return outputs
