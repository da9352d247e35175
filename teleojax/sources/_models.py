"""Live models of libraries that JAX knows nothing of -> trees of their parameters, named as the library names them."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

from teleojax.sources._torch_tensor import Memory, is_tensor, read_tensor

LIBRARIES = ("torch", "keras", "tf_keras")


def is_foreign(leaf: Any) -> bool:
    """Whether it is a PyTorch module or tensor, or a Keras model or layer. No library is imported to find out."""
    return is_tensor(leaf) or _library(leaf) is not None


def unfolded(tree: Any) -> Any:
    """The tree with each such model replaced by a tree of its parameters, and each tensor by what it is read as.

    A PyTorch module's parameters are those of its `state_dict()`, persistent buffers among them; a Keras model's or
    layer's are its `weights` by `path`. A tree without any, or that JAX cannot flatten, comes back as it is.
    """
    return _unfolded(tree, {}) if any(library in sys.modules for library in LIBRARIES) else tree


def _unfolded(tree: Any, seen: dict[Memory, Any]) -> Any:
    from jax.tree_util import tree_flatten, tree_unflatten

    try:
        leaves, shape = tree_flatten(tree, is_leaf=is_foreign)
    except (TypeError, ValueError):
        return tree
    if not any(map(is_foreign, leaves)):
        return tree
    return tree_unflatten(shape, [_read(leaf, seen) for leaf in leaves])


def _read(leaf: Any, seen: dict[Memory, Any]) -> Any:
    if is_tensor(leaf):
        return read_tensor(leaf, seen)
    library = _library(leaf)
    if library is None:
        return leaf
    return _unfolded(leaf.state_dict() if library == "torch" else _keras_weights(leaf), seen)


def _library(leaf: Any) -> str | None:
    """Where the leaf is a model, its library. A Keras layer may be a PyTorch module too."""
    found = {base.__module__.partition(".")[0] for base in type(leaf).__mro__ if base.__name__ == "Layer"}
    found |= {"torch" for base in type(leaf).__mro__ if base.__module__ == "torch.nn.modules.module"}
    return next((library for library in ("keras", "tf_keras", "torch") if library in found), None)


def _keras_weights(layer: Any) -> Any:
    from teleojax.sources._pytree import number_repeats

    names = number_repeats(getattr(weight, "path", weight.name) for weight in layer.weights)
    return OrderedDict((name, _keras_value(weight)) for name, weight in zip(names, layer.weights, strict=True))


def _keras_value(weight: Any) -> Any:
    """The array or tensor of the backend itself; of TensorFlow's the host's copy."""
    value = getattr(weight, "value", weight)
    return weight.numpy() if type(value).__module__.startswith("tensorflow") else value
