"""PyTorch files written by `torch.save`, read back; damaged; and with code in them that must not run."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teleojax as tj
from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources import Source, open_source
from teleojax.sources import _torch as reader
from teleojax.sources._torch import TorchSource
from tests.io.twin import read_all
from tests.reference import assert_moments

torch = pytest.importorskip("torch")

W = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, (40, 30)).astype(np.float32))
MIXED = {
    "state_dict": {
        "f32": W,
        "tied": W,
        "transposed": W.t(),
        "rows": W[3:9],
        "f16": W.half(),
        "bf16": W.bfloat16(),
        "f64": W.double(),
        "f8": W.to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(W * 2),
        "scalar": torch.tensor(2.5),
        "block": W[3:9, 2:7],
        "image": (W.reshape(5, 4, 6, 10) * 3).contiguous(memory_format=torch.channels_last),
        "expanded": W[:1].expand(9, 30),
        "empty": torch.empty(0, 3),
        "sparse": W.to_sparse(),
        "counts": torch.arange(5),
        "flags": torch.ones(3, dtype=torch.bool),
        "complex": torch.ones(3, dtype=torch.complex64),
    },
    "layers": [W + 1, (W + 2,)],
    "epoch": 3,
    "note": "text",
    "optimizer": {"state": {0: {"exp_avg": W.clone()}}, "param_groups": [{"lr": 0.1}]},
}
SKIPPED = {
    "state_dict.expanded": "an expanded view, which repeats its values",
    "state_dict.empty": "empty",
    "state_dict.sparse": "sparse (sparse_coo)",
    "state_dict.counts": "integer type int64",
    "state_dict.flags": "type bool is not read",
    "state_dict.complex": "complex type complex64: only its modulus can be measured",
    "optimizer.state.0.exp_avg": "optimizer state",
}


def save(path: Path, tree: Any, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about its own storages
        torch.save(tree, path, **options)
    return path


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def expected() -> dict[str, torch.Tensor]:
    tensors = {f"state_dict.{n}": t for n, t in MIXED["state_dict"].items()}
    tensors |= {"layers.0": W + 1, "layers.1.0": W + 2}
    return {name: t for name, t in tensors.items() if name not in SKIPPED}


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old"])
def test_tensors_are_read_and_the_rest_is_listed(tmp_path: Path, archive: bool) -> None:
    tree = MIXED if archive else {**MIXED, "state_dict": {k: t for k, t in MIXED["state_dict"].items() if k != "f8"}}
    path = save(tmp_path / "m.ckpt", tree, _use_new_zipfile_serialization=archive)
    source = open_source(path)
    assert isinstance(source, Source)
    assert {s.name: s.skip for s in source.specs if s.skip} == SKIPPED
    values, wanted = read_all(source), expected()
    if not archive:
        del wanted["state_dict.f8"]
    orders = {s.name: s.order for s in source.specs if s.skip is None}
    assert {n: o for n, o in orders.items() if o == "F"} == ({"state_dict.transposed": "F"} if archive else {})
    assert values == {n: bytes_of(t.t() if orders[n] == "F" else t) for n, t in wanted.items()}
    assert {s.name: s.shape for s in source.specs if s.skip is None} == {n: tuple(t.shape) for n, t in wanted.items()}
    stats = tj.measure(path)
    if archive:  # where the bytes tell
        tied = "tied to state_dict.f32"
        rest = {n: why for n, why in SKIPPED.items() if n != "state_dict.complex"}
        assert stats.skipped == rest | {"state_dict.tied": tied, "state_dict.transposed": tied}
    for name in ("state_dict.f32", "state_dict.bf16", "state_dict.image"):
        assert_moments(stats[name].moments, wanted[name].to(torch.float64).numpy())
    assert stats["state_dict.f32"].histogram == tj.measure({"w": W.numpy()})["w"].histogram


def test_dense_tensors_are_read_in_place(tmp_path: Path) -> None:
    source = open_source(save(tmp_path / "m.pt", MIXED))
    apart = {s.name for s in source.specs if s.skip is None and s.storage != str(tmp_path / "m.pt")}
    assert apart == {"state_dict.block", "state_dict.image"}
    ties = {s.name: s.offset for s in source.specs}
    assert ties["state_dict.f32"] == ties["state_dict.tied"] == ties["state_dict.transposed"]
    assert ties["state_dict.rows"] == ties["state_dict.f32"] + 3 * 30 * 4


def test_tied_tensors_are_counted_once_and_parts_apart(tmp_path: Path) -> None:
    w = torch.from_numpy(np.random.default_rng(1).normal(size=(300, 1024)).astype(np.float32))
    stats = tj.measure(save(tmp_path / "m.pt", {"embed": w, "head": w, "part": w[100:]}))
    assert stats.skipped == {"head": "tied to embed"}
    assert stats["embed"].histogram == tj.measure({"w": w.numpy()})["w"].histogram
    for name, t in (("embed", w), ("part", w[100:])):
        assert_moments(stats[name].moments, t.numpy())


def test_an_archive_with_quantised_tensors(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = torch.quantize_per_tensor(W, 0.01, 0, torch.qint8)
    source = open_source(save(tmp_path / "m.pt", {"w": W, "q": q, "t": W.t()}))
    assert {s.name: s.skip for s in source.specs} == {"w": None, "q": "quantised qint8 (not read yet)", "t": None}
    assert read_all(source) == {"w": bytes_of(W), "t": bytes_of(W.t())}


def test_a_bare_tensor_and_an_optimizer_alone(tmp_path: Path) -> None:
    assert [s.name for s in open_source(save(tmp_path / "bias.pt", W)).specs] == ["bias"]
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    specs = open_source(save(tmp_path / "o.pt", optimizer.state_dict())).specs
    assert {s.skip for s in specs} == {"optimizer state"}
    assert len(specs) == 6


# Shards and directories


def sharded(folder: Path) -> Path:
    folder.mkdir()
    save(folder / "pytorch_model-00001-of-00002.bin", {"a": W, "shared": W})
    save(folder / "pytorch_model-00002-of-00002.bin", {"b": W * 2, "shared": W * 3})
    home = {"a": 1, "b": 2, "shared": 2}
    weight_map = {n: f"pytorch_model-0000{i}-of-00002.bin" for n, i in home.items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_sharded_directory(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    save(folder / "optimizer.pt", {"x": W})
    for target in (folder, folder / "pytorch_model.bin.index.json"):
        source = open_source(target)
        assert source.name == "model"
        assert read_all(source) == {"a": bytes_of(W), "b": bytes_of(W * 2), "shared": bytes_of(W * 3)}
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(InputError, match=r"00001-of-00002\.bin"):
        open_source(folder)
    save(folder / "pytorch_model-00001-of-00002.bin", {"c": W})
    with pytest.raises(CorruptInputError, match="no tensor 'a'"):
        open_source(folder)


def test_an_index_that_leads_out_of_its_directory(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    index = folder / "pytorch_model.bin.index.json"
    for shard in ("../x.bin", "/etc/passwd", "a\0b"):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(CorruptInputError):
            open_source(index)


def test_a_directory_without_an_index(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", {"w": W})
    save(tmp_path / "b.pth", {"v": W})
    save(tmp_path / "training_args.bin", {"x": W})
    (tmp_path / "tokenizer.bin").write_bytes(b"something else")
    assert set(read_all(open_source(tmp_path))) == {"w", "v"}
    (tmp_path / "b.pth").unlink()
    assert set(read_all(open_source(tmp_path))) == {"w"}


# Refusals


class Code:
    """What would create a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old"])
