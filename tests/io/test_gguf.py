"""GGUF: files written by the `gguf` package, read back, damaged, and fitted by what quantisation left of their law."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

import teleojax as tj
from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources import Source, open_source
from teleojax.sources._gguf import GgufSource
from teleojax.sources._gguf_blocks import SPACING
from tests.io.twin import read_all
from tests.reference import assert_moments

RNG = np.random.default_rng(0)
W = (RNG.normal(0, 0.02, (8, 512)) * 1.0).astype(np.float32)
WRITTEN = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", "TQ2_0")  # by the package itself


def write(path: Path, tensors: dict[str, tuple[np.ndarray, T | None]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"token {i}" for i in range(50)])
    writer.add_array("scores", [0.5] * 50)
    writer.add_bool("flag", True)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def q4_k(values: np.ndarray) -> np.ndarray:
    """Blocks of 256 in q4_K, by its published layout: 8 parts, each with a scale and a minimum of six bits."""
    x = values.reshape(-1, 8, 32).astype(np.float64)
    least = np.minimum(x.min(axis=2), 0)
    step = (x.max(axis=2) - least) / 15
    d, d_min = (np.maximum(a.max(axis=1), 1e-12) / 63 for a in (step, -least))
    scale = np.rint(step / d[:, None]).astype(np.uint8)
    offset = np.rint(-least / d_min[:, None]).astype(np.uint8)
    d, d_min = d.astype(np.float16), d_min.astype(np.float16)
    spacing, minimum = d[:, None].astype(float) * scale, d_min[:, None].astype(float) * offset
    code = np.rint((x + minimum[..., None]) / np.maximum(spacing, 1e-30)[..., None]).clip(0, 15).astype(np.uint8)
    packed = np.concatenate(
        [
            scale[:, :4] | (scale[:, 4:] >> 4 << 6),
            offset[:, :4] | (offset[:, 4:] >> 4 << 6),
            (scale[:, 4:] & 15) | ((offset[:, 4:] & 15) << 4),
        ],
        axis=1,
    )
    halves = code.reshape(-1, 4, 2, 32)
    qs = (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(len(x), -1)
    heads = [a[:, None].view(np.uint8).reshape(len(x), 2) for a in (d, d_min)]
    blocks = np.concatenate([*heads, packed, qs], axis=1)
    return blocks.reshape(*values.shape[:-1], -1)


def quantised(values: np.ndarray, kind: str) -> np.ndarray:
    return q4_k(values) if kind == "Q4_K" else gguf.quants.quantize(values, T[kind])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("gguf") / "plain.gguf",
        {
            "f32": (W, None),
            "f16": (W.astype(np.float16), None),
            "f64": (W.astype(np.float64), None),
            "bf16": (gguf.quants.quantize(W, T.BF16), T.BF16),
            "i32": (np.arange(4, dtype=np.int32), None),
            "vector": (W[0], None),
        },
    )


def test_plain_values_are_read_in_place(plain: Path) -> None:
    source = open_source(plain)
    assert isinstance(source, Source)
    assert {s.name: (s.dtype, s.shape, s.skip) for s in source.specs} == {
        "f32": ("float32", (8, 512), None),
        "f16": ("float16", (8, 512), None),
        "f64": ("float64", (8, 512), None),
        "bf16": ("bfloat16", (8, 512), None),
        "i32": ("int32", (4,), "integer type int32"),
        "vector": ("float32", (512,), None),
    }
    assert source.storages == (str(plain),)
    values = read_all(source)
    assert values["f32"] == W.tobytes()
    assert values["f16"] == W.astype(np.float16).tobytes()
    assert values["bf16"] == gguf.quants.quantize(W, T.BF16).tobytes()
    assert values["f64"] == W.astype(np.float64).tobytes()
    stats = tj.measure(plain)
    assert stats["f32"].histogram == tj.measure({"w": W})["w"].histogram
    assert_moments(stats["f32"].moments, W)


@pytest.mark.parametrize("kind", [*WRITTEN, "Q4_K"])
def test_quantised_values_are_those_of_the_package(tmp_path: Path, kind: str) -> None:
    blocks = quantised(W, kind)
    path = write(tmp_path / "m.gguf", {"a": (W, None), "w": (blocks, T[kind]), "z": (blocks, T[kind])})
    expected = gguf.quants.dequantize(blocks, T[kind])
    source = open_source(path)
    spec = next(s for s in source.specs if s.name == "w")
    assert (spec.dtype, spec.stored_as, spec.shape, spec.nbytes) == ("float32", kind.lower(), (8, 512), 4 * W.size)
    values = read_all(source)
    assert values["w"] == values["z"] == expected.tobytes()
    with source.open(spec.storage) as storage:
        for start, stop in ((4, 8), (124, 1040), (8 * 512 * 4 - 4, 8 * 512 * 4), (0, 8)):
            assert storage.window(start, stop, None).tobytes() == expected.tobytes()[start:stop]
    stats = tj.measure(path)
    assert stats["w"].histogram == tj.measure({"w": expected})["w"].histogram
    assert_moments(stats["w"].moments, expected)
    assert tj.fit(path)["w"].dtype == kind.lower()


LAYOUTS = {  # type: (bytes of the block's scale, those of the codes, a pattern that raises every code by one)
    "Q4_0": ((0,), (2, 18), 0x11),
    "Q4_1": ((0, 2), (4, 20), 0x11),
    "Q5_0": ((0,), (6, 22), 0x11),
    "Q5_1": ((0, 2), (8, 24), 0x11),
    "Q8_0": ((0,), (2, 34), 0x01),
    "Q2_K": ((80, 82), (16, 80), 0x55),
    "Q3_K": ((108,), (32, 96), 0x55),
    "Q4_K": ((0, 2), (16, 144), 0x11),
    "Q5_K": ((0, 2), (48, 176), 0x11),
    "Q6_K": ((208,), (0, 128), 0x11),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_spacing_is_what_a_step_of_the_code_changes(tmp_path: Path, kind: str) -> None:
    assert set(LAYOUTS) == set(SPACING)
    halves, codes, pattern = LAYOUTS[kind]
    n_values, n_bytes = gguf.GGML_QUANT_SIZES[T[kind]]
    blocks = RNG.integers(0, 256, (40, n_bytes)).astype(np.uint8)
    for at in halves:
        blocks[:, at : at + 2] = RNG.normal(0, 1, (40, 1)).astype(np.float16).view(np.uint8)
    low, high = blocks.copy(), blocks.copy()
    low[:, slice(*codes)], high[:, slice(*codes)] = 0, pattern
    step = np.abs(gguf.quants.dequantize(high, T[kind]) - gguf.quants.dequantize(low, T[kind])).reshape(-1)
    path = write(tmp_path / "m.gguf", {"w": (blocks, T[kind])})
    source = GgufSource(path)
    with source.open(source.storages[0]) as storage:
        spacing = storage.spacing(0, 160 * n_values)
    np.testing.assert_allclose(np.repeat(spacing, len(step) // len(spacing)), step, rtol=2e-5, atol=1e-6)


# The law before rounding

N = 1 << 19
LAWS = {"lognormal": {"mu": -4.0, "sigma": 1.0}, "halfnormal": {"scale": 0.02}}
WITHIN = {"Q8_0": 0.03, "Q4_0": 0.05, "Q4_K": 0.08}  # demanded; found are less than a tenth to a half of it


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[tj.Report, tj.Report]:
    tensors: dict[str, tuple[np.ndarray, T | None]] = {}
    for law, params in LAWS.items():
        rng = np.random.default_rng(1)
        x = tj.FAMILIES[law].sample(rng, params, N).reshape(-1, 1024)
        w = (x * rng.choice([-1, 1], x.shape)).astype(np.float32)
        tensors |= {f"{law} {kind}": (quantised(w, kind), T[kind]) for kind in WITHIN}
    measured = tj.measure(write(tmp_path_factory.mktemp("law") / "m.gguf", tensors), cells=True)
    families = tuple(LAWS)
    return tj.fit(measured, families=families, method="interval"), tj.fit(measured, families=families)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", WITHIN)
def test_interval_likelihood_gives_the_law_back(fitted: tuple[tj.Report, tj.Report], law: str, kind: str) -> None:
    fit = fitted[0][f"{law} {kind}"].families[law]
    for name, value in LAWS[law].items():
        assert fit.params[name] == pytest.approx(value, rel=WITHIN[kind]), name
    assert fit.n == N
    assert fitted[0][f"{law} {kind}"].best_family == law


def test_the_rounded_values_themselves_do_not(fitted: tuple[tj.Report, tj.Report]) -> None:
    sigma = {kind: fitted[1][f"lognormal {kind}"].lognormal.sigma for kind in WITHIN}
    assert abs(sigma["Q4_0"] - 1) > 0.2
    assert abs(sigma["Q4_K"] - 1) > 0.1


def test_cells_survive_a_statistics_file_and_a_merge(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"w": (quantised(W, "Q4_0"), T.Q4_0)})
    measured = tj.measure(path, cells=True)
    tj.save_statistics(measured, tmp_path / "s")
    back = tj.load_statistics(tmp_path / "s")
    assert back.specs["w"] == measured.specs["w"]
    for one in (measured["w"], back["w"]):
        assert one.cells.n == W.size
        assert one.merge(one).rounding_cells.n == 2 * W.size
    assert tj.measure(path)["w"].cells is None


def test_groups_have_cells_of_their_own(tmp_path: Path) -> None:
    w = RNG.normal(0, 0.02, (30, 1056)).astype(np.float32)  # groups that do not end where blocks do
    measured = tj.measure(write(tmp_path / "m.gguf", {"w": (quantised(w, "Q4_0"), T.Q4_0)}), groups=7, cells=True)
    stats = measured["w"]
    assert [g.cells.n for g in stats.groups] == [g.moments.size for g in stats.groups]
    assert stats.without(0).cells.n == w.size - stats.groups[0].moments.size
    alone = tj.measure(tmp_path / "m.gguf", cells=True)["w"].cells
    for name in ("lower", "upper"):
        np.testing.assert_allclose(getattr(stats.cells, name), getattr(alone, name), rtol=1e-9)
    np.testing.assert_array_equal(stats.cells.counts, alone.counts)
    fit = tj.fit(measured, families=("halfnormal",), method="interval")["w"].families["halfnormal"]
    assert fit.scale == pytest.approx(0.02, rel=0.02)
    assert fit.jackknife_se["scale"] == pytest.approx(0.02 / np.sqrt(2 * w.size), rel=0.8)


def test_blocks_without_a_scale_stay_out_of_the_cells(tmp_path: Path) -> None:
    w = W.copy()
    w[0] = 0
    stats = tj.measure(write(tmp_path / "m.gguf", {"w": (quantised(w, "Q8_0"), T.Q8_0)}), cells=True)["w"]
    assert stats.cells.n == w.size - 512
    assert stats.moments.n_zero >= 512


# Damage


def header(tensors: list[tuple[bytes, tuple[int, ...], int, int]], *, version: int = 3, n: int | None = None) -> bytes:
    """A file without fields and, per tensor, its name, dimensions (innermost first), type and offset."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if n is None else n, 0)
    for name, dims, kind, offset in tensors:
        out += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", kind, offset)
    return out + b"\0" * (-len(out) % 32)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "begins with b''"),
        (b"GGUX" + b"\0" * 60, "begins with b'GGUX'"),
        (header([(b"w", (8,), 0, 0)]), "32 bytes from byte 64"),
        (header([(b"w", (8,), 0, 2**63)]) + b"\0" * 32, "bytes from byte"),
        (header([(b"w", (2**63, 2**63), 0, 0)]) + b"\0" * 32, "bytes from byte"),
        (header([(b"w", (8,), 0, 4)]) + b"\0" * 64, "no multiple of the alignment"),
        (header([(b"w", (8,), 0, 0), (b"w", (8,), 0, 32)]) + b"\0" * 64, "a second tensor of that name"),
        (header([(b"w", (16,), 0, 0), (b"v", (8,), 0, 32)]) + b"\0" * 64, "overlap"),
        (header([(b"w", (8,) * 5, 0, 0)]), "5 dimensions"),
        (header([(b"w", (33,), 2, 0)]) + b"\0" * 64, "rows of 33 values in blocks of 32"),
        (header([(b"w", (), 2, 0)]) + b"\0" * 64, "rows of 1 values in blocks of 32"),
        (header([(b"\xff", (8,), 0, 0)]) + b"\0" * 32, "holds no text"),
        (header([], n=2**64 - 1), "18446744073709551615 tensors"),
        (header([], n=2**20), "ends early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1), "ends early"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "9223372036854775808 bytes of the header"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 10, 2**63) + b"\0" * 64, "bytes of the header"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 99, 2**63) + b"\0" * 64, "a value of kind 99"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 9, "a value of kind"),
    ],
)
def test_damage_is_named(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(CorruptInputError, match=words) as e:
        GgufSource(tmp_path / "m.gguf")
    assert "m.gguf" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("version", "words"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")])
def test_other_versions_are_refused(tmp_path: Path, version: int, words: str) -> None:
    (tmp_path / "m.gguf").write_bytes(header([], version=version))
    with pytest.raises(InputError, match=words) as e:
        GgufSource(tmp_path / "m.gguf")
    assert not isinstance(e.value, CorruptInputError)


def test_an_unknown_type_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(header([(b"w", (8,), 0, 0), (b"v", (8,), 999, 32)]) + b"\0" * 64)
    assert {s.name: s.skip for s in GgufSource(tmp_path / "m.gguf").specs} == {"w": None, "v": "unknown type 999"}


def survives(path: Path, raw: bytes) -> bool:
    """Whether the file is accepted; anything but a source with readable values or a refusal is an error."""
    path.write_bytes(raw)
    try:
        read_all(GgufSource(path))
    except TeleojaxError:
        return False
    return True


def test_every_truncation_and_mutation_ends_in_a_source_or_a_refusal(tmp_path: Path) -> None:
    small = write(tmp_path / "s.gguf", {"w": (W[:2, :32], None), "q": (quantised(W[:2, :64], "Q8_0"), T.Q8_0)})
    raw = small.read_bytes()
    assert not any(survives(tmp_path / "m.gguf", raw[:n]) for n in range(0, len(raw) - 32, 3))
    rng, accepted = np.random.default_rng(0), 0
    for _ in range(400):
        changed = bytearray(raw)
        for i in rng.integers(4, len(raw), rng.integers(1, 9)):
            changed[i] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(0, 256)])
        accepted += survives(tmp_path / "m.gguf", bytes(changed))
    assert 0 < accepted < 400


def test_scales_that_are_no_numbers_are_counted_so(tmp_path: Path) -> None:
    blocks = quantised(W[:1], "Q8_0").copy()
    blocks[0, :2] = np.asarray([np.inf], np.float16).view(np.uint8)
    stats = tj.measure(write(tmp_path / "m.gguf", {"w": (blocks, T.Q8_0)}), cells=True)["w"]
    assert stats.moments.n_nonfinite == 32
    assert stats.cells.n == 512 - 32


def test_without_the_package_the_extra_is_named(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'teleojax\[gguf\]'"):
        open_source(plain)
