"""Quantised tensors in safetensors: every layout from weights that are known, read back, fitted, taken apart."""

from __future__ import annotations

import io
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

import teleojax as tj
from teleojax._errors import CorruptInputError
from teleojax.sources import Source, TensorSpec, open_source
from teleojax.sources._index import files_of
from tests.quantisers import QUANTISERS, Written, gptq
from tests.reference import assert_moments
from tests.sharding.processes import FIT, LAUNCH, finish, lines

RNG = np.random.default_rng(0)
W = (RNG.lognormal(-4, 1, (96, 512)) * RNG.choice([-1, 1], (96, 512))).astype(np.float32)
PLAIN = RNG.normal(size=(4, 4)).astype(np.float32)


def specs_of(target: Any) -> dict[str, TensorSpec]:
    return {s.name: s for s in open_source(target).specs}


def values_of(source: Source, name: str) -> np.ndarray:
    spec = next(s for s in source.specs if s.name == name)
    assert spec.skip is None, spec.skip
    with source.open(spec.storage) as storage:
        return storage.window(0, spec.nbytes, None).view(np.float32).reshape(spec.shape)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_values_are_those_of_the_layout(tmp_path: Path, kind: str) -> None:
    written = QUANTISERS[kind](W)
    source = open_source(written.save(tmp_path))
    spec = next(s for s in source.specs if s.name == written.name)
    assert (spec.dtype, spec.stored_as, spec.shape) == ("float32", written.stored_as, written.values.shape)
    np.testing.assert_array_equal(values_of(source, written.name), written.values)
    raw, sizes = written.values.tobytes(), np.random.default_rng(1).integers(0, W.nbytes, (12, 2))
    with source.open(spec.storage) as storage:
        for start, stop in ((0, 4), (2044, 2053), (2048, 4096), (W.nbytes - 5, W.nbytes), *np.sort(sizes).tolist()):
            assert storage.window(start, stop, None).tobytes() == raw[start:stop]
    others = [s for s in source.specs if s.name != written.name]
    assert all(s.skip is not None and s.skip.endswith(f" of {written.name}") for s in others)
    assert len(others) == len(written.tensors) - 1


@pytest.mark.parametrize("kind", ["gptq shuffled", "nf4 nested", "fp8 block"])
def test_measured_as_their_values(tmp_path: Path, kind: str) -> None:
    written = QUANTISERS[kind](W)
    measured = tj.measure(written.save(tmp_path))
    assert set(measured) == {written.name}
    assert measured[written.name].histogram == tj.measure({"w": written.values})["w"].histogram
    assert_moments(measured[written.name].moments, written.values)
    assert tj.fit(tmp_path)[written.name].dtype == written.stored_as


@pytest.mark.parametrize("shape", [(33, 128), (128, 33), (1, 4096), (300, 130)])
def test_blocks_that_do_not_fit_the_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    w = RNG.normal(0, 0.02, shape).astype(np.float32)
    for kind in ("fp8 block", "fp8 channel", "int8 channel", "llm.int8", "nf4", "nf4 nested", "packed 8"):
        written = QUANTISERS[kind](w)
        source = open_source(written.save(tmp_path))
        np.testing.assert_array_equal(values_of(source, written.name), written.values, err_msg=kind)
        stats = tj.measure(source, cells=True)[written.name]
        assert stats.cells is not None, kind
        assert stats.cells.n == w.size, kind


def test_rows_longer_than_a_piece(tmp_path: Path) -> None:
    w = RNG.normal(0, 0.02, (8, 3 << 17)).astype(np.float32)
    written = gptq(symmetric=False)(w)
    source = open_source(written.save(tmp_path))
    spec = next(s for s in source.specs if s.name == "a.weight")
    with source.open(spec.storage) as storage:
        got = storage.window(1 << 20, 3 << 20, None)
        assert got.tobytes() == written.values.reshape(-1)[1 << 18 : 3 << 18].tobytes()


# The law before rounding