def test_code_is_refused_and_never_run(tmp_path: Path, archive: bool) -> None:
    path = save(tmp_path / "m.pt", {"w": W, "x": Code(tmp_path / "ran")}, _use_new_zipfile_serialization=archive)
    with pytest.raises(InputError, match=r"posix.system.*could run code.*state_dict") as e:
        open_source(path)
    assert not isinstance(e.value, CorruptInputError)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Code(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # the same object does run where pickles are loaded


def test_whole_models_and_arrays_are_refused_with_a_remedy(tmp_path: Path) -> None:
    for name, thing in (("model", torch.nn.Linear(2, 2)), ("numpy", np.ones(3)), ("path", Path("x"))):
        with pytest.raises(InputError, match=r"no weights \((.*Linear|numpy.*|pathlib.*)\), which could run code"):
            open_source(save(tmp_path / f"{name}.pt", {"w": W, "x": thing}))


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"TorchScript.*state_dict"):
        open_source(tmp_path / "m.pt")


def test_big_endian_archives_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"w": W})
    assert rewritten(path, byteorder=b"big")
    with pytest.raises(InputError, match="big-endian"):
        open_source(path)


def test_old_files_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m.pt", {"w": W}, _use_new_zipfile_serialization=False)
    monkeypatch.setattr(reader, "LEGACY_BYTES", path.stat().st_size - 1)
    with pytest.raises(InputError, match=r"before PyTorch 1\.6.*Save it again"):
        open_source(path)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m.pt", {"w": W})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'teleojax\[torch\]'"):
        open_source(path)


# Damage


def rewritten(path: Path, *, compress: bool = False, **members: bytes) -> bool:
    """Pack the archive again, with other content of some members; whether any was replaced."""
    with zipfile.ZipFile(path) as archive:
        content = {i.filename: archive.read(i) for i in archive.infolist()}
    replaced = {n: members.get(n.partition("/")[2].replace(".", "_"), raw) for n, raw in content.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, raw in replaced.items():
            archive.writestr(name, raw)
    return replaced != content


def test_archives_by_another_program_are_checked(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"w": W, "v": W + 1})
    rewritten(path)  # without the padding that PyTorch writes: its offsets are not those of this file
    with pytest.raises(CorruptInputError, match=r"tensor 'v'.*one member that is stored"):
        open_source(path)
    rewritten(path, compress=True)
    with pytest.raises(CorruptInputError):
        open_source(path)


