"""What test_resident runs in processes of their own, which see eight simulated devices, or four in each of two."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import teleojax as tj
from teleojax.engine import _compile
from teleojax.engine._resident import merge_states, resident_leaves, shard_state
from teleojax.engine._shard_memory import COUNT_VALUES, SUM_VALUES
from teleojax.engine._shard_state import ShardState
from teleojax.engine._shards import ShardPlan, in_order, places_of
from teleojax.sources import PytreeSource
from teleojax.stats import TensorStats
from tests.numerics.test_groups import assert_histogram
from tests.reference import assert_moments

DTYPES = (np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float64)
LAYOUTS = (
    # shape, specification, whether the shards are whole rows of the array in sequence
    ((640, 1, 1024), P(("a", "b")), True),
    ((800, 1024), P("b"), True),
    ((512, 1024), P(), True),
    ((1024, 2048), P("a", "b"), False),
    ((300, 8, 130), P(None, ("b", "a")), False),
    ((12, 3000), P("a"), False),  # less than whole rows
)
ON_DEVICES = (P(("a", "b")), P("a", "b"), P("a"))  # worked on by programs of their own too, each to be compiled
SMALL = (((8, 1024), P("b", "a")), ((40, 7), P("a")), ((), P()), ((1,), P()))


def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("a", "b"))


def weights(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Gaussian weights, with what needs care where there is room for it."""
    w = np.asarray(np.random.default_rng(math.prod(shape)).standard_normal(shape) * 0.5).astype(dtype)
    if w.size > 20_000:
        flat = w.reshape(-1)
        flat[4097], flat[4098], flat[9000:9100] = 0, np.nan, np.float64(ml_dtypes.finfo(dtype).smallest_subnormal)
        flat[-9000:-8000] = 0.25
    return w


def place(w: np.ndarray, sharding: Sharding) -> jax.Array:
    with jax.enable_x64(True) if w.dtype == np.float64 else nullcontext():
        x = jax.device_put(w, sharding)
    assert x.dtype == w.dtype
    return x


def by_shards(x: jax.Array, *, in_place: bool, groups: int | None = None, histogram: bool = True) -> TensorStats:
    """Measured by shards whatever `measure` would do, the state sent as bytes on the way."""
    (spec,) = PytreeSource(x).specs
    plan = ShardPlan.of(spec, x.sharding, groups=groups, histogram=histogram)
    with threads() as pool:
        message = shard_state(plan, x, pool, in_place=in_place).to_bytes()
    return merge_states(plan, [ShardState.of_bytes(message)])


def options(dtype: type) -> Iterator[dict]:
    yield {}
    if dtype in (np.float32, ml_dtypes.bfloat16):
        yield {"histogram": False}
        yield {"groups": 7}


def assert_numpy(stats: TensorStats, w: np.ndarray) -> None:
    """Counts and moments are NumPy's; subnormals make the kurtosis large, and its error with it."""
    assert_moments(stats.moments, w, shape=1e-6 * max(100.0, abs(stats.moments.excess_kurtosis)))


def assert_close(found: TensorStats, wanted: TensorStats, dtype: np.dtype) -> None:
    """Equal counts, extremes and histogram; moments as far apart as sums over other rows are, in float32 or float64."""
    assert found.histogram == wanted.histogram
    a, b = found.moments, wanted.moments
    for name in ("n", "n_zero", "n_nonfinite", "n_negative", "min", "max"):
        assert getattr(a, name) == getattr(b, name), name
    bound = 1e-12 if dtype == np.float64 else 2e-7
    scales = {"mean": max(abs(b.mean), b.sigma), "sum_x": b.sum_x, "sum_x2": b.sum_x2}
    scales |= {f"m{k}": max(b.n * b.sigma**k, abs(getattr(b, f"m{k}"))) for k in (2, 3, 4)}
    for name, scale in scales.items():
        assert abs(getattr(a, name) - getattr(b, name)) <= bound * scale, name


def assert_same(found: TensorStats, wanted: TensorStats, w: np.ndarray, *, exact: bool) -> None:
    """Equal to the last bit, or, for layouts where rows differ, in all but the rounding of the moments."""
    if exact:
        assert found == wanted
        return
    assert_close(found, wanted, w.dtype)