N = 1 << 17
LAWS = {"lognormal": {"mu": -4.0, "sigma": 1.0}, "halfnormal": {"scale": 0.02}}
TWO_BITS = "gptq 2"  # most values are zero: no more is asked of it than to be read
WITHIN = {kind: 0.03 if "8" in kind and kind != "fp8 e5m2" else 0.05 for kind in QUANTISERS if kind != TWO_BITS}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tj.Report:
    stats = {}
    for law, params in LAWS.items():
        rng = np.random.default_rng(1)
        x = tj.FAMILIES[law].sample(rng, params, N).reshape(-1, 1024)
        w = (x * rng.choice([-1, 1], x.shape)).astype(np.float32)
        for kind in WITHIN:
            written = QUANTISERS[kind](w)
            folder = written.save(tmp_path_factory.mktemp("law"))
            stats[f"{law} {kind}"] = tj.measure(folder, cells=True)[written.name]
            (folder / "model.safetensors").unlink()
    return tj.fit(stats, families=tuple(LAWS), method="interval")


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", WITHIN)
def test_interval_likelihood_gives_the_law_back(fitted: tj.Report, law: str, kind: str) -> None:
    fit = fitted[f"{law} {kind}"].families[law]
    for name, value in LAWS[law].items():
        assert fit.params[name] == pytest.approx(value, rel=WITHIN[kind]), name
    assert fit.n == N
    assert fitted[f"{law} {kind}"].best_family == law


@pytest.mark.parametrize("kind", ["nf4", "int8 channel", "fp8 tensor", "gptq 4", "int8 tensor"])
def test_groups_have_cells_of_their_own(tmp_path: Path, kind: str) -> None:
    w = RNG.normal(0, 0.02, (96, 1056)).astype(np.float32)  # groups that do not end where blocks do
    written = QUANTISERS[kind](w[:, :1024] if kind.startswith("gptq") else w)
    folder = written.save(tmp_path)
    stats, alone = (
        tj.measure(folder, groups=7, cells=True)["a.weight"],
        tj.measure(folder, cells=True)["a.weight"].cells,
    )
    assert [g.cells.n for g in stats.groups] == [g.moments.size for g in stats.groups]
    np.testing.assert_array_equal(stats.cells.counts, alone.counts)
    np.testing.assert_allclose(stats.cells.upper, alone.upper, rtol=1e-9)


@pytest.mark.parametrize("kind", ["gptq asymmetric", "gptq shuffled", "awq", "packed 4", "int8 group", "int8 channel"])
def test_spacing_is_the_scale_of_the_values(tmp_path: Path, kind: str) -> None:
    written = QUANTISERS[kind](W)
    source = open_source(written.save(tmp_path))
    with source.open(next(s.storage for s in source.specs if s.stored_as)) as storage:
        spacing = storage.spacing(0, W.nbytes)  # pyright: ignore[reportAttributeAccessIssue]
    steps = written.values.reshape(len(spacing), -1) / spacing[:, None]
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)  # whole numbers of steps from zero
    widest = np.abs(np.rint(steps)).max()
    assert 4 <= widest <= 255
    assert len(spacing) == W.size // {"gptq shuffled": 1, "int8 channel": 256}.get(kind, 128)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "mxfp4", "nvfp4", "fp8 channel", "fp8 e5m2"])
def test_cells_of_unequal_levels_hold_what_was_rounded(tmp_path: Path, kind: str) -> None:
    written = QUANTISERS[kind](W)
    source = open_source(written.save(tmp_path))
    spec = next(s for s in source.specs if s.stored_as)
    with source.open(spec.storage) as storage:
        width = storage.spacing(0, spec.nbytes)  # pyright: ignore[reportAttributeAccessIssue]
        middle = storage.middles(0, spec.nbytes)  # pyright: ignore[reportAttributeAccessIssue]
        late = storage.middles(spec.nbytes - 1024, spec.nbytes)  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(late, middle[-256:])
    x = np.abs(W.reshape(-1)).astype(np.float64)
    inside = np.abs(x - middle) <= width / 2 * (1 + 1e-5)
    assert inside.mean() > 0.97  # not those beyond the last level, nor zeros' side where levels are uneven
    assert (np.abs(written.values.reshape(-1)) <= middle + width).all()


# Where parts lie, and what cannot be read


