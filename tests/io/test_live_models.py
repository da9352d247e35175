"""Live models of other libraries: their own names, their memory, and the statistics of their values bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from safetensors.numpy import load_file

import teleojax as tj
from teleojax.sources import open_source
from teleojax.sources._torch_tensor import shared_with_jax
from tests.io.twin import read_all

torch = pytest.importorskip("torch")

NARROW = {torch.bfloat16: ml_dtypes.bfloat16, torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn}
NARROW[torch.float8_e5m2] = ml_dtypes.float8_e5m2


def numpy_of(t: torch.Tensor) -> np.ndarray:
    """The values by way of float32, which holds them all: a copy."""
    wide = t.detach().to(torch.float64 if t.dtype == torch.float64 else torch.float32).numpy()
    return np.array(wide, dtype=NARROW.get(t.dtype) or str(t.dtype).removeprefix("torch."))


def assert_measured(model: Any, arrays: dict[str, np.ndarray], skipped: dict[str, str] | None = None) -> None:
    measured, expected = tj.measure(model), tj.measure(arrays)
    assert measured.skipped == (skipped or {})
    assert set(measured) == set(arrays)
    assert dict(measured) == dict(expected)
    assert {n: s.shape for n, s in measured.specs.items() if n in arrays} == {n: a.shape for n, a in arrays.items()}


class Network(torch.nn.Module):
    """Every kind of parameter and buffer that a plain module may have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 24)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(24, 24), torch.nn.Linear(24, 24).to(torch.bfloat16)])
        self.conv = torch.nn.Conv2d(3, 5, 3).half()
        self.bn = torch.nn.BatchNorm1d(24).double()
        self.head = torch.nn.Linear(24, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.randn(7, 9).to(torch.float8_e4m3fn))
        self.register_buffer("wide", torch.randn(7, 9).to(torch.float8_e5m2))
        self.register_buffer("table", torch.arange(6))
        self.register_buffer("cache", torch.randn(4), persistent=False)
        self.turned = torch.nn.Parameter(torch.randn(6, 8).T)


def test_a_torch_module_by_the_names_of_its_state_dict() -> None:
    torch.manual_seed(0)
    model = Network()
    state = model.state_dict()
    skipped = {
        "head.weight": "tied to embed.weight",
        "table": "integer type int64",
        "bn.num_batches_tracked": "integer type int64",
    }
    arrays = {name: numpy_of(t) for name, t in state.items() if name not in skipped}
    assert {"scale", "wide", "turned", "layers.1.weight", "conv.bias", "bn.running_var"} <= set(arrays)
    assert arrays["layers.1.weight"].dtype == ml_dtypes.bfloat16
    assert_measured(model, arrays, skipped)
    assert_measured(state, arrays, skipped)
    assert (
        tj.measure({"net": model, "x": np.ones(3, np.float32)}).skipped["net.head.weight"] == "tied to net.embed.weight"
    )
    assert all(p.requires_grad for p in model.parameters() if p.is_floating_point())


def test_a_torch_module_is_fitted() -> None:
    torch.manual_seed(0)
    report = tj.fit(torch.nn.Sequential(torch.nn.Linear(64, 64)))
    y = np.log(np.abs(numpy_of(report_weight := torch.nn.init.normal_(torch.empty(64, 64)))).astype(np.float64))
    assert report["0.weight"].status == "ok"
    fitted = tj.fit({"w": report_weight})["w"].lognormal
    assert abs(fitted.mu - y.mean()) < 1e-6
    assert abs(fitted.sigma - y.std()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, *NARROW])
def test_torch_memory_is_shared(dtype: torch.dtype) -> None:
    t = torch.nn.Parameter(torch.randn(128, 8).to(dtype), requires_grad=dtype == torch.float32)
    source = open_source({"w": t})
    with source.open("w") as storage:
        assert storage.mapped
        assert storage.window(0, t.numel() * t.element_size(), None).ctypes.data == t.data_ptr()
    assert source.leaf("w").dtype.name == str(dtype).removeprefix("torch.")


def test_tensors_that_share_memory_are_tied_only_if_all_of_it_is_the_same() -> None:
    base = torch.randn(6, 4)
    tree = {"a": base, "b": base.T, "c": base[:3], "d": base[3:], "e": base.view(24), "f": base.clone()}
    measured = tj.measure(tree)
    assert measured.skipped == {"b": "tied to a", "e": "tied to a"}
    assert set(measured) == {"a", "c", "d", "f"}


