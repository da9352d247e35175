"""What teleojax says of a network at one moment: its weights, matrix by matrix, and the outputs of its neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import teleojax as tj
from examples.emergence.models import Model, matrices

FAMILIES = ("lognormal", "halfnormal", "exponential", "weibull", "gamma", "half_t", "halfgennorm")
KEPT = (
    "n", "n_zero", "mu", "sigma", "skew", "excess_kurtosis", "kl_nats", "kl_se", "dispersion", "best_family",
    "delta_nats", "status",
)  # fmt: skip


def measure(models: Mapping[str, Model], probe: Any) -> list[dict[str, Any]]:
    """One record a layer of every model: `of` is its key, `what` "weights" or "neurons".

    Weights are all matrices; neurons the outputs of ReLU layers for the rows of `probe`, exact zeros counted apart.
    """
    weights = tj.measure(
        {f"{key} weights {name}": w for key, model in models.items() for name, w in matrices(model).items()}
    )
    neurons = {
        f"{key} neurons {name}": stats
        for key, model in models.items()
        for name, stats in _activations(model, jnp.asarray(probe)).statistics().items()
    }
    records = []
    for name, result in tj.fit({**weights, **neurons}, families=FAMILIES).items():
        of, what, layer = name.split(" ")
        fields = result.to_dict()
        records.append({"of": of, "what": what, "layer": layer, **{k: fields[k] for k in KEPT}})
    return records


@eqx.filter_jit
def _activations(model: Model, probe: jax.Array) -> tj.train.Accumulator:
    call = lambda m, x: jax.vmap(m)(x)  # noqa: E731
    return tj.train.capture_activations(call, model, probe, include="^neurons")[1]