@pytest.mark.parametrize("kind", QUANTISERS)
def test_arrays_in_memory_are_measured_as_in_a_file(tmp_path: Path, kind: str) -> None:
    written = QUANTISERS[kind](W)
    tensors = {n: np.asarray(a, order="C") for n, a in written.tensors.items()} | {"plain": PLAIN}
    save_file(tensors, tmp_path / "m.safetensors")  # without its configuration, which arrays have not either
    of_file, of_arrays = tj.measure(tmp_path), tj.measure(tensors)
    assert dict(of_arrays) == dict(of_file)
    assert of_arrays.skipped == of_file.skipped
    assert set(of_arrays) == {"plain"} | ({written.name} if not kind.startswith("gptq") else set())  # which asks for it


@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
def test_float8_of_any_library_has_its_scale(library: str) -> None:
    written = QUANTISERS["fp8 channel"](W)
    arrays: dict[str, Any] = dict(written.tensors)
    if library == "jax":
        arrays = {n: jnp.asarray(a) for n, a in arrays.items()}
    elif library == "torch":
        torch = pytest.importorskip("torch")
        view = {"float8_e4m3fn": (np.uint8, torch.float8_e4m3fn)}
        arrays = {
            n: torch.from_numpy(a.view(v[0])).view(v[1]) if (v := view.get(a.dtype.name)) else torch.from_numpy(a)
            for n, a in arrays.items()
        }
    tree = {"layers": [{n.removeprefix("a."): a for n, a in arrays.items()}]}
    measured = tj.measure(tree)
    assert measured["layers.0.weight"] == tj.measure({"w": written.values})["w"]
    assert measured.specs["layers.0.weight"].stored_as == written.stored_as
    assert measured.skipped == {"layers.0.weight_scale": "scale of layers.0.weight"}
    as_stored = tj.measure(tree, split=False)
    assert as_stored.specs["layers.0.weight"].dtype == "float8_e4m3fn"
    if library != "torch":
        moved = tj.utility_gradient(tree)["layers"][0]
        assert moved["weight"].dtype == arrays["a.weight"].dtype
        assert np.asarray(moved["weight"], np.float32).any()
        with pytest.raises(tj.UsageError, match=r"the values that 'layers\.0\.weight' stands for.*split=False"):
            tj.utility_gradient(tree, stats=measured)
        again = tj.utility_gradient(tree, stats=as_stored)["layers"][0]["weight"]
        assert np.asarray(again).tobytes() == np.asarray(moved["weight"]).tobytes()


