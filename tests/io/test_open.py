"""open_source: what is recognised, what is refused and with which advice."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save, save_file

import teleojax
from teleojax._errors import CorruptInputError, InputError
from teleojax.sources import PytreeSource, Source, open_source
from teleojax.sources._formats import FORMATS as TABLE
from teleojax.sources._index import by_storage
from teleojax.sources._numpy import NpySource, NpzSource
from teleojax.sources._open import MergedSource
from teleojax.sources._safetensors import SafetensorsSource, SafetensorsStream
from teleojax.sources._tflite import TfliteSource
from tests.io.test_tflite import MIXED, W

A = np.array([1.0, 2.0], np.float32)
B = np.array([3.0], np.float64)


def read_values(source: Source) -> dict[str, bytes]:
    out = {}
    for storage in source.storages:
        with source.open(storage) as opened:
            for s in by_storage(source.specs).get(storage, ()):
                buffer = np.empty(s.nbytes, np.uint8)
                out[s.name] = opened.window(s.offset, s.offset + s.nbytes, buffer).tobytes()
    return out


def write(path: Path, array: np.ndarray = A) -> Path:
    """The array under the name "a", in the format of the extension; `.npy` names it after the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, a=array)
    elif path.suffix == ".tflite":
        path.write_bytes(MIXED)
    else:
        save_file({"a": array}, path)
    return path


FORMATS = {
    "x.safetensors": (SafetensorsSource, "a", A),
    "x.npz": (NpzSource, "a", A),
    "x.npy": (NpySource, "x", A),
    "x.tflite": (TfliteSource, "conv/w;conv/bn", W),
}


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("named", ["as it is", "without extension", "with another's"])
def test_content_decides_the_format(tmp_path, file, named):
    kind, tensor, values = FORMATS[file]
    path = write(tmp_path / file)
    if named != "as it is":
        other = "x" if named == "without extension" else "x.npy" if file != "x.npy" else "x.tflite"
        path = path.rename(tmp_path / other)
    for target in (path, str(path)):
        source = open_source(target)
        assert type(source) is kind
        assert isinstance(source, Source)
        assert source.name == path.name
        assert read_values(source)[tensor] == values.tobytes()


def test_compressed_archives_and_empty_archives(tmp_path):
    np.savez_compressed(tmp_path / "c.npz", a=A)
    np.savez(tmp_path / "e.npz")
    assert read_values(open_source(tmp_path / "c.npz")) == {"a": A.tobytes()}
    assert open_source(tmp_path / "e.npz").specs == ()


def test_a_source_is_returned_as_it_is(tmp_path):
    source = open_source(write(tmp_path / "a.npy"))
    assert open_source(source) is source
    assert open_source([source]) is source


def test_pytrees(tmp_path):
    for tree, names in (
        ({"h": [{"w": A}]}, ["h.0.w"]),
        ([A, B], ["0", "1"]),
        ((A, B), ["0", "1"]),
        (A, ["array"]),
        (np.float32(1), ["array"]),
        ({"note": str(tmp_path), "w": A}, ["note", "w"]),
        ({}, []),
    ):
        source = open_source(tree)
        assert type(source) is PytreeSource
        assert [s.name for s in source.specs] == names


@pytest.mark.parametrize("target", [None, 3, 0.5, b"model.safetensors", object(), []], ids=lambda t: type(t).__name__)
def test_what_is_no_tree_and_no_path_is_refused(target):
    with pytest.raises(InputError, match=r"input: found .*safetensors"):
        open_source(target)


# Streams


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(save({"a": A}))))
    source = open_source("-")
    assert type(source) is SafetensorsStream
    assert source.name == "stdin"
    assert read_values(source) == {"a": A.tobytes()}
    monkeypatch.setattr(sys, "stdin", SimpleNamespace())
    with pytest.raises(InputError, match="no binary standard input"):
        open_source("-")


def test_a_real_pipe():
    code = (
        "import numpy as np\nfrom teleojax.sources import open_source\ns = open_source('-')\n"
        "with s.open('stdin') as f:\n"
        "    for t in s.specs: print(t.name, f.window(t.offset, t.offset + t.nbytes, np.empty(t.nbytes, 'u1')).sum())\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(teleojax.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], input=save({"a": A}), capture_output=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [b"a", str(A.view(np.uint8).sum()).encode()]


def test_a_binary_stream(tmp_path):
    path = write(tmp_path / "a.safetensors")
    with gzip.open(tmp_path / "a.gz", "wb") as f:
        f.write(path.read_bytes())
    with gzip.open(tmp_path / "a.gz", "rb") as f:
        assert read_values(open_source(f)) == {"a": A.tobytes()}


@pytest.mark.parametrize("data", [save({"a": A}), b"\x93NUMPY\x01\x00"], ids=["good", "bad"])
def test_a_named_pipe(tmp_path, data):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(data,))
    writer.start()
    try:
        if data.startswith(b"\x93"):
            with pytest.raises(CorruptInputError):
                open_source(fifo)
        else:
            assert read_values(open_source(fifo)) == {"a": A.tobytes()}
    finally:
        writer.join()