def bits() -> None:
    """Every way and layout against the same values in one piece, which in turn agree with NumPy."""
    for dtype in DTYPES:
        for shape, spec, whole_rows in LAYOUTS:
            w = weights(shape, dtype)
            x = place(w, NamedSharding(mesh(), spec))
            assert in_order(shape, places_of(shape, x.sharding)) == whole_rows
            for option in options(dtype):
                wanted = tj.measure(w, **option)["array"]
                if not option:
                    assert_numpy(wanted, w)
                # read in the array's order by a process that holds all of it: no bit depends on the sharding
                assert tj.measure(x, **option)["array"] == wanted, (dtype, shape, spec, option)
                exact = whole_rows or (dtype not in (np.float32, np.float64) and not option)
                on_devices = spec in ON_DEVICES and dtype != ml_dtypes.float8_e4m3fn
                for in_place in (True, False) if on_devices else (True,):
                    found = by_shards(x, in_place=in_place, **option)
                    if option.get("groups") and not whole_rows:  # stretches along the order of the shards
                        assert len(found.groups) == 7
                        assert_close(found, wanted, w.dtype)
                        continue
                    assert_same(found, wanted, w, exact=exact)
        for shape, spec in SMALL:
            w = weights(shape, dtype)
            x = place(w, NamedSharding(mesh(), spec))
            for option in [{}, {"histogram": False}, {"groups": 5}]:
                wanted = tj.measure(w, **option)["array"]
                assert tj.measure(x, **option)["array"] == wanted
                assert by_shards(x, in_place=True, **option) == wanted


def groups_are_stretches() -> None:
    """Along the order of the shards: each group's counts against NumPy on the values it is said to hold."""
    w = weights((640, 1024), np.float32)
    x = place(w, NamedSharding(mesh(), P("a", "b")))
    order = np.concatenate([w[p.index].reshape(-1) for p in places_of(w.shape, x.sharding)])
    for in_place in (True, False):
        found = by_shards(x, in_place=in_place, groups=20)
        ends = np.cumsum([g.moments.size for g in found.groups])
        assert ends[-1] == w.size
        for group, values in zip(found.groups, np.split(order, ends[:-1]), strict=True):
            assert_numpy(group, values)
            assert_histogram(group, values)


def lines(report: tj.Report) -> list[str]:
    """The JSON lines, without the last one, which holds the seconds it took."""
    return report.jsonl().splitlines()[:-1]


def trees() -> None:
    """A pytree of many shardings at once through `measure`, `fit` and `utility_gradient`, equal to the arrays' own."""
    eight = jax.make_mesh((8,), ("x",))
    w, v = weights((640, 1024), np.float32), weights((256, 512), ml_dtypes.bfloat16)
    layouts = {
        "rows": NamedSharding(mesh(), P("a")),
        "columns": NamedSharding(mesh(), P(None, ("a", "b"))),
        "eight": NamedSharding(eight, P("x")),
        "partly": NamedSharding(mesh(), P("b")),
        "copies": NamedSharding(mesh(), P()),
        "elsewhere": SingleDeviceSharding(jax.devices()[5]),
        "pinned": NamedSharding(mesh(), P("a"), memory_kind="pinned_host"),
        "unpinned": NamedSharding(mesh(), P("a", "b"), memory_kind="unpinned_host"),
    }
    tree = {name: {"w": place(w, s), "v": place(v, s)} for name, s in layouts.items()}
    tree["other"] = {
        "scalar": jnp.float32(0.5),
        "empty": place(np.zeros((0, 8), np.float32), layouts["columns"]),
        "numbers": place(np.ones((8, 8), np.int32), layouts["rows"]),
        "numpy": w,
    }
    host = jax.tree.map(np.asarray, tree)
    done: list[int] = []
    found = tj.measure(tree, progress=lambda n, total: done.append(n / total))
    assert done == sorted(done)
    assert done[-1] == 1
    wanted = tj.measure(host)
    assert dict(found) == dict(wanted)
    assert found.skipped == wanted.skipped
    assert set(found.skipped) == {"other.empty", "other.numbers"}
    assert lines(tj.fit(tree)) == lines(tj.fit(host))
    a, b = tj.utility_gradient(tree["partly"]), tj.utility_gradient(host["partly"])
    for name in ("w", "v"):
        assert a[name].sharding == tree["partly"][name].sharding
        np.testing.assert_array_equal(np.asarray(a[name]), b[name])
    along, by_hand = (tj.fit({"w": t["columns"]["w"]}, axis=0) for t in (tree, host))
    np.testing.assert_array_equal(along["w"].mu, by_hand["w"].mu)
    source = PytreeSource({"rows": tree["rows"], "columns": tree["columns"], "copies": tree["copies"]})
    assert set(resident_leaves(source, source.specs)) == {"rows.w", "rows.v"}
    gone = place(w, layouts["rows"])
    gone.delete()
    with pytest.raises(tj.InputError, match="deleted"):
        tj.measure({"w": gone})


