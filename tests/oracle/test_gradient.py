"""The utility gradient beside its formulas, evaluated in float64 by other means."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.test_util import check_grads

import teleojax as tj
from teleojax.diagnose import UtilityGradient, gradients
from teleojax.engine import _compile
from teleojax.engine._apply import _cuts, apply_to_leaves
from teleojax.engine._compile import compiled_table_of_array
from teleojax.kernels import tabulated
from teleojax.stats._bithist import float_dtype
from teleojax.teleo import utility_parameters

DTYPES = ("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz")
TARGET = (-1.4, 0.3)
WIDE = ("float32", "float64")  # whose look-up is a straight line over a cell: 1.3e-5 off for normal weights


def draw(size: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Normal weights, a few of them zero."""
    w = np.random.default_rng(seed).standard_normal(size) * 0.02
    w[:: max(1, size // 7)] = 0
    return w.astype(float_dtype(dtype))


def law_of(w: np.ndarray, **choices: Any) -> UtilityGradient:
    return gradients(tj.measure([w]), **choices)["0"]


def exactly(law: UtilityGradient, w: np.ndarray, wrt: str) -> np.ndarray:
    """The law at every value, in float64, 0 where there is no logarithm."""
    with np.errstate(invalid="ignore"):
        x = np.asarray(w).astype(np.float64)
    seen = np.isfinite(x) & (x != 0)
    safe = np.where(seen, x, 1.0)
    return np.where(seen, law(np.log(np.abs(safe))) / (safe if wrt == "value" else 1.0), 0.0)


@pytest.mark.parametrize("wrt", ["log", "value"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_looked_up_as_evaluated(dtype: str, wrt: str) -> None:
    w = draw(70_001, dtype)
    law = law_of(w)
    found, wanted = tj.utility_gradient([w], wrt=wrt)[0], exactly(law, w, wrt)
    assert (found.dtype, found.shape) == (w.dtype, w.shape)
    if dtype in WIDE:
        assert np.linalg.norm(found - wanted) <= 2e-5 * np.linalg.norm(wanted)
        scale = np.abs(wanted) + np.sqrt(np.mean(exactly(law, w, "log") ** 2)) * (
            1 if wrt == "log" else 1 / np.where(w == 0, 1, np.abs(w))
        )
        assert (np.abs(found - wanted) <= 1e-4 * scale).all()
    else:
        most = float(ml_dtypes.finfo(w.dtype).max)
        assert np.array_equal(found, np.clip(wanted, -most, most).astype(w.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_by_value_is_by_logarithm_over_the_value(dtype: str) -> None:
    w = draw(50_000, dtype)
    log, value = (tj.utility_gradient([w], wrt=wrt)[0].astype(np.float64) for wrt in ("log", "value"))
    x = w.astype(np.float64)
    seen = (x != 0) & (np.abs(value) < float(ml_dtypes.finfo(w.dtype).max))
    unit = float(ml_dtypes.finfo(w.dtype).eps) if dtype not in WIDE else 1e-4
    smallest = float(ml_dtypes.finfo(w.dtype).smallest_subnormal)
    error = np.abs(value * x - log)[seen]
    assert (error <= 1.01 * unit * np.maximum(np.abs(log[seen]), 1.0) + smallest * (1 + np.abs(x[seen]))).all()
    assert (value[x == 0] == 0).all()


def test_targets_and_densities() -> None:
    w = draw(40_000)
    moments = tj.measure([w])["0"].moments
    own = utility_parameters(moments.mean, moments.sigma)
    x = np.abs(w[w != 0].astype(np.float64))
    y = np.log(x)

    def found(**choices: Any) -> np.ndarray:
        return tj.utility_gradient([w], **choices)[0][w != 0]

    towards = (TARGET[0] - own.alpha) - 2 * (TARGET[1] - own.beta) * y
    assert np.allclose(found(density="lognormal", target=TARGET), towards, rtol=1e-5, atol=1e-5)
    score = law_of(w).density.score(y)
    assert np.allclose(found(target=TARGET), (TARGET[0] + 1) - 2 * TARGET[1] * y - score, rtol=1e-4, atol=1e-4)
    assert np.allclose(found(), -(y - moments.mean) / moments.sigma**2 - score, rtol=1e-4, atol=1e-4)
    assert np.array_equal(found(target=(own.alpha, own.beta)), found())
    assert np.array_equal(found(target=own), found(target=own.to_measure("dlnx")))
    assert not found(density="lognormal").any()  # at its own maximum of likelihood it is 0, identically
    assert not found(density="lognormal", target=own).any()


def test_what_has_no_logarithm_is_zero() -> None:
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        w = draw(5000, dtype)
        stats = tj.measure([w])
        w[:8] = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, ml_dtypes.finfo(w.dtype).max, -1.0]
        for wrt in ("log", "value"):
            found = tj.utility_gradient([w], wrt=wrt, stats=stats)[0].astype(np.float64)
            assert (found[:6] == 0).all()
            assert np.isfinite(found).all()
            assert (found[7 if wrt == "value" else 6 : 8] != 0).all()
        assert tj.gradient_summary([w[1:6]])["0"].n == 0


def test_subnormal_values() -> None:
    rng = np.random.default_rng(0)
    w = (np.exp(rng.normal(-95, 3, 20_000)) * rng.choice([-1, 1], 20_000)).astype(np.float32)
    law = law_of(w, density="lognormal", target=TARGET)
    found, wanted = (f(w) for f in (lambda w: tj.utility_gradient([w], density="lognormal", target=TARGET)[0],
                                    lambda w: exactly(law, w, "log")))  # fmt: skip
    x = np.abs(w)
    k = np.maximum(np.floor(x / 2.0**-133), 1)  # the cell below 2^-126: relative width 1/k there
    cell = np.where(x < 2.0**-126, 1 / k, 1 / 128)
    assert (np.abs(found - wanted) <= 0.13 * np.abs(law.slope) * cell**2 + 1e-4)[x >= 2.0**-133].all()
    assert (found[x < 2.0**-133] == 0).all()
    assert ((x > 0) & (x < 2.0**-126)).sum() > 100


def test_past_the_range_of_the_type() -> None:
    w = draw(30_000, "float16")
    w[1:4] = [6e-8, -6e-8, 1e-6]
    value = tj.utility_gradient([w], wrt="value")[0].astype(np.float64)
    assert np.isfinite(value).all()
    assert np.abs(value).max() == 65504
    assert value[1] == -value[2]


def test_leaves_without_a_gradient() -> None:
    w = draw(20_000)
    tree = {
        "w": w,
        "int": np.arange(5),
        "bool": jnp.ones(3, bool),
        "complex": np.ones(2, np.complex64),
        "empty": np.empty((0, 3), np.float32),
        "constant": np.full(100, 0.5, np.float32),
        "one": jnp.float32(3),
        "zeros": jnp.zeros((4, 4)),
        "few": np.asarray([1.0, 2.0, 3.0], np.float32),
        "key": jax.random.key(0),
        "number": 3.5,
        "text": "relu",
        "scalar": np.float32(2),
        "none": None,
    }
    found = tj.utility_gradient(tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for name in ("int", "bool", "complex", "empty", "constant", "one", "zeros", "few", "scalar"):
        assert found[name].dtype == tree[name].dtype
        assert found[name].shape == tree[name].shape
        assert type(found[name]) is type(tree[name])
        assert not np.asarray(found[name]).any()
    assert found["key"] is tree["key"]
    assert (found["number"], found["text"]) == (0.0, "relu")
    assert np.array_equal(found["w"], tj.utility_gradient([w])[0])
    summary = tj.gradient_summary(tree)
    assert summary["few"].reason == "no density estimate: too few values for a density"
    assert (summary["constant"].status, summary["constant"].reason) == ("degenerate", "all |values| are equal")
    assert np.isnan(summary["one"].mean_square)
    assert summary["one"].to_dict()["mean_square"] is None
    assert summary["zeros"].n == 0
    assert set(summary.measured.skipped) == {"int", "bool", "complex", "empty", "key", "number", "text"}


def test_selected_leaves() -> None:
    tree = {"a": draw(1000), "b": draw(2000, seed=1), "c": draw(100, seed=2)}
    found = tj.utility_gradient(tree, exclude="b", min_size=500)
    assert found["a"].any()
    assert not found["b"].any()
    assert not found["c"].any()


def test_layouts_and_kinds() -> None:
    w = draw(60_000).reshape(200, 300)
    wanted = tj.utility_gradient([w])[0]
    fortran = tj.utility_gradient([np.asfortranarray(w)])[0]
    assert fortran.flags.f_contiguous
    assert np.array_equal(fortran, wanted)
    strided = np.zeros((400, 900), np.float32)[::2, ::3]
    strided[:] = w
    assert np.array_equal(tj.utility_gradient([strided])[0], wanted)
    swapped = w.astype(">f4")
    found = tj.utility_gradient([swapped])[0]
    assert found.dtype == swapped.dtype
    assert np.array_equal(found, wanted)
    shifted = np.frombuffer(b"\0" + w.tobytes(), np.uint8)[1:].view(np.float32)  # not even aligned to a value
    assert np.array_equal(tj.utility_gradient([shifted])[0].reshape(w.shape), wanted)
    of_jax = tj.utility_gradient(jnp.asarray(w))
    assert isinstance(of_jax, jax.Array)
    assert np.array_equal(of_jax, wanted)
    assert wanted.flags.writeable
    assert not np.shares_memory(wanted, w)


def test_float64_arrays_of_jax() -> None:
    w = draw(30_000, "float64")
    with jax.enable_x64(True):
        of_jax, constant = jnp.asarray(w), jnp.ones(9, jnp.float64)
        inside = tj.utility_gradient({"w": of_jax})["w"]
    outside = tj.utility_gradient({"w": of_jax, "constant": constant})
    for found in (inside, outside["w"]):
        assert found.dtype == jnp.float64
        assert np.array_equal(found, tj.utility_gradient([w])[0])
    assert outside["constant"].dtype == jnp.float64


def test_as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of whole arrays that serves other devices, run on this one."""
    trees = {dtype: jnp.asarray(draw(5000, dtype).reshape(50, 100)) for dtype in DTYPES if dtype != "float64"}
    wanted = {wrt: tj.utility_gradient(trees, wrt=wrt) for wrt in ("log", "value")}
    monkeypatch.setattr(_compile, "on_cpu", lambda: False)
    stats = {name: tj.measure({name: np.asarray(x)})[name] for name, x in trees.items()}
    for wrt, expected in wanted.items():
        found = tj.utility_gradient(trees, wrt=wrt, stats=stats)
        assert all(np.array_equal(found[name], expected[name]) for name in trees)
        assert all(found[name].sharding == x.sharding for name, x in trees.items())
    given = tj.utility_gradient(trees, stats=stats, donate=True)
    assert all(np.array_equal(given[name], wanted["log"][name]) for name in trees)
    assert all(x.is_deleted() for x in trees.values())


def test_tied_leaves_and_donation() -> None:
    w = jnp.asarray(draw(30_000))
    wanted = tj.utility_gradient([w])[0]
    kept = np.asarray(w).copy()
    a, b, c = tj.utility_gradient([w, w, kept], donate=True)
    assert a is b
    assert w.is_deleted()
    assert np.array_equal(a, wanted)
    assert np.array_equal(c, wanted)
    with pytest.raises(tj.InputError, match="deleted"):
        tj.utility_gradient([w, kept])


def test_statistics_of_earlier_values() -> None:
    w = draw(20_000)
    measured = tj.measure({"w": w})
    assert np.array_equal(tj.utility_gradient({"w": w}, stats=measured)["w"], tj.utility_gradient({"w": w})["w"])
    moved = {"w": w * np.float32(300)}  # past the data that the density knows, where the score is constant
    law = gradients(measured)["w"]
    found, wanted = tj.utility_gradient(moved, stats=dict(measured))["w"], exactly(law, moved["w"], "log")
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("density", ["empirical", "lognormal"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("size", [3000, 200_000])
def test_summary_of_what_is_written(dtype: str, size: int, density: str) -> None:
    w = draw(size, dtype)
    choices: dict[str, Any] = {"density": density, "target": None if density == "empirical" else TARGET}
    measured = tj.measure({"w": w})
    for wrt in ("log", "value"):
        summary = tj.gradient_summary(measured, wrt=wrt, **choices)["w"]
        values = exactly(gradients(measured, **choices)["w"], np.abs(w), wrt)[w != 0]
        rms = np.sqrt(np.mean(values**2))
        assert summary.n == len(values)
        assert abs(summary.rms / rms - 1) <= 5e-3
        assert summary.mean_square == pytest.approx(summary.rms**2)
        assert abs(summary.mean - values.mean()) <= 1e-3 * rms
        assert abs(summary.min - values.min()) <= 1e-2 * (rms + abs(values.min()))
        assert abs(summary.max - values.max()) <= 1e-2 * (rms + abs(values.max()))
        assert summary.quantiles is not None
        for level, value in summary.quantiles.items():
            low, high = np.quantile(values, [max(0, level - 3e-3), min(1, level + 3e-3)])
            assert low - 5e-3 * rms <= value <= high + 5e-3 * rms


def test_summary_reads_what_fit_reads(tmp_path: Any) -> None:
    measured = tj.measure({"w": draw(3000)})
    tj.save_statistics(measured, tmp_path / "w.stats")
    report = tj.gradient_summary(tmp_path / "w.stats")
    assert report.summaries == tj.gradient_summary(measured).summaries
    line = report.jsonl()
    assert line.count("\n") == 1
    assert '"q05": ' in line


def test_refusals() -> None:
    w = draw(1000)
    for choices in ({"density": "normal"}, {"wrt": "w"}, {"target": (1.0, -1.0)}, {"target": (np.nan, 1.0)},
                    {"target": utility_parameters(0.0, 1.0, gamma=2.0)}):  # fmt: skip
        for verb in (tj.utility_gradient, tj.gradient_summary):
            with pytest.raises(tj.UsageError, match=next(iter(choices))):
                verb([w], **choices)
    with pytest.raises(tj.UsageError, match="write_gradient"):
        tj.utility_gradient("model.safetensors")
    with pytest.raises(tj.UsageError, match="no statistics of 'b'"):
        tj.utility_gradient({"b": w}, stats=tj.measure({"a": w}))
    with pytest.raises(tj.UsageError, match="histogram"):
        tj.gradient_summary(tj.measure([w], histogram=False))
    with pytest.raises(tj.InputError, match="traced"):
        jax.jit(lambda x: tj.utility_gradient([x])[0])(w)


def test_closed_form() -> None:
    w = jnp.asarray([0.5, -0.02, 3.0, 0.0, jnp.nan, -jnp.inf], jnp.float32)
    alpha, beta = -2.0, 0.7

    def wanted(w: float, wrt: str) -> float:
        if w == 0 or not np.isfinite(w):
            return 0.0
        gradient = (TARGET[0] - alpha) - 2 * (TARGET[1] - beta) * np.log(abs(w))
        return gradient / (w if wrt == "value" else 1)

    for wrt in ("log", "value"):
        expected = [wanted(float(x), wrt) for x in w]
        eager = tj.lognormal_gradient(w, alpha, beta, TARGET, wrt=wrt)
        compiled = jax.jit(lambda w, wrt=wrt: tj.lognormal_gradient(w, alpha, beta, TARGET, wrt=wrt))(w)
        mapped = jax.vmap(lambda w, a, wrt=wrt: tj.lognormal_gradient(w, a, beta, TARGET, wrt=wrt))(
            w, jnp.full(6, alpha)
        )
        for found in (eager, compiled, mapped):
            assert np.allclose(found, expected, rtol=2e-6, atol=1e-6)
    for dtype in (jnp.bfloat16, jnp.float16):
        assert tj.lognormal_gradient(w.astype(dtype), alpha, beta, TARGET).dtype == dtype
    assert tj.lognormal_gradient(jnp.asarray([1e-7], jnp.float16), 0.0, 1.0, (5.0, 2.0), wrt="value")[0] == 65504
    with pytest.raises(tj.UsageError, match="wrt"):
        tj.lognormal_gradient(w, alpha, beta, TARGET, wrt="x")
    with pytest.raises(tj.UsageError, match="floating-point"):
        tj.lognormal_gradient(np.arange(3), alpha, beta, TARGET)


@pytest.mark.parametrize("wrt", ["log", "value"])
def test_closed_form_is_differentiable(wrt: str) -> None:
    w = jnp.asarray([0.5, -1.2, 3.0, 0.7], jnp.float32)

    def total(w: jax.Array, alpha: jax.Array, beta: jax.Array, target: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.sum(tj.lognormal_gradient(w, alpha, beta, target, wrt=wrt))

    check_grads(total, (w, jnp.float32(-1.5), jnp.float32(0.5), (jnp.float32(0.3), jnp.float32(0.8))), 1, atol=1e-2)
    at_zero = jax.grad(total)(jnp.asarray([0.0, jnp.nan, 1.0]), -1.5, 0.5, TARGET)
    assert np.array_equal(at_zero[:2], [0, 0])


def test_closed_form_agrees_with_the_verb() -> None:
    w = draw(10_000)
    moments = tj.measure([w])["0"].moments
    own = utility_parameters(moments.mean, moments.sigma)
    table = tj.utility_gradient([w], density="lognormal", target=TARGET)[0]
    assert np.allclose(table, tj.lognormal_gradient(w, own.alpha, own.beta, TARGET), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 7, 65_536, 65_537, 200_000, 2_097_151, 2_097_153, 5_000_000])
@pytest.mark.parametrize("address", [0, 4, 48, 64, 2])
def test_cuts_cover_every_value_once(n: int, address: int) -> None:
    cuts = _cuts(address, n, 4, 2_097_152)
    assert (cuts[0], cuts[-1]) == (0, n)
    assert all(0 < b - a <= 2_097_152 for a, b in pairwise(cuts))
    if address % 4 == 0:
        assert all((address + 4 * cut) % 64 == 0 for cut in cuts[1:-1])


def test_chunks_give_what_the_kernel_gives() -> None:
    """Aligned, staged and partial chunks of all three sizes, in threads."""
    w = draw(2_097_152 + 600_001)
    table = law_of(w[:100_000]).table("float32")
    found = next(iter(apply_to_leaves([w], [table])))
    assert np.array_equal(found, compiled_table_of_array(donate=False)(w, table.entries))
    assert np.allclose(found, tabulated(jnp.asarray(w.view(np.uint32)), jnp.asarray(table.entries)), atol=1e-6)