# Directories


def test_a_directory_with_an_index(tmp_path):
    d = tmp_path / "model"
    write(d / "a.safetensors")
    write(d / "consolidated.safetensors", B)
    write(d / "x.npy")
    (d / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    for target in (d, d / "model.safetensors.index.json"):
        source = open_source(target)
        assert source.name == "model"
        assert read_values(source) == {"a": A.tobytes()}
    (d / "other.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "consolidated.safetensors"}}))
    assert read_values(open_source(d)) == {"a": A.tobytes()}
    (d / "model.safetensors.index.json").rename(d / "fp16.safetensors.index.json")
    with pytest.raises(InputError, match="2 indexes"):
        open_source(d)
    assert read_values(open_source(d / "other.safetensors.index.json")) == {"a": B.tobytes()}


def test_a_directory_of_safetensors(tmp_path, monkeypatch):
    d = tmp_path / "model"
    for i in (10, 9, 1):
        d.mkdir(exist_ok=True)
        save_file({f"t{i}": A * i}, d / f"part-{i}.safetensors")
    write(d / "x.npy")
    (d / "._part-1.safetensors").write_bytes(b"resource fork")
    source = open_source(d)
    assert (type(source), source.name) == (SafetensorsSource, "model")
    assert [s.name for s in source.specs] == ["t1", "t9", "t10"]
    monkeypatch.chdir(d)
    assert open_source(".").name == "model"
    write(d / "copy.safetensors")
    save_file({"t9": B}, d / "part-99.safetensors")
    with pytest.raises(InputError, match="tensor 't9'"):
        open_source(d)


def test_a_directory_of_other_files(tmp_path):
    d = tmp_path / "params"
    for i in (10, 2):
        write(d / f"w{i}.npy", A * i)
    write(d / "n.npz", B)
    write(d / "m.tflite")
    (d / "notes.txt").write_text("hello")
    (d / "sub.npy").mkdir()
    source = open_source(d)
    assert (type(source), source.name, len(source.storages)) == (MergedSource, "params", 4)
    values = read_values(source)
    assert values["w10"] == (A * 10).tobytes()
    assert values["a"] == B.tobytes()
    assert values["conv/w;conv/bn"] == W.tobytes()
    names = [s.name for s in source.specs]
    assert names.index("w2") < names.index("w10")


def test_directories_that_hold_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="an empty directory"):
        open_source(tmp_path / "empty")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"2 entries \(config\.json, empty\)"):
        open_source(tmp_path)


# Several paths


def test_several_paths_merge_and_only_clashing_names_are_prefixed(tmp_path):
    one, two, three = tmp_path / "one.safetensors", tmp_path / "two.npz", tmp_path / "w.npy"
    save_file({"a": A, "only": B}, one)
    np.savez(two, a=B)
    np.save(three, A)
    source = open_source([one, str(two), three])
    assert isinstance(source, Source)
    assert source.name == "one.safetensors, two.npz, w.npy"
    assert read_values(source) == {
        "one/a": A.tobytes(),
        "two/a": B.tobytes(),
        "only": B.tobytes(),
        "w": A.tobytes(),
    }
    assert open_source([one]).name == "one.safetensors"


def test_shards_in_a_list_merge(tmp_path):
    for i in (1, 2):
        save_file({f"t{i}": A}, tmp_path / f"s{i}.safetensors")
    assert {s.name for s in open_source((tmp_path / "s1.safetensors", tmp_path / "s2.safetensors")).specs} == {
        "t1",
        "t2",
    }


def test_prefixes_grow_until_they_differ(tmp_path):
    paths = [write(tmp_path / d / "model.safetensors", x) for d, x in (("p", A), ("q", B))]
    assert set(read_values(open_source(paths))) == {"p/model/a", "q/model/a"}
    assert set(read_values(open_source([p.parent for p in paths]))) == {"p/a", "q/a"}
    versions = [write(tmp_path / d / "model.safetensors", x).parent for d, x in (("v1.0", A), ("v2.5", B))]
    assert set(read_values(open_source(versions))) == {"v1.0/a", "v2.5/a"}
    same = [write(tmp_path / f"m{e}", x) for e, x in ((".safetensors", A), (".npz", B))]
    assert set(read_values(open_source(same))) == {"m.safetensors/a", "m.npz/a"}


