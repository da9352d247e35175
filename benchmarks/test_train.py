"""What watching costs: a training step of a small MLP alone, beside one that tracks or captures; ratios in one run.

The step is a forward and a backward pass and Adam. Aims: `track_log_moments(every=100)` at most 2% of it, capturing
every activation at most 15%. `share` in `extra_info` is the time of each contestant over that of the bare step, less 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Runner, Sizes

import teleojax as tj
from teleojax.bench import Contestant, Record

BARE = "bare step"
TRACK_STEPS = 100  # a run is as many steps, so that one update of the tracker is in it
CAPTURE_STEPS = 4


@dataclass(frozen=True)
class Net:
    """Parameters and a batch of an MLP of equal widths."""

    params: list[jax.Array]
    x: jax.Array
    y: jax.Array

    @staticmethod
    def make(width: int, batch: int, layers: int = 3) -> Net:
        """Drawn once, from a fixed key."""
        keys = jax.random.split(jax.random.key(0), layers + 2)
        init = tj.train.lognormal_lecun(sigma=1.0)
        params = [init(k, (width, width)) for k in keys[:layers]]
        return Net(params, jax.random.normal(keys[-2], (batch, width)), jax.random.normal(keys[-1], (batch, width)))


def forward(params: list[jax.Array], x: jax.Array) -> jax.Array:
    """The MLP, its activations named."""
    for i, w in enumerate(params):
        x = tj.train.tag_activation(f"layers/{i}", jax.nn.gelu(x @ w))
    return x


def steps_of(net: Net, optimiser: Any, n: int, acc: Any = None) -> Callable[[], float]:
    """n jitted steps, to which what they replace is given -> the sum of the first matrix after them."""

    def loss(params: Any, acc: Any) -> Any:
        if acc is None:
            return jnp.mean((forward(params, net.x) - net.y) ** 2), None
        out, acc = tj.train.capture_activations(forward, params, net.x, into=acc)
        return jnp.mean((out - net.y) ** 2), acc

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, state: Any, acc: Any) -> Any:
        grads, acc = jax.grad(loss, has_aux=True)(params, acc)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, acc

    def run() -> float:
        carry = jax.tree.map(jnp.copy, (net.params, optimiser.init(net.params), acc))
        for _ in range(n):
            carry = step(*carry)
        return float(jax.block_until_ready(carry)[0][0].sum())

    return run


def named(net: Net, **options: Any) -> Any:
    """An accumulator with the names of the MLP."""
    like = {f"layers/{i}": net.x for i in range(len(net.params))}
    return tj.train.Accumulator.create(like, **options)


def overheads(benchmark: Any) -> Callable[[list[Record]], list[Record]]:
    """Leave each contestant's time over the bare step's, less 1, in `extra_info`."""

    def finish(records: list[Record]) -> list[Record]:
        pace = {r.contestant: r.values_per_s for r in records if r.values_per_s}
        benchmark.extra_info["share"] = {name: round(pace[BARE] / v - 1, 4) for name, v in pace.items()}
        return records

    return finish


def contestants(runs: dict[str, Callable[[], float]], n_values: int) -> list[Contestant]:
    """All with the answer of the bare step: watching changes no parameter."""
    expected = np.float64(runs[BARE]())
    n_bytes = 4 * n_values
    return [Contestant(name, run, expected, n_values, n_bytes, rtol=1e-4) for name, run in runs.items()]


@pytest.mark.parametrize(("width", "batch"), [(256, 256), (512, 256), (512, 2048)])
def test_tracking(width: int, batch: int, race: Runner, sizes: Sizes, benchmark: Any) -> None:
    net = Net.make(width // (4 if sizes.quick else 1), batch // (4 if sizes.quick else 1))
    adam = optax.adam(1e-3)
    runs = {
        "teleojax, track every 100": steps_of(net, optax.chain(adam, tj.train.track_log_moments(100)), TRACK_STEPS),
        BARE: steps_of(net, adam, TRACK_STEPS),
    }
    n_values = TRACK_STEPS * sum(w.size for w in net.params)
    racers = contestants(runs, n_values)
    name = f"track an MLP {width} wide, {batch} rows"
    race(name, racers, dtype="float32", bound_by_memory=False, finish=overheads(benchmark))


@pytest.mark.parametrize("width", [512, 1024])
def test_capture(width: int, race: Runner, sizes: Sizes, benchmark: Any) -> None:
    net = Net.make(width // (8 if sizes.quick else 1), 2048 // (8 if sizes.quick else 1))
    adam = optax.adam(1e-3)
    runs = {
        "teleojax, capture": steps_of(net, adam, CAPTURE_STEPS, named(net)),
        "teleojax, moments alone": steps_of(net, adam, CAPTURE_STEPS, named(net, histogram=False)),
        "teleojax, every 4th": steps_of(net, adam, CAPTURE_STEPS, named(net, every=4)),
        BARE: steps_of(net, adam, CAPTURE_STEPS),
    }
    n_values = CAPTURE_STEPS * len(net.params) * net.x.size
    racers = contestants(runs, n_values)
    race(f"capture an MLP {width} wide", racers, dtype="float32", bound_by_memory=False, finish=overheads(benchmark))