def programs() -> None:
    """On a device a call takes a bounded piece of memory beside the shard: none for sums, its own rows for counts."""
    eight = NamedSharding(jax.make_mesh((8,), ("x",)), P("x"))
    for dtype in (jnp.float32, jnp.bfloat16):
        shard = jax.ShapeDtypeStruct((4096, 1024), dtype, sharding=SingleDeviceSharding(jax.devices()[3]))
        rows = {"n_rows": 512}
        sums = _compile.compiled_shard_sums().lower(shard, np.int32(0), **rows).compile()
        assert sums.memory_analysis().temp_size_in_bytes < 1 << 16
        counts = _compile.compiled_shard_counts(dtype.dtype.itemsize, 16)
        counts = counts.lower(shard, np.int32(0), np.int32(0), np.int32(512), **rows).compile()
        assert counts.memory_analysis().temp_size_in_bytes < 512 * 8192 * dtype.dtype.itemsize + (1 << 20)
    assert COUNT_VALUES * 4 <= 16 << 20
    assert SUM_VALUES <= 1 << 24
    # and results do not grow with the shard: a row's sums are 44 bytes
    x = jax.device_put(np.zeros((8, 65536), np.float32), eight).addressable_shards[0].data
    sums = _compile.compiled_shard_sums()(x, np.int32(2), n_rows=4)
    assert all(leaf.shape == (4,) for leaf in jax.tree.leaves(sums))


def memory() -> None:
    """A gibibyte over eight devices, in three meshes; the parent watches this process from the first line on."""
    block = (np.random.default_rng(0).standard_normal(1 << 20) * 0.02).astype(np.float32)
    layouts = (((8,), P("a")), ((4, 2), P("a", "b")), ((2, 4), P("b", "a")))

    def shard(n_bytes: int, shape: tuple[int, ...], spec: P) -> jax.Array:
        side = math.isqrt(n_bytes // 4)
        sharding = NamedSharding(jax.make_mesh(shape, ("a", "b")[: len(shape)]), spec)

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            rows, columns = (len(range(*s.indices(side))) for s in index)
            return np.resize(block, (rows, columns))

        return jax.block_until_ready(jax.make_array_from_callback((side, side), sharding, piece))

    for shape, spec in layouts:
        x = shard(1 << 30, shape, spec)
        for way in ("measure", "in place", "on devices"):
            print(f"begin {shape} {spec} {way}", flush=True)
            sys.stdin.readline()
            found = tj.measure(x)["array"] if way == "measure" else by_shards(x, in_place=way == "in place")
            assert found.moments.n == 1 << 28
            assert found.moments.max == np.abs(block).max()
            print("end", flush=True)
            sys.stdin.readline()
        x.delete()


def processes() -> None:
    """Two processes, each with four of the eight devices: the state of each, merged, is what one process finds."""
    tj.engine.initialize()
    assert (jax.process_count(), len(jax.local_devices()), len(jax.devices())) == (2, 4, 8)
    grid = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(4, 2), ("a", "b"))
    tree, local = {}, {}
    for dtype in (np.float32, ml_dtypes.bfloat16):
        for shape, spec, _ in (*LAYOUTS, *((*s, True) for s in SMALL)):
            w, sharding = weights(shape, dtype), NamedSharding(grid, spec)
            name = f"{np.dtype(dtype).name} {shape}"
            tree[name] = jax.make_array_from_callback(shape, sharding, lambda index, w=w: w[index])
            local[name] = w
            assert not tree[name].is_fully_addressable
    with pytest.raises(tj.InputError, match=r"only a part.*multiprocess"):
        tj.measure(tree)
    found = tj.measure(tree, multiprocess=True)
    wanted = tj.measure(local)
    for name, x in tree.items():
        float32 = name.startswith("float32") and x.size > 8192
        exact = not float32 or in_order(x.shape, places_of(x.shape, x.sharding))
        assert_same(found[name], wanted[name], local[name], exact=exact)
    (spec,) = PytreeSource(tree["float32 (1024, 2048)"]).specs
    x = tree["float32 (1024, 2048)"]
    plan = ShardPlan.of(spec, x.sharding, groups=None, histogram=True)
    with threads() as pool:
        state = shard_state(plan, x, pool)
    for wrong in ([state], [state, state, state]):
        with pytest.raises(tj.UsageError, match="each once"):
            merge_states(plan, wrong)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print("done")
