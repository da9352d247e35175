"""Accumulator: statistics of activations by name, a pytree that jit, scan, vmap, remat and shard_map carry along."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from teleojax._errors import UsageError
from teleojax.stats import AxisFit, TensorStats
from teleojax.train._layer import VIEWS, Layer
from teleojax.train._sharding import automatic


class Accumulator(eqx.Module):
    """Log-moments and exact counts of activations, by name: a pure value that `observe` returns anew.

    Memory does not grow with arrays observed: 512 KiB a name for the histogram (its cells are the leading 16 bits of a
    value, so bfloat16 and float16 are held without loss), some 100 bytes for the moments, and as much again for each
    neuron with `per_neuron`. Counts are exact to 2⁶⁴; moments are power sums in pairs of float32 about a pivot.
    Zeros, infinities and NaN are counted apart and enter no moment. float64 is counted as the float32 next to it.

    Known names make the structure static, as `lax.scan` wants it; others are added at the first `observe`:

        acc = Accumulator.create({"mlp/0": jnp.float32})

        def step(acc, batch):
            h = jax.nn.relu(batch @ w)
            return acc.observe("mlp/0", h), None

        acc, _ = jax.lax.scan(step, acc, batches)
        tj.fit(acc.statistics())

    Under jit with sharded arrays `observe` sees the whole array and GSPMD does the rest. Under shard_map each device
    sees its part: let every device accumulate its own and call `across(axis_name)` once, at the end. Under vmap every
    lane has an accumulator of its own: `collapse()` merges them.

    `every` = k counts the first of each k arrays of a name and passes over the others; under vmap that saves no time.
    Without `histogram` counting costs about a third less and memory next to nothing, and only closed forms can be
    fitted. Gradients do not flow through `observe`.
    """

    layers: dict[str, Layer] = eqx.field(default_factory=dict)
    histogram: bool = eqx.field(default=True, static=True)
    per_neuron: bool = eqx.field(default=False, static=True)
    every: int = eqx.field(default=1, static=True)

    @staticmethod
    def create(
        names: Mapping[str, Any] | None = None, *, histogram: bool = True, per_neuron: bool = False, every: int = 1
    ) -> Accumulator:
        """Of nothing yet. `names` maps names to dtypes, or to anything with a shape and a dtype, which `per_neuron`
        needs: one set of moments for each index of the last axis.

        Raises UsageError for a type that is not of floating point, and for `every` below 1.
        """
        if every < 1:
            raise UsageError("every", found=f"{every}", needed="1 or more", remedy="Use 1 to count every array.")
        like = names or {}
        layers = {k: Layer.empty(k, h, histogram=histogram, per_neuron=per_neuron) for k, h in like.items()}
        return Accumulator(layers, histogram, per_neuron, every)

    def prepared(self, names: Mapping[str, Any]) -> Accumulator:
        """With those names too, as in `create`; names that are there already keep what they hold."""
        more = Accumulator.create(
            {k: h for k, h in names.items() if k not in self.layers},
            histogram=self.histogram,
            per_neuron=self.per_neuron,
        )
        return self.with_layers({**self.layers, **more.layers})

    def observe(self, name: str, h: ArrayLike) -> Accumulator:
        """With the values of one array, of any shape; neurons along its last axis.

        Raises UsageError for an array of another type than the name has had, or with other neurons.
        """
        h = jnp.asarray(h)
        held = self.prepared({name: h}).layers
        layer = held[name]
        layer.check(name, h)
        if not h.size:
            layer = layer.passed_over()
        elif self.every == 1:
            layer = automatic(lambda h, layer: layer.add(h), h, layer)
        else:
            due = layer.seen % self.every == 0
            layer = automatic(
                lambda h, due, layer: lax.cond(due, lambda a: a.add(h), lambda a: a.passed_over(), layer), h, due, layer
            )
        return self.with_layers({**held, name: layer})

    def merge(self, other: Accumulator) -> Accumulator:
        """What both have seen; the names of either. Raises UsageError where a name has unlike types in the two."""
        layers = dict(self.layers)
        for name, layer in other.layers.items():
            mine = layers.get(name)
            if mine is not None and jax.tree.structure(mine) != jax.tree.structure(layer):
                raise UsageError(
                    name,
                    found=f"{layer.dtype} or other options in one accumulator",
                    needed=f"{mine.dtype} and the same options as in the other",
                    remedy="Create both in the same way.",
                )
            layers[name] = layer if mine is None else mine.merge(layer)
        return self.with_layers(layers)

    def collapse(self) -> Accumulator:
        """Accumulators stacked along a leading axis, as vmap and all_gather leave them, merged into one."""
        first, rest = (jax.tree.map(lambda a, s=s: a[s], self) for s in (0, slice(1, None)))
        return lax.scan(lambda a, b: (a.merge(b), None), first, rest)[0]

    def across(self, axis_name: str | tuple[str, ...]) -> Accumulator:
        """Within shard_map or vmap: what all devices, or lanes, of a named axis have seen; the same on each of them."""
        return lax.all_gather(self, axis_name).collapse()

    def statistics(self, *, view: str = "signed") -> dict[str, TensorStats]:
        """On the host, by name: what `tj.fit` and `tj.merge` take.

        `view` "signed" is of |h|; "rectified" of max(h, 0), negative values counted as zeros: exact for types of at
        most 16 bits and where nothing is negative, else with moments of the middles of cells 0.5–0.8% wide.
        Raises UsageError for another view, a rectified one without a histogram, and before `collapse`.
        """
        if view not in VIEWS:
            raise UsageError("view", found=repr(view), needed=" or ".join(VIEWS), remedy="Choose one of them.")
        if view == "rectified" and not self.histogram:
            remedy = "Create the accumulator with a histogram, or observe max(h, 0)."
            raise UsageError("view", found="no histogram", needed="one for the rectified view", remedy=remedy)
        for name, layer in self.layers.items():
            if layer.seen.ndim:
                found = f"{layer.seen.size} accumulators in a stack"
                raise UsageError(name, found=found, needed="one", remedy="Call collapse() first.")
        return {name: layer.on_host(view) for name, layer in jax.device_get(self).layers.items()}

    def neurons(self, name: str) -> AxisFit:
        """One lognormal per neuron of a name. Raises UsageError unless `per_neuron`; KeyError for an unknown name."""
        return self.layers[name].neurons()

    def read(self, *, view: str = "signed") -> dict[str, dict[str, float | int | None]]:
        """Plain numbers by name, for a logger; those that do not exist are None.

        η = μ/σ² − 1 and ζ = 1/(2σ²) are the utility parameters of neurons, as α and β are of connections (measure dx).
        """
        return {name: _numbers(stats) for name, stats in self.statistics(view=view).items()}

    def with_layers(self, layers: dict[str, Layer]) -> Accumulator:
        """With these layers in place of its own, and its options."""
        return Accumulator(layers, self.histogram, self.per_neuron, self.every)


def _numbers(stats: TensorStats) -> dict[str, float | int | None]:
    m = stats.moments
    spread = m.n > 0 and m.m2 > 0
    numbers: dict[str, float | int] = {
        "n": m.n,
        "n_zero": m.n_zero,
        "n_nonfinite": m.n_nonfinite,
        "n_negative": m.n_negative,
        "mu": m.mean if m.n else math.nan,
        "sigma": m.sigma,
        "eta": m.mean / m.sigma**2 - 1 if spread else math.nan,
        "zeta": 0.5 / m.sigma**2 if spread else math.nan,
        "skew": m.skew,
        "excess_kurtosis": m.excess_kurtosis,
        "min": m.min,
        "max": m.max if m.n else math.nan,
        "rms": m.rms,
    }
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()}