def test_tensors_without_plain_values_are_listed_with_the_reason() -> None:
    with torch.device("meta"):
        meta = torch.nn.Linear(3, 4)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(3)
    tree = {
        "meta": meta,
        "fake": fake,
        "sparse": torch.eye(3).to_sparse(),
        "row": torch.randn(1, 4).expand(1000, 4),
        "lazy": torch.nn.LazyLinear(2),
        "empty": torch.empty(0, 3),
        "complex": torch.ones(2, dtype=torch.complex64),
        "power": torch.ones(2).to(torch.float8_e8m0fnu),
        "note": "text",
        "w": torch.ones(2, 2),
    }
    with warnings.catch_warnings():  # torch says once a process that it will leave quantize_per_tensor behind
        warnings.simplefilter("ignore", UserWarning)
        tree["int8"] = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    source = open_source(tree)
    assert {s.name: s.skip for s in source.specs} == {
        "meta.weight": "meta tensor without values",
        "meta.bias": "meta tensor without values",
        "fake": "a tensor of class FakeTensor, which has no plain memory",
        "sparse": "sparse (sparse_coo)",
        "row": "an expanded view, which repeats its values",
        "lazy.weight": "lazy parameter without values",
        "lazy.bias": "lazy parameter without values",
        "empty": "empty",
        "complex": "complex type complex64: only its modulus can be measured",
        "power": "type float8_e8m0fnu is not read",
        "note": "not an array: str",
        "int8": "quantised qint8",
        "w": None,
    }
    assert next(s for s in source.specs if s.name == "meta.weight").shape == (4, 3)
    assert set(tj.measure(source)) == {"w", "complex"}


