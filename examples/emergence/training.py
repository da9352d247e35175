"""Training with Adam: several replicas side by side under vmap, or one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from examples.emergence.data import Data
from examples.emergence.models import INITIALIZERS, Build, Model

RATE, WARM_UP = 1e-3, 50  # Adam's, reached after so many steps; sooner in short runs
AT_ONCE = 50  # steps between two looks at the progress bar
LONG = 200  # steps


class Replica(eqx.Module):
    """One network in training."""

    model: Model
    state: optax.OptState
    batches: Array  # key of the order in which rows come


class Score(NamedTuple):
    """Cross-entropy in nats a target, and the share of targets that the network holds likeliest."""

    loss: float
    accuracy: float


def snapshots(steps: int) -> list[int]:
    """Steps at which a run is measured: 0, powers of two (in short runs of four), and the last."""
    powers = (2**i for i in range(0, steps.bit_length(), 1 if steps >= LONG else 2))
    return sorted({0, steps, *(p for p in powers if p < steps)})


def warm_up(steps: int) -> int:
    """Steps until the rate is reached."""
    return max(1, min(WARM_UP, steps // 4))


def untrained(build: Build, initializer: str, seed: int, *, draw: int = 0) -> Model:
    """The network of that seed at step 0; those of other seeds, initializers and draws are independent of it."""
    return build(INITIALIZERS[initializer], jax.random.fold_in(_keys(initializer, seed)[0], draw))


def train(
    models: Sequence[Model],
    data: Sequence[Data],
    initializer: str,
    seeds: Sequence[int],
    *,
    steps: int,
    batch: int,
    tick: Callable[[int], None],
) -> Iterator[tuple[int, list[Model]]]:
    """(step, models) at each of the snapshots, step 0 too.

    Several models take their steps in one program, under vmap. `tick` is told how many steps were taken.
    """
    rise = warm_up(steps)
    replicas = [
        Replica(model, _optimiser(rise).init(eqx.filter(model, eqx.is_array)), _keys(initializer, seed)[1])
        for model, seed in zip(models, seeds, strict=True)
    ]
    rows = [(jnp.asarray(d.inputs), jnp.asarray(d.targets)) for d in data]
    alone = len(models) == 1
    run, (inputs, targets) = (replicas[0], rows[0]) if alone else (_stack(replicas), _stack(rows))
    advance, now = _alone if alone else _side_by_side, 0
    for stop in snapshots(steps):
        while now < stop:
            until = min(now + AT_ONCE, stop)
            bounds = jnp.asarray(now), jnp.asarray(until)
            run = jax.block_until_ready(advance(run, inputs, targets, *bounds, batch, rise))
            tick(len(models) * (until - now))
            now = until
        yield now, [run.model] if alone else [jax.tree.map(lambda a, i=i: a[i], run.model) for i in range(len(models))]


def score(model: Model, x: np.ndarray, y: np.ndarray) -> Score:
    """How well a network does on these rows."""
    return Score(*(float(v) for v in _loss_and_accuracy(model, jnp.asarray(x), jnp.asarray(y))))


@eqx.filter_jit
def _loss_and_accuracy(model: Model, x: Array, y: Array) -> tuple[Array, Array]:
    logits = jax.vmap(model)(x)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, (logits.argmax(-1) == y).mean()


def _advance(run: Replica, inputs: Array, targets: Array, start: Array, stop: Array, batch: int, rise: int) -> Replica:
    optimiser = _optimiser(rise)

    def step(i: Array, run: Replica) -> Replica:
        rows = jax.random.randint(jax.random.fold_in(run.batches, i), (batch,), 0, len(inputs))
        gradient: Any = jax.grad(lambda model: _loss_and_accuracy(model, inputs[rows], targets[rows])[0])(run.model)
        updates, state = optimiser.update(gradient, run.state)
        model: Any = optax.apply_updates(cast(Any, run.model), updates)
        return Replica(model, state, run.batches)

    return jax.lax.fori_loop(start, stop, step, run)


_alone = eqx.filter_jit(_advance)
_side_by_side = eqx.filter_jit(eqx.filter_vmap(_advance, in_axes=(0, 0, 0, None, None, None, None)))


def _optimiser(rise: int) -> optax.GradientTransformation:
    return optax.adam(optax.linear_schedule(0.0, RATE, rise))


def _keys(initializer: str, seed: int) -> tuple[Array, Array]:
    """Of the model, and of the order of its batches."""
    key = jax.random.fold_in(jax.random.key(seed), list(INITIALIZERS).index(initializer))
    of_model, of_batches = jax.random.split(key)
    return of_model, of_batches


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
