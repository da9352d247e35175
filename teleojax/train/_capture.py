"""`capture_activations`: call a model as it is, and have the statistics of what its modules return."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from teleojax._errors import UsageError
from teleojax.train._accumulator import Accumulator
from teleojax.train._hooks import flax_nnx, is_equinox, is_nnx, linen_tagged, tag_equinox, tag_nnx
from teleojax.train._replay import replay, tags_in


def capture_activations(
    fn: Callable[..., Any], *args: Any, into: Accumulator | None = None, include: str | None = None, **kwargs: Any
) -> tuple[Any, Accumulator]:
    """(fn(*args, **kwargs), accumulator): the call, and the statistics of the activations that it made.

    Observed is the output of every module that is called: of Equinox and Flax NNX modules that `fn` is, or that are
    among the arguments, and of any Linen module; and whatever `tag_activation` names. Names are paths: "layers/0" of an
    Equinox MLP, "encoder/Dense_0" of a Linen module, the class's name for the model itself; where several models are
    among the arguments the number of the argument comes first. Of tuples and dicts each array has a name of its own. A
    module called many times, under scan say, has all its outputs under one name. The model's code is not touched.

    Args:
        fn: a model, or a function that calls models.
        into: accumulator to go on with; names that it does not have are added, with its options. Else a new one.
        include: regular expression; only names in which it is found are observed.

    One example each, all inside a jitted step:

        outputs, acc = capture_activations(model.apply, variables, x, into=acc)            # Flax Linen
        outputs, acc = capture_activations(model, x, into=acc)                             # Flax NNX, under nnx.jit
        outputs, acc = capture_activations(eqx.filter_vmap(model), xs, into=acc)           # Equinox

    A model has to be seen to be tagged: give it as `fn` or as an argument, not inside a function of your own or
    `jax.vmap(model)`. With gradients, inside the loss:

        def loss(model, x, y, acc):
            outputs, acc = capture_activations(lambda m, x: jax.vmap(m)(x), model, x, into=acc)
            return jnp.mean((outputs - y) ** 2), acc

        (value, acc), grads = eqx.filter_value_and_grad(loss, has_aux=True)(model, x, y, acc)

    Boundaries. `fn` is traced and run with the accumulator threaded through scan, while, cond, remat and inner jit, so
    that values inside them are counted, each once however often remat computes it. An array under vmap is counted
    whole. Inside custom_vjp, custom_jvp and shard_map nothing can be added: their outputs are counted and a warning
    names what was passed over; under shard_map use `Accumulator.observe` and `across`. Under vmap of
    `capture_activations` itself every lane has its accumulator: `collapse()`. Functions that carry a jit of their own
    and were traced before capturing come from JAX's cache without names, unless they take the model as an argument.
    Without jit around it the call is traced anew every time.

    Raises UsageError for a pattern that is none, and what `Accumulator.observe` raises.
    """
    chosen = _pattern(include)
    acc = Accumulator.create() if into is None else into
    call = _Call((fn, list(args), kwargs))
    leaves, run = call.split()
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(leaves)
    names = tags_in(closed.jaxpr, chosen)
    if not names:
        raise UsageError(
            "capture_activations",
            found="no activation" if chosen is None else f"no activation with {include!r} in its name",
            needed="one at least",
            remedy="Give the model as fn or as an argument, or name values with tag_activation.",
        )
    acc = acc.prepared(names)
    mine, outputs = replay(closed.jaxpr, closed.consts, leaves, acc.with_layers({n: acc.layers[n] for n in names}))
    arrays, state = jax.tree.unflatten(jax.tree.structure(shapes), outputs)
    call.give_back(state)
    return call.with_static(arrays), acc.with_layers({**acc.layers, **mine.layers})


class _Call:
    """One call of a function: its arrays apart from all else, its models tagged inside the trace."""

    def __init__(self, everything: Any) -> None:
        found = [x for x in jax.tree.leaves(everything, is_leaf=_is_model) if _is_model(x)]
        self._everything = everything
        self._models = tuple(x for x in found if is_nnx(x))
        self._several = len(found) > 1
        self._structure: Any = None
        self._static: list[Any] = []

    def split(self) -> tuple[list[Any], Callable[[list[Any]], Any]]:
        """The arrays, and the call as a function of them."""
        nnx: Any = flax_nnx()
        graph, state = nnx.split(self._models) if self._models else (None, None)
        # NNX models go in as their state: what the call changes in them comes out as state too
        rest = jax.tree.map(lambda x: None if is_nnx(x) else x, self._everything, is_leaf=_is_model)
        leaves, structure = jax.tree.flatten((rest, state))
        dynamic = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]

        def run(arrays: list[Any]) -> Any:
            full = list(leaves)
            for i, array in zip(dynamic, arrays, strict=True):
                full[i] = array
            rest, state = jax.tree.unflatten(structure, full)
            models = nnx.merge(graph, state) if self._models else ()
            fn, args, kwargs = self._tagged(rest, models)
            with linen_tagged():
                outputs = fn(*args, **kwargs)
            after = nnx.split(models)[1] if self._models else None
            flat, self._structure = jax.tree.flatten(outputs)
            self._static = [None if _is_array(x) else (x,) for x in flat]
            return [x for x in flat if _is_array(x)], after

        return [leaves[i] for i in dynamic], run

    def _tagged(self, rest: Any, models: Sequence[Any]) -> Any:
        """(fn, args, kwargs) with tagging models in the places of the models."""
        fn, args, kwargs = rest
        original = self._everything
        waiting = iter(models)

        def one(place: str, mine: Any, was: Any) -> Any:
            def tag(path: Any, old: Any, new: Any) -> Any:
                inside = "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
                name = "/".join(p for p in (place, inside) if p) if self._several else ""
                if is_nnx(old):
                    model = next(waiting)
                    tag_nnx(model, name)
                    return model
                return tag_equinox(new, name) if is_equinox(new) else new

            return jax.tree_util.tree_map_with_path(tag, was, mine, is_leaf=lambda x: x is None or _is_model(x))

        return (
            one("fn", fn, original[0]),
            [one(str(i), a, b) for i, (a, b) in enumerate(zip(args, original[1], strict=True))],
            {k: one(k, v, original[2][k]) for k, v in kwargs.items()},
        )

    def give_back(self, state: Any) -> None:
        """Put what the call changed in NNX models into the caller's."""
        if self._models:
            nnx: Any = flax_nnx()
            nnx.update(self._models, state)

    def with_static(self, arrays: list[Any]) -> Any:
        """The outputs, arrays and all else, in their structure."""
        waiting = iter(arrays)
        return jax.tree.unflatten(self._structure, [next(waiting) if s is None else s[0] for s in self._static])


def _is_model(x: Any) -> bool:
    return is_equinox(x) or is_nnx(x)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _pattern(include: str | None) -> re.Pattern[str] | None:
    if include is None:
        return None
    try:
        return re.compile(include)
    except re.error as e:
        raise UsageError(
            "include",
            found=f"{include!r} ({e})",
            needed="a Python regular expression",
            remedy="Correct the pattern.",
        ) from e