def test_a_tensor_that_cannot_be_viewed_is_copied_when_its_turn_comes() -> None:
    t = torch.randn(64, 2).view(32, 2, 2)
    negated = torch.view_as_complex(t).conj().imag
    assert negated.is_neg()
    source = open_source({"w": negated})
    t += 1  # the values are those at the time of reading
    assert read_all(source) == {"w": (-t[..., 1]).numpy().tobytes()}
    assert_measured({"w": negated}, {"w": -t[..., 1].numpy()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_jax_takes_a_tensor_without_a_copy(dtype: torch.dtype) -> None:
    """What is done on a GPU that both have; here on the CPU that both have."""
    t = torch.randn(64, 32).to(dtype)
    array = shared_with_jax(t)
    assert array.unsafe_buffer_pointer() == t.data_ptr()
    assert np.asarray(array).tobytes() == numpy_of(t).tobytes()
    assert shared_with_jax(t.to("meta")) is None


def test_a_bare_tensor_and_torch_alone_change_nothing_else() -> None:
    assert [s.name for s in open_source(torch.ones(3)).specs] == ["array"]
    tree = {"w": jnp.arange(1.0, 5.0)}
    assert open_source(tree).leaf("w") is tree["w"]
    state = {"t": torch.ones(3), "w": jnp.arange(1.0, 5.0)}
    assert tj.utility_gradient(state)["t"] is state["t"]  # what is no array of JAX or NumPy comes back as it is
    with pytest.raises(tj.InputError, match="value of type module"):
        open_source(torch)


def test_nothing_of_other_libraries_is_imported() -> None:
    code = (
        "import sys, numpy as np, teleojax as tj\n"
        "tj.open_source({'w': np.ones(3, np.float32), 'f': [1, 'x']})\n"
        "assert not {'torch', 'keras', 'flax', 'tensorflow'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_gradient_of_a_torch_module_is_written_under_its_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 30)
    tj.write_gradient(model, tmp_path / "gradient")
    written = load_file(next((tmp_path / "gradient").glob("*.safetensors")))
    assert set(written) == {"weight", "bias"}
    expected = tj.utility_gradient({n: numpy_of(t) for n, t in model.state_dict().items()})
    assert all(np.array_equal(written[n], expected[n]) for n in written)


def test_linen_variables_by_their_paths() -> None:
    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(4)(nn.BatchNorm(use_running_average=True)(nn.Dense(16)(x)))

    variables = Mlp().init(jax.random.key(0), jnp.ones((1, 8)))
    inner = variables["params"]
    arrays = {f"params.{layer}.{leaf}": np.asarray(a) for layer, mine in inner.items() for leaf, a in mine.items()}
    arrays |= {
        f"batch_stats.BatchNorm_0.{leaf}": np.asarray(a) for leaf, a in variables["batch_stats"]["BatchNorm_0"].items()
    }
    assert "params.Dense_1.kernel" in arrays
    assert_measured(variables, arrays)

    state = TrainState.create(apply_fn=Mlp().apply, params=inner, tx=optax.adam(1e-3))
    measured = tj.measure(state)
    assert measured["params.Dense_0.kernel"] == tj.measure(variables)["params.Dense_0.kernel"]
    assert "opt_state.0.mu.Dense_0.kernel" in measured
    assert measured.skipped["step"] == "not an array: int"


class Tower(nnx.Module):
    """Two layers, one of them under a second name, and state that is no parameter."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 4, param_dtype=jnp.bfloat16, rngs=rngs)])
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.again = self.layers[0]


def test_nnx_modules_by_their_paths() -> None:
    model = Tower(nnx.Rngs(0))
    kept = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    # nnx.state visits "again" before "layers", as JAX does: that name is the first
    flat = {".".join(map(str, path)): np.asarray(v[...]) for path, v in kept}
    random = {"drop.rngs.key": "a random key", "drop.rngs.count": "integer type uint32"}
    tied = {f"layers.0.{leaf}": f"tied to again.{leaf}" for leaf in ("kernel", "bias")}
    assert {"again.kernel", "layers.1.kernel", "bn.scale", "bn.mean"} <= set(flat)
    assert_measured(model, flat, random | tied)
    assert_measured(nnx.state(model), flat, random)
    assert_measured(nnx.state(model, nnx.Param), {n: a for n, a in flat.items() if n not in ("bn.mean", "bn.var")})
    assert_measured({"w": model.layers[1].kernel}, {"w": flat["layers.1.kernel"]})


def test_the_gradient_of_an_nnx_module_uses_its_statistics() -> None:
    model = Tower(nnx.Rngs(0))
    gradient = tj.utility_gradient(model, stats=tj.measure(model))
    alone = tj.utility_gradient({"w": model.layers[0].kernel[...]})["w"]
    assert np.array_equal(gradient.layers[0].kernel[...], alone)
    assert np.array_equal(gradient.again.kernel[...], alone)


def test_equinox_modules_by_their_attributes() -> None:
    model = eqx.nn.MLP(4, 2, 8, 2, key=jax.random.key(0))
    arrays = {
        f"layers.{i}.{n}": np.asarray(getattr(x, n)) for i, x in enumerate(model.layers) for n in ("weight", "bias")
    }
    measured = tj.measure(model)
    assert dict(measured) == dict(tj.measure(arrays))
    assert set(measured.skipped) == {"activation", "final_activation"}


KERAS = """
import warnings
warnings.simplefilter("ignore")
import numpy as np
import keras
import teleojax as tj
keras.utils.set_random_seed(0)
inputs = keras.Input((8, 8, 3))
x = keras.layers.Conv2D(4, 3, name="first")(inputs)
x = keras.layers.BatchNormalization(name="bn")(x)
x = keras.layers.Dropout(0.5)(x)
outputs = keras.layers.Dense(5, dtype="bfloat16", name="last")(keras.layers.Flatten()(x))
model = keras.Model(inputs, outputs)
arrays = {}
for w in model.weights:
    kept = np.asarray(w.value.detach().float() if keras.backend.backend() == "torch" else w.value)
    arrays[w.path] = kept.astype(keras.ops.convert_to_numpy(w).dtype if "bfloat16" not in w.dtype else "bfloat16")
assert list(arrays)[0] == "first/kernel" and len(arrays) == 8, list(arrays)
assert dict(tj.measure(model)) == dict(tj.measure(arrays))
assert sorted(tj.measure(model.layers[1])) == ["first/bias", "first/kernel"]
print(sorted(arrays))
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_keras_models_by_the_paths_of_their_weights(backend: str) -> None:
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", "import ml_dtypes\n" + KERAS],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