def test_values_shorter_than_described(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"w": W, "v": W + 1})
    longer = save(tmp_path / "n.pt", {"w": torch.zeros(4000, 30), "v": torch.zeros(4000, 30)})
    with zipfile.ZipFile(longer) as archive:
        description = archive.read("n/data.pkl")
    assert rewritten(path, data_pkl=description)
    with pytest.raises(CorruptInputError):
        open_source(path)


def test_nests_without_an_end_are_refused(tmp_path: Path) -> None:
    loop: list[Any] = [W]
    loop.append(loop)
    with pytest.raises(CorruptInputError, match="nested"):
        open_source(save(tmp_path / "loop.pt", loop))
    wide: list[Any] = [W]
    for _ in range(40):
        wide = [wide, wide]
    with pytest.raises(CorruptInputError, match="members so far"):
        open_source(save(tmp_path / "wide.pt", wide))


def survives(path: Path, raw: bytes) -> bool:
    """Whether the file is accepted; anything but a source with readable values or a refusal is an error."""
    path.write_bytes(raw)
    try:
        read_all(TorchSource(path))
    except TeleojaxError:
        return False
    return True


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old"])
def test_truncations_and_mutations_end_in_a_source_or_a_refusal(tmp_path: Path, archive: bool) -> None:
    tree = {"a": {"w": W[:4], "v": W[:4].t()}, "b": [W[0].half()]}
    raw = save(tmp_path / "s.pt", tree, _use_new_zipfile_serialization=archive).read_bytes()
    assert not any(survives(tmp_path / "m.pt", raw[:n]) for n in range(0, len(raw), 23))
    rng, accepted = np.random.default_rng(0), 0
    for _ in range(250):
        changed = bytearray(raw)
        for i in rng.integers(0, len(raw), rng.integers(1, 5)):
            changed[i] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(0, 256)])
        accepted += survives(tmp_path / "m.pt", bytes(changed))
    assert 0 < accepted < 250


def test_a_long_key_over_many_tensors_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"x" * 1_000_000: [torch.ones(1)] * 100})
    with pytest.raises(CorruptInputError, match="names without end"):
        open_source(path)


def test_a_small_member_that_becomes_large_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"w": W})
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for info in whole.infolist():
            if info.filename.endswith("/byteorder"):
                bomb.writestr(info.filename, bytes((1 << 28) + 1), zipfile.ZIP_DEFLATED)
            else:
                bomb.writestr(info.filename, whole.read(info))
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 20
    with pytest.raises(CorruptInputError, match="a description of 268435457 bytes"):
        open_source(tmp_path / "bomb.pt")


def described(path: Path, raw: bytes) -> Path:
    """An archive with a description of one's own."""
    whole = save(path.with_name("whole.pt"), {"w": W})
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as made:
        for info in source.infolist():
            made.writestr(info.filename, raw if info.filename.endswith("data.pkl") else source.read(info))
    return path


def doubled(times: int) -> bytes:
    """A dictionary with one key: a tuple twice in a tuple, twice in a tuple, ..."""
    steps = b"".join(b"q%ch%c\x86" % (i, i) for i in range(times))  # put it down, get it again, join the two
    return b"\x80\x02}K\x01" + steps + b"K\x01s."


def test_tuples_that_hold_each_other_without_end_are_refused(tmp_path: Path) -> None:
    assert open_source(described(tmp_path / "few.pt", doubled(12))).specs == ()
    with pytest.raises(CorruptInputError, match="a tuple that comes to"):
        open_source(described(tmp_path / "many.pt", doubled(60)))  # 2**60 steps to hash
    path = save(tmp_path / "old.pt", {"w": W}, _use_new_zipfile_serialization=False)
    with path.open("rb") as old:
        for _ in range(3):  # magic number, version, machine; what follows is the description
            list(pickletools.genops(old))
        head = old.seek(0, io.SEEK_CUR)
    path.write_bytes(path.read_bytes()[:head] + doubled(60) + pickle.dumps([], 2))
    with pytest.raises(CorruptInputError, match="a tuple that comes to"):
        open_source(path)


def test_keys_that_are_no_text_and_odd_text_are_named(tmp_path: Path) -> None:
    tree = {"\ud800": W, ("a", 1): W + 1, 3: W + 3, "x" * 300: W + 4, None: W + 5}
    names = {r"\ud800", "('a', 1)", "3", "x" * 300, "None"}
    assert {s.name for s in open_source(save(tmp_path / "m.pt", tree)).specs} == names


@pytest.mark.parametrize("alignment", [b"0", b"-8", b"", b"x", b"9" * 30])
def test_an_alignment_that_ends_the_process_is_refused(tmp_path: Path, alignment: bytes) -> None:
    whole = save(tmp_path / "whole.pt", {"w": W})
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "m.pt", "w") as made:
        for info in source.infolist():
            is_it = info.filename.endswith(".storage_alignment")
            made.writestr(info.filename, alignment if is_it else source.read(info))
    assert open_source(whole).specs
    with pytest.raises(CorruptInputError, match="a storage alignment of"):
        open_source(tmp_path / "m.pt")
