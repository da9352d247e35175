"""The two networks, and where their weights begin. Every matrix is drawn by the initializer; biases begin at 0."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from examples.emergence.data import CONTEXT
from teleojax import teleo
from teleojax.train import Initializer, jaynes, lognormal_he, tag_activation

HIDDEN = 256  # of the MLP, in each of two layers
WIDTH, HEADS, BLOCKS = 128, 4, 2  # of the transformer
SIGMA = 0.7  # of the narrow lognormal: E w² = exp(2μ + 2σ²) is 2/256 there
NARROW = teleo.utility_parameters(0.5 * math.log(2 / 256) - SIGMA**2, SIGMA)

# he_normal of JAX is cut off at two standard deviations; normal_0.02 is Gaussian to the end
INITIALIZERS: dict[str, Initializer] = {
    "he_normal": jax.nn.initializers.he_normal(),
    "glorot_uniform": jax.nn.initializers.glorot_uniform(),
    "normal_0.02": jax.nn.initializers.normal(0.02),
    "lognormal_he": lognormal_he(),
    "jaynes": jaynes(NARROW.alpha, NARROW.beta),
}


class Mlp(eqx.Module):
    """64 pixels, two hidden layers of ReLU neurons, 10 classes."""

    weights: list[Float[Array, "fan_in fan_out"]]
    biases: list[Float[Array, " fan_out"]]

    def __init__(self, init: Initializer, key: Array, *, pixels: int = 64, classes: int = 10):
        sizes = list(itertools.pairwise((pixels, HIDDEN, HIDDEN, classes)))
        self.weights = [init(k, size) for k, size in zip(jax.random.split(key, len(sizes)), sizes, strict=True)]
        self.biases = [jnp.zeros(fan_out) for _, fan_out in sizes]

    def __call__(self, x: Float[Array, " pixels"]) -> Float[Array, " classes"]:
        """Logits of one image. Neuron outputs are tagged "neurons/0" and "neurons/1"."""
        for i, (w, b) in enumerate(zip(self.weights[:-1], self.biases[:-1], strict=True)):
            x = tag_activation(f"neurons/{i}", jax.nn.relu(x @ w + b))
        return x @ self.weights[-1] + self.biases[-1]


class Block(eqx.Module):
    """Causal attention, then a layer of ReLU neurons four times as wide; both add to the stream."""

    qkv: Float[Array, "width three_widths"]
    out: Float[Array, "width width"]
    up: Float[Array, "width neurons"]
    down: Float[Array, "neurons width"]
    name: str = eqx.field(static=True)

    def __init__(self, init: Initializer, key: Array, name: str):
        shapes = ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
        keys = jax.random.split(key, len(shapes))
        self.qkv, self.out, self.up, self.down = (init(k, s) for k, s in zip(keys, shapes, strict=True))
        self.name = name

    def __call__(self, x: Float[Array, "time width"]) -> Float[Array, "time width"]:
        """The stream after the block. Neuron outputs are tagged with the block's name."""
        q, k, v = jnp.split((normalised(x) @ self.qkv).reshape(len(x), 3 * HEADS, WIDTH // HEADS), 3, axis=1)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.reshape(x.shape) @ self.out
        return x + tag_activation(self.name, jax.nn.relu(normalised(x) @ self.up)) @ self.down


class Transformer(eqx.Module):
    """Characters in, logits of the next ones out; two blocks, no biases, LayerNorm without parameters."""

    embedding: Float[Array, "classes width"]
    position: Float[Array, "time width"]
    blocks: list[Block]
    readout: Float[Array, "width classes"]

    def __init__(self, init: Initializer, key: Array, *, classes: int):
        a, b, c, *rest = jax.random.split(key, 3 + BLOCKS)
        self.embedding, self.position = init(a, (classes, WIDTH)), init(b, (CONTEXT, WIDTH))
        self.readout = init(c, (WIDTH, classes))
        self.blocks = [Block(init, k, f"neurons/{i}") for i, k in enumerate(rest)]

    def __call__(self, codes: Int[Array, " time"]) -> Float[Array, "time classes"]:
        """Logits at each place of one row of characters."""
        x = self.embedding[codes] + self.position
        for block in self.blocks:
            x = block(x)
        return normalised(x) @ self.readout


Model = Mlp | Transformer
Build = Callable[[Initializer, Array], Model]


def normalised(x: Float[Array, "time width"]) -> Float[Array, "time width"]:
    """Mean 0 and variance 1 at each place."""
    return jax.nn.standardize(x, axis=-1, epsilon=1e-5)


def parameters(model: Model) -> dict[str, Array]:
    """Every parameter by the name of its path, as it is measured and saved."""
    paths = jax.tree_util.tree_flatten_with_path(model)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def matrices(model: Model) -> dict[str, Array]:
    """The weights: parameters of two axes."""
    return {name: w for name, w in parameters(model).items() if w.ndim == 2}