def test_parts_in_several_shards(tmp_path: Path) -> None:
    written = QUANTISERS["awq"](W)
    written.save(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    home = {}
    for i, (name, array) in enumerate(whole.items()):
        home[name] = f"model-{i}.safetensors"
        save_file({name: array}, tmp_path / home[name])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": home}))
    source = open_source(tmp_path)
    np.testing.assert_array_equal(values_of(source, "a.weight"), written.values)
    assert {p.name for p in files_of(source)} == set(home.values())


def test_a_run_is_resumed(tmp_path: Path) -> None:
    folder = QUANTISERS["nf4"](W).save(tmp_path / "m")
    first = tj.measure(folder, resume=tmp_path / "r")
    again = tj.measure(folder, resume=tmp_path / "r")
    assert again["a.weight"].histogram == first["a.weight"].histogram == tj.measure(folder)["a.weight"].histogram


def test_two_processes_share_the_values(tmp_path: Path) -> None:
    w = RNG.normal(0, 0.02, (2048, 4096)).astype(np.float32)  # more than one block of 16 MiB
    folder = QUANTISERS["gptq 4"](w).save(tmp_path / "m")
    tj.fit(folder, families=("halfnormal",)).to_jsonl(tmp_path / "1.jsonl")
    command = [*FIT, str(folder), "--families", "halfnormal", "--format", "jsonl", "-o", str(tmp_path / "2.jsonl")]
    finish([*LAUNCH, "-n", "2", "--", *command, "--multiprocess"])
    one, two = lines(tmp_path / "1.jsonl"), lines(tmp_path / "2.jsonl")
    assert one == two
    assert any("gptq-int4" in line for line in one)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_stream_is_not_misread(kind: str) -> None:
    written = QUANTISERS[kind](W)
    tensors = {name: np.asarray(array, order="C") for name, array in written.tensors.items()}
    measured = tj.measure(io.BytesIO(save({**tensors, "plain": PLAIN})))
    assert set(measured) == {"plain"}
    reasons = " ".join(measured.skipped.values())
    assert "not dequantised from a stream" in reasons
    assert f" of {written.name}" in reasons


@pytest.mark.parametrize("kind", ["nf4", "fp8 tensor", "gptq 4"])
def test_a_pytorch_file_is_not_misread(tmp_path: Path, kind: str) -> None:
    torch, load = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch").load_file
    folder = QUANTISERS[kind](W).save(tmp_path)
    held = {**load(folder / "model.safetensors"), "plain": torch.from_numpy(PLAIN)}
    torch.save(held, tmp_path / "m.pt")
    measured = tj.measure(tmp_path / "m.pt")
    assert set(measured) == {"plain"}
    assert any("convert it to safetensors" in reason for reason in measured.skipped.values())


def test_unaligned_parts(tmp_path: Path) -> None:
    written = QUANTISERS["packed asymmetric"](W)
    written.save(tmp_path)
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    shifted = (length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :]
    (tmp_path / "model.safetensors").write_bytes(shifted)
    np.testing.assert_array_equal(values_of(open_source(tmp_path), "a.weight"), written.values)


def test_memory_is_bounded(tmp_path: Path) -> None:
    w = RNG.normal(0, 0.02, (2048, 2048)).astype(np.float32)
    for kind in ("gptq shuffled", "nf4 nested", "mxfp4", "fp8 block"):
        source = open_source(QUANTISERS[kind](w).save(tmp_path))
        spec = next(s for s in source.specs if s.stored_as)
        buffer = np.empty(spec.nbytes, np.uint8)
        with source.open(spec.storage) as storage:
            tracemalloc.start()
            storage.window(0, spec.nbytes, buffer)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 12 << 20, kind  # of values of 16 MiB


# Layouts that do not agree with themselves


def changed(written: Written, name: str, array: np.ndarray | None, **config: Any) -> Written:
    tensors = {n: a for n, a in {**written.tensors, name: array}.items() if a is not None}
    quantisation = {**written.config.get("quantization_config", {}), **config}
    settings = {"quantization_config": {k: v for k, v in quantisation.items() if v is not ...}}
    return Written(tensors, written.values, written.stored_as, settings, written.name)


Change = Callable[[Written], Written]
STATE = ".quant_state.bitsandbytes__nf4"


def state(**fields: Any) -> Change:
    """Other fields in the state of the quantisation."""

    def change(written: Written) -> Written:
        held = json.loads(written.tensors[f"a.weight{STATE}"].tobytes()) | fields
        raw = json.dumps({k: v for k, v in held.items() if v is not ...}).encode()
        return changed(written, f"a.weight{STATE}", np.frombuffer(raw, np.uint8))

    return change


def part(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Change:
    return lambda written: changed(written, name, change(written.tensors[name]))


def config(**fields: Any) -> Change:
    return lambda written: changed(written, "plain", PLAIN, **fields)


def gone(_: np.ndarray) -> None:
    return None


def shorter(array: np.ndarray) -> np.ndarray:
    return array[..., :-1].copy()


def doubles(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, array])


REFUSED: list[tuple[str, Change, str]] = [
    ("gptq 4", config(group_size=0), "group_size 0"),
    ("gptq 4", config(group_size=-5), "group_size -5"),
    ("gptq 4", config(group_size=10**30), "4 groups where group_size 1000000"),
    ("gptq 4", config(group_size="128"), "group_size '128'"),
    ("gptq 4", config(group_size=True), "group_size 'True'"),
    ("gptq 4", config(bits=8), "in 8 bits"),
    ("gptq 4", config(bits=10**40), "bits"),
    ("gptq 4", config(checkpoint_format="marlin"), "'marlin' does not say"),
    ("gptq 4", config(checkpoint_format=["gptq"]), "does not say"),
    ("gptq 4", config(quant_method="hqq"), "'hqq' packs in ways of its own"),
    ("gptq 4", config(quant_method="awq"), "not how awq packs"),
    ("gptq 4", config(**dict.fromkeys(("quant_method", "bits", "group_size", "checkpoint_format"), ...)), "no config"),
    ("gptq 4", part("a.scales", gone), "no scales"),
    ("gptq 4", part("a.qzeros", gone), "no qzeros"),
    ("gptq 4", part("a.scales", shorter), "not how gptq packs"),
    ("gptq 4", part("a.scales", doubles), "groups"),
    ("gptq 4", part("a.qzeros", shorter), "qzeros"),
    ("gptq 4", part("a.g_idx", shorter), "g_idx of shape"),
    ("gptq 4", part("a.g_idx", lambda a: a.astype(np.float32)), "g_idx of type float32"),
    ("gptq 4", part("a.qweight", lambda a: a[None]), "qweight of shape"),
    ("gptq 4", part("a.scales", lambda a: a[:0]), "is empty"),
    ("gptq 4", lambda w: changed(w, "a.weight", PLAIN), "another tensor a.weight"),
    ("awq", config(version="gemv"), "version 'gemv'"),
    ("awq", config(group_size=0), "group_size 0"),
    ("awq", config(bits=8), "of 4 bits"),
    ("awq", config(quant_method="gptq"), "not how gptq packs"),
    ("awq", part("a.qzeros", shorter), "qzeros of shape"),
    ("awq", part("a.scales", lambda a: a[:3].copy()), "qzeros of shape"),
    ("nf4", part(f"a.weight{STATE}", gone), "no quant_state"),
    ("nf4", part(f"a.weight{STATE}", lambda _: np.frombuffer(b"{nonsense", np.uint8)), "not JSON"),
    ("nf4", part(f"a.weight{STATE}", lambda _: np.frombuffer(b"[" * 5000, np.uint8)), "not JSON"),
    ("nf4", part(f"a.weight{STATE}", lambda a: a.astype(np.int32)), "of type int32"),
    ("nf4", part(f"a.weight{STATE}", lambda _: np.zeros((1 << 20) + 1, np.uint8)), "cannot be read"),
    ("nf4", part("a.weight.absmax", gone), "no absmax"),
    ("nf4", part("a.weight.absmax", shorter), "absmax of shape"),
    ("nf4", part("a.weight.quant_map", shorter), "quant_map of shape"),
    ("nf4", state(shape=[10**12, 10**12]), "bytes for a shape"),
    ("nf4", state(shape=[-96, -512]), "the shape"),
    ("nf4", state(shape="96"), "the shape"),
    ("nf4", state(shape=[]), "bytes for a shape"),
    ("nf4", state(shape=[0]), "bytes for a shape"),
    ("nf4", state(blocksize=0), "the blocksize 0"),
    ("nf4", state(blocksize=10**20), "absmax of shape"),
    ("nf4", state(blocksize=...), "the blocksize None"),
    ("nf4 nested", part("a.weight.nested_absmax", gone), "absmax of type uint8"),
    ("nf4 nested", part("a.weight.nested_quant_map", gone), "no nested_quant_map"),
    ("nf4 nested", state(nested_blocksize=-1), "nested_blocksize"),
    ("nf4 nested", state(nested_offset="much"), "nested_offset"),
    ("nf4 nested", state(nested_offset=10**400), "nested_offset"),
    ("llm.int8", part("a.SCB", shorter), "SCB of shape"),
    ("llm.int8", part("a.weight_format", lambda _: np.asarray(2, np.uint8)), "other than rows"),
    ("packed 4", part("a.weight_shape", gone), "no weight_shape"),
    ("packed 4", part("a.weight_scale", gone), "no weight_scale"),
    ("packed 4", part("a.weight_shape", lambda a: a * 2), "weight_packed of shape"),
    ("packed 4", part("a.weight_shape", lambda a: a - 10**9), "weight_packed of shape"),
    ("packed 4", part("a.weight_scale", lambda a: a[:, :3].copy()), "3 groups"),
    ("packed 4", part("a.weight_scale", lambda a: a[:3].copy()), "a weight_scale of shape"),
    ("packed asymmetric", part("a.weight_zero_point", shorter), "weight_zero_point of shape"),
    ("int8 channel", part("a.weight_scale", lambda a: a[:3].copy()), "a scale of shape"),
    ("int8 channel", part("a.weight_scale", lambda a: a.astype(np.int32)), "weight_scale of type int32"),
    ("int8 asymmetric", part("a.weight_zero_point", doubles), "weight_zero_point of shape"),
    ("fp8 block", config(weight_block_size=[64, 64]), "in blocks of"),
    ("fp8 block", config(weight_block_size=[0, 128]), "blocks of"),
    ("fp8 block", config(weight_block_size=128), "blocks of 128"),
    ("fp8 block", part("a.weight_scale_inv", doubles), "in blocks of"),
    ("fp8 channel", lambda w: changed(w, "a.weight_zero_point", np.zeros((96, 1), np.int8)), "zero points of float8"),
    ("mxfp4", part("a.down_proj_scales", shorter), "scales of shape"),
    ("mxfp4", part("a.down_proj_blocks", shorter), "blocks of shape"),
    ("nvfp4", part("a.weight_global_scale", gone), "without their second scale"),
    ("nvfp4", part("a.weight_scale", shorter), "weight_scale of shape"),
    ("nvfp4 modelopt", part("a.weight_scale_2", gone), "nobody knows how they are packed"),
]


@pytest.mark.parametrize(("kind", "change", "words"), REFUSED)
def test_parts_that_do_not_agree_are_skipped(tmp_path: Path, kind: str, change: Change, words: str) -> None:
    written = change(QUANTISERS[kind](W))
    specs = specs_of(written.save(tmp_path))
    left = {name: s for name, s in specs.items() if s.skip is None}
    assert set(left) <= {"plain", "a.weight"}
    assert all(s.stored_as is None and s.shape == PLAIN.shape for s in left.values())
    reason = next(s.skip for s in specs.values() if s.skip is not None and s.skip.startswith("not read as"))
    assert re.search(words, reason), reason
    assert len(reason) < 300


@pytest.mark.parametrize(("kind", "name"), [("gptq shuffled", "a.g_idx"), ("packed shuffled", "a.weight_g_idx")])
@pytest.mark.parametrize("index", [-7, 4, 2**31 - 1])
def test_groups_out_of_range_fail(tmp_path: Path, kind: str, name: str, index: int) -> None:
    written = QUANTISERS[kind](W)
    written.tensors[name][17] = index
    measured = tj.measure(changed(written, "plain", PLAIN, bits=4).save(tmp_path))
    if kind.startswith("packed") and index < 0:  # as the package has it, groups are then in order
        assert set(measured) == {"a.weight", "plain"}
        return
    assert set(measured) == {"plain"}
    assert str(index) in measured.failed["a.weight"]
    with pytest.raises(CorruptInputError, match="download or write it again"):
        values_of(open_source(tmp_path), "a.weight")


def test_blocks_of_any_size_hold_the_whole(tmp_path: Path) -> None:
    w = W[:8, :8].copy()
    written = state(blocksize=10**20)(QUANTISERS["nf4"](w))
    np.testing.assert_array_equal(values_of(open_source(written.save(tmp_path)), "a.weight"), written.values)
    written = config(weight_block_size=[10**30, 10**40])(QUANTISERS["fp8 block"](w))
    np.testing.assert_array_equal(values_of(open_source(written.save(tmp_path)), "a.weight"), written.values)
    tall = np.tile(w, (16, 16))
    written = config(weight_block_size=[10**30, 10**40])(QUANTISERS["fp8 block"](tall))
    np.testing.assert_array_equal(values_of(open_source(written.save(tmp_path)), "a.weight"), written.values)
    written = state(nested_blocksize=10**20)(QUANTISERS["nf4 nested"](tall))
    np.testing.assert_array_equal(values_of(open_source(written.save(tmp_path)), "a.weight"), written.values)


def test_an_order_of_zeros_is_the_usual_one(tmp_path: Path) -> None:
    written = QUANTISERS["gptq 4"](W)
    source = open_source(changed(written, "a.g_idx", np.zeros(512, np.int32)).save(tmp_path))
    np.testing.assert_array_equal(values_of(source, "a.weight"), written.values)


@pytest.mark.parametrize(("kind", "file"), [("gptq v2", "quantize_config.json"), ("awq", "quant_config.json")])
def test_configurations_of_their_own(tmp_path: Path, kind: str, file: str) -> None:
    written = QUANTISERS[kind](W)
    written.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / file).write_text(json.dumps(written.config["quantization_config"]))
    np.testing.assert_array_equal(values_of(open_source(tmp_path), "a.weight"), written.values)


