"""The small networks that the pages of the tests show."""

from __future__ import annotations

import numpy as np

import teleojax as tj

FAMILIES = ("lognormal", "halfnormal", "exponential")
Q, UP, DOWN = "self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"


def layers(seed: int, depths: int = 10) -> dict[str, np.ndarray]:
    """Three matrices a block of unlike laws, and what cannot be fitted."""
    found: dict[str, np.ndarray] = {}
    for depth in range(depths):
        rng = np.random.default_rng(1000 * seed + depth)
        found |= {
            f"model.layers.{depth}.{Q}.weight": rng.normal(0, 0.02 * (1 + depth), (60, 70)).astype(np.float32),
            f"model.layers.{depth}.{UP}.weight": (0.05 * rng.standard_t(4, (60, 70))).astype(np.float32),
            f"model.layers.{depth}.{DOWN}.weight": (0.01 * rng.lognormal(0, 1, (60, 70))).astype(np.float32),
        }
    return found | {"zeros": np.zeros(9, np.float32), "ids": np.arange(5)}


def name(depth: int, part: str) -> str:
    """The name of a matrix of `layers`."""
    return f"model.layers.{depth}.{part}.weight"


def fitted(seed: int = 0) -> tj.Report:
    """The report of `layers`."""
    return tj.fit(layers(seed), families=FAMILIES)