def test_sources_of_one_storage_name_stay_apart():
    source = open_source([PytreeSource({"w": A}, name="x"), PytreeSource({"w": B}, name="y"), PytreeSource({"v": A})])
    assert read_values(source) == {"x/w": A.tobytes(), "y/w": B.tobytes(), "v": A.tobytes()}
    source = open_source([PytreeSource({"w": A}), PytreeSource({"w": B})])
    assert sorted(read_values(source).values()) == sorted([A.tobytes(), B.tobytes()])


def test_names_that_clash_even_so_and_repeated_paths_are_refused(tmp_path):
    trees = [PytreeSource({"w": A, "y/w": B}, name="x"), PytreeSource({"w": B}, name="y")]
    with pytest.raises(InputError, match="2 tensors named 'y/w'"):
        open_source(trees)
    path = write(tmp_path / "a.npy")
    with pytest.raises(InputError, match="2 mentions"):
        open_source([path, tmp_path / "x" / ".." / "a.npy", str(path)][::2])


# Refusals


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("m.bin", b"", "an empty file"),
        ("m.xyz", b"hello world, this is no model", "content that begins with b'hello wo'"),
        ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*git lfs pull"),
        ("m.safetensors", b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        ("m.pt", b"\x80\x02}q\x00.", "a Python pickle"),
        ("m.safetensors.gz", gzip.compress(b"x" * 100, mtime=0), "compressed data that begin with b'xxxx.*gzip -d"),
        ("m.safetensors.xz", lzma.compress(b"x" * 100), "a compressed file.*xzcat"),
    ],
)
def test_what_is_not_read_says_what_it_is(tmp_path, file, content, words):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=words) as e:
        open_source(tmp_path / file)
    assert file in str(e.value)
    assert e.value.exit_code == 3
    assert not isinstance(e.value, CorruptInputError)


@pytest.mark.parametrize("extension", [".safetensors", ".npy", ".npz", ".tflite"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind, in any of the formats"], ids=["empty", "other"])
def test_the_extension_decides_which_error(tmp_path, extension, content):
    path = tmp_path / f"m{extension}"
    path.write_bytes(content)
    with pytest.raises(CorruptInputError, match=f"m\\{extension}"):
        open_source(path)


def test_a_zip_archive_of_something_else_says_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("notes.txt", b"hello")
    with pytest.raises(InputError, match=r"a zip archive without .npy members.*'notes.txt'"):
        open_source(tmp_path / "m.zip")


def test_the_message_names_every_format(tmp_path):
    (tmp_path / "m.xyz").write_bytes(b"hello world")
    with pytest.raises(InputError) as e:
        open_source(tmp_path / "m.xyz")
    for known in TABLE:
        assert known.name in str(e.value)


@pytest.mark.parametrize("known", TABLE, ids=lambda f: f.name)
def test_no_format_recognises_nothing_or_text(tmp_path, known):
    for content in (b"", b"\x08", b"hello world, this is no model"):
        path = tmp_path / "x"
        path.write_bytes(content)
        assert not known.recognises(content, path)


@pytest.mark.parametrize("file", FORMATS)
def test_truncated_files_are_refused(tmp_path, file):
    path = write(tmp_path / file)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CorruptInputError):
        open_source(path)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no/such/file", "no such file"),
        ("", "no such file|directory of|empty directory"),
        ("nosuch://bucket/key", "a URL that cannot be opened"),
        ("a\0b", "null"),
        ("x" * 5000, "(?i)too long"),
        ("/dev/null", "a device or socket"),
    ],
)
def test_paths_that_cannot_be_opened(tmp_path, monkeypatch, target, words):
    monkeypatch.chdir(tmp_path)
    if "://" in target:
        pytest.importorskip("fsspec")
    with pytest.raises(InputError, match=words) as e:
        open_source(target)
    assert "\n" not in str(e.value)


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="symbolic links"):
        open_source(tmp_path / "loop")


@pytest.mark.parametrize("method", ["open", "stat", "iterdir"])
def test_no_permission(tmp_path, monkeypatch, method):
    path = write(tmp_path / "a.npy") if method != "iterdir" else tmp_path

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as m:
        m.setattr(Path, method, refuse)
        with pytest.raises(InputError, match="permission denied"):
            open_source(path)
