"""Pytrees in memory: names, lazy conversion, and what is no array."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from teleojax._errors import InputError
from teleojax.sources import open_source
from teleojax.sources._index import Source, files_of
from teleojax.sources._pytree import PytreeSource, number_repeats


def read_values(source: Source) -> dict[str, bytes]:
    out = {}
    for spec in source.specs:
        with source.open(spec.storage) as storage:
            if spec.skip is None:
                out[spec.name] = storage.window(spec.offset, spec.offset + spec.nbytes, None).tobytes()
    return out


class Layer(NamedTuple):
    weight: object
    bias: object


def test_names_join_keys_indices_and_attributes():
    w = np.ones(2, np.float32)
    tree = {"h": [{"w": w}, Layer(w, None)], "t": (w,)}
    source = PytreeSource(tree)
    assert isinstance(source, Source)
    assert [s.name for s in source.specs] == ["h.0.w", "h.1.weight", "t.0"]
    assert source.name == "pytree"
    assert PytreeSource(tree, name="params").name == "params"


def test_integer_keys_and_a_bare_array():
    assert [s.name for s in PytreeSource({3: np.ones(1), 1: np.ones(1)}).specs] == ["1", "3"]
    (spec,) = PytreeSource(np.ones((2, 3))).specs
    assert (spec.name, spec.shape, spec.dtype, spec.nbytes) == ("array", (2, 3), "float64", 48)


def test_names_that_repeat_are_numbered():
    assert list(number_repeats(["a", "a", "b", "a#1", "a"])) == ["a", "a#1", "b", "a#1#1", "a#2"]
    tree = {"a": {"b": np.array([1.0])}, "a.b": np.array([2.0])}
    assert read_values(PytreeSource(tree)) == {"a.b": np.array([1.0]).tobytes(), "a.b#1": np.array([2.0]).tobytes()}


@pytest.mark.parametrize(
    "dtype",
    [
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2fnuz,
    ],
)
def test_values_of_every_float_type(dtype):
    want = np.linspace(-2, 2, 12).astype(dtype).reshape(3, 4)
    tree = {"np": want, "t": want.T, "step": want[:, ::2], "scalar": want[0, 0]}
    if dtype != np.float64:  # JAX would narrow it
        tree["jax"] = jnp.asarray(want)
    source = PytreeSource(tree)
    assert all(s.dtype == np.dtype(dtype).name and s.skip is None for s in source.specs)
    assert read_values(source) == {n: np.asarray(a).tobytes() for n, a in tree.items()}


def test_big_endian_values_are_swapped():
    source = PytreeSource({"w": np.array([1.0, 2.0], ">f4")})
    assert source.specs[0].dtype == "float32"
    assert read_values(source)["w"] == np.array([1.0, 2.0], "<f4").tobytes()


def test_contiguous_arrays_are_not_copied():
    a = np.arange(6, dtype=np.float32)
    j = jnp.arange(6, dtype=jnp.float32)
    source = PytreeSource({"a": a, "j": j})
    for name, array in {"a": a, "j": np.asarray(j)}.items():
        with source.open(name) as storage:
            assert storage.size == 24
            assert np.shares_memory(storage.window(0, 24, None), array)


def test_conversion_waits_until_opening(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("copied at construction")

    tree = {"w": np.ones((4, 4), ">f4").T, "j": jnp.ones(3)}
    with monkeypatch.context() as m:
        m.setattr(np, "ascontiguousarray", refuse)
        m.setattr(np, "asarray", refuse)
        source = PytreeSource(tree)
        with pytest.raises(AssertionError, match="copied"):
            source.open("w")
    assert read_values(source)["w"] == np.ones(16, np.float32).tobytes()


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (0.5, "not an array: float"),
        (3, "not an array: int"),
        ("adam", "not an array: str"),
        (np.tanh, "not an array: ufunc"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), "not an array: ShapeDtypeStruct"),
        (np.arange(3), "integer type int64"),
        (np.ones(2, ml_dtypes.int4), "integer type int4"),
        (np.array(["a"]), "type str32 is not read"),
        (np.array([None]), "type object is not read"),
        (np.ones(2, complex), "complex type complex128: only its modulus can be measured"),
        (np.ma.masked_array([1.0, 2.0], [False, True]), "a masked array"),
        (jax.random.key(0), "a random key"),
        (jnp.ones((0, 3)), "empty"),
    ],
)
def test_what_is_not_read_is_listed_with_its_reason(leaf, reason):
    source = PytreeSource({"x": leaf, "w": np.ones(1, np.float32)})
    assert {s.name: s.skip for s in source.specs} == {"w": None, "x": reason}
    assert read_values(source) == {"w": np.ones(1, np.float32).tobytes()}


def test_none_and_empty_trees_have_no_tensors():
    assert PytreeSource({"a": None, "b": []}).specs == ()


def test_a_sharded_array_of_this_process_is_read():
    mesh = jax.make_mesh((1,), ("x",))
    array = jax.device_put(jnp.arange(8.0), jax.NamedSharding(mesh, jax.P("x")))
    assert read_values(PytreeSource({"w": array}))["w"] == np.arange(8, dtype=np.float32).tobytes()


def test_an_array_held_in_part_is_listed_but_not_opened(monkeypatch):
    array = jnp.ones(4)
    monkeypatch.setattr(type(array), "is_fully_addressable", property(lambda _: False))
    source = PytreeSource({"l": {"w": array}})
    assert source.leaf("l.w") is array
    with pytest.raises(InputError, match=r"leaf 'l\.w'.*only a part"):
        source.open("l.w")


def test_a_traced_array_is_refused():
    @jax.jit
    def inside(x):
        PytreeSource({"w": x})
        return x

    with pytest.raises(InputError, match="traced array"):
        inside(jnp.ones(3))


def test_a_deleted_array_is_refused():
    array = jnp.arange(4.0) + 1
    source = PytreeSource({"w": array})
    array.delete()
    with pytest.raises(InputError, match=r"leaf 'w'.*deleted"):
        source.open("w")


def test_a_tree_of_mixed_keys_is_refused():
    with pytest.raises(InputError, match="cannot flatten"):
        PytreeSource({"a": np.ones(1), 1: np.ones(1)})


def test_a_leaf_that_is_named_like_a_file_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "w").write_bytes(b"something else")
    assert files_of(open_source({"w": np.ones(3, np.float32), "x" * 5000: np.ones(3, np.float32)})) == ()