def test_one_group_of_any_size(tmp_path: Path) -> None:
    written = gptq(group=512)(W)
    for size in (-1, 512, 10**30):
        source = open_source(changed(written, "plain", PLAIN, group_size=size).save(tmp_path))
        np.testing.assert_array_equal(values_of(source, "a.weight"), written.values)


def test_a_name_alone_makes_no_layout(tmp_path: Path) -> None:
    counts = RNG.integers(0, 9, (8, 8))
    tensors = {
        "qweight": counts.astype(np.int32),
        "b.qweight": counts.astype(np.int64),
        "b.scales": PLAIN,
        "c.W_q": counts.astype(np.uint8),
        "c.scale": PLAIN,
        "d.weight": counts.astype(np.int8),
        "e_scale": PLAIN,
        "f.weight": PLAIN.astype(ml_dtypes.float8_e4m3fn),
        "g.weight": PLAIN,
        "g.weight_scale": PLAIN,
        "h.quant_state.bitsandbytes__nf4": counts.astype(np.uint8),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    specs = specs_of(tmp_path / "m.safetensors")
    assert {n for n, s in specs.items() if s.skip is None} == {
        "b.scales", "c.scale", "e_scale", "f.weight", "g.weight", "g.weight_scale",
    }  # fmt: skip
    packed = ": it looks packed, in a layout that is not read or lacks its parts"
    assert specs["qweight"].skip == "not read as GPTQ or AWQ: no scales"
    assert specs["b.qweight"].skip == f"integer type int64{packed}"
    assert specs["c.W_q"].skip == specs["h.quant_state.bitsandbytes__nf4"].skip == f"integer type uint8{packed}"
    assert specs["d.weight"].skip == "integer type int8"


@pytest.mark.parametrize("kind", QUANTISERS)
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    folder = QUANTISERS[kind](W[:8]).save(tmp_path) if kind.startswith("llm") else QUANTISERS[kind](W).save(tmp_path)
    raw = (folder / "model.safetensors").read_bytes()
    for n in (len(raw) - 1, len(raw) // 2, 9):
        (folder / "model.safetensors").write_bytes(raw[:n])
        with pytest.raises(CorruptInputError):
            open_source(folder)


def test_any_mutation_ends_in_values_or_a_reason(tmp_path: Path) -> None:
    rng, read, kinds = np.random.default_rng(0), 0, list(QUANTISERS)
    w = W[:32, :128].copy()
    for i in range(300):
        written = QUANTISERS[kinds[i % len(kinds)]](w)
        tensors = {n: np.asarray(a, order="C") for n, a in written.tensors.items()}
        name = rng.choice(sorted(tensors))
        array = tensors[name]
        match rng.integers(5):
            case 0:
                del tensors[name]
            case 1:
                tensors[name] = array.reshape(-1)
            case 2 if array.ndim:
                tensors[name] = array[: rng.integers(len(array))].copy()
            case 3:
                tensors[name] = array.reshape(-1).view(np.uint8).copy()
            case _:
                noise = rng.integers(0, 256, array.nbytes).astype(np.uint8)
                tensors[name] = noise.view(array.dtype).reshape(array.shape)
        source = open_source(Written(tensors, w, "", written.config).save(tmp_path))
        for spec in source.specs:
            if spec.skip is None:
                try:
                    with source.open(spec.storage) as storage:
                        found = storage.window(spec.offset, spec.offset + spec.nbytes, None)
                except CorruptInputError:
                    continue
                assert len(found) == spec.nbytes
                read += spec.stored_as is not None
    assert 30 < read < 300


# The layouts' own libraries


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(96, 512), (33, 77)])
def test_bitsandbytes_writes_the_same(tmp_path: Path, kind: str, nested: bool, shape: tuple[int, int]) -> None:
    torch, save_torch = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch").save_file
    functional = pytest.importorskip("bitsandbytes.functional")
    w = torch.from_numpy(W.reshape(-1)[: shape[0] * shape[1]].reshape(shape).copy())
    packed, state = functional.quantize_4bit(w, quant_type=kind, compress_statistics=nested, blocksize=64)
    parts = {f"a.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    save_torch({"a.weight": packed, **parts}, tmp_path / "m.safetensors")
    source = open_source(tmp_path / "m.safetensors")
    expected = functional.dequantize_4bit(packed, state).numpy()
    np.testing.assert_allclose(values_of(source, "a.weight"), expected, rtol=2e-6, atol=0)
    assert specs_of(source)["a.weight"].stored_as == kind


def test_bitsandbytes_int8_is_read_as_it_dequantises(tmp_path: Path) -> None:
    torch, functional = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes.functional")
    codes, scale, _ = functional.int8_vectorwise_quant(torch.from_numpy(W).half())
    save_file({"a.weight": codes.numpy(), "a.SCB": scale.numpy()}, tmp_path / "m.safetensors")
    expected = functional.int8_vectorwise_dequant(codes, scale).numpy()
    np.testing.assert_allclose(
        values_of(open_source(tmp_path / "m.safetensors"), "a.weight"), expected, rtol=3e-7, atol=0
    )


@pytest.mark.parametrize(
    "weights",
    [
        {"num_bits": 4, "strategy": "group", "group_size": 128},
        {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
        {"num_bits": 8, "strategy": "channel"},
        {"num_bits": 2, "strategy": "group", "group_size": 64},
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
    ],
    ids=lambda w: f"{w.get('type', 'int')}{w['num_bits']}-{w.get('group_size')}",
)
def test_compressed_tensors_writes_the_same(tmp_path: Path, weights: dict[str, Any]) -> None:
    torch, save_torch = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch").save_file
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    arguments = quantization.QuantizationArgs(**weights)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    floats, group = weights.get("type") == "float", weights.get("group_size", W.shape[1])
    parts = np.abs(W.reshape(len(W), -1, group)).max(axis=2)
    held = {"weight": torch.from_numpy(W)}
    if floats and group == 16:
        kind = compressors.NVFP4PackedCompressor
        shared = np.float32(448 * 6 / np.abs(W).max())
        scale = (torch.from_numpy(parts / 6 * shared)).to(torch.float8_e4m3fn).to(torch.float32)
        held["weight_global_scale"] = torch.tensor([shared])
    elif floats:
        kind = compressors.MXFP4PackedCompressor
        scale = torch.from_numpy(np.exp2(np.floor(np.log2(parts)) - 2))
    else:
        kind = compressors.PackedQuantizationCompressor
        scale = torch.from_numpy(parts / (2 ** weights["num_bits"] / 2 - 0.5))
    held["weight_scale"] = scale
    if not weights.get("symmetric", True):
        held["weight_zero_point"] = torch.from_numpy(RNG.integers(-3, 4, parts.shape).astype(np.int8))
    stored = kind.compress(held, scheme)
    save_torch({f"a.{k}": v.contiguous() for k, v in stored.items()}, tmp_path / "m.safetensors")
    expected = kind.decompress(stored, scheme)["weight"].float().numpy()
    if "weight_global_scale" in stored:  # the package rounds these scales and values to bfloat16
        codes = kind.decompress(
            {**stored, "weight_scale": torch.ones_like(stored["weight_scale"]), "weight_global_scale": None}, scheme
        )
        each = (stored["weight_scale"].float() / stored["weight_global_scale"]).numpy()
        expected = codes["weight"].float().numpy() * np.repeat(each, group, axis=1)
    np.testing.assert_array_equal(values_of(open_source(tmp_path / "m.safetensors"), "a.weight"), expected)
