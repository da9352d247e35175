"""Safetensors behind URLs: a real HTTP server in all its moods, and fsspec's file system in memory."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save

import teleojax as tj
from teleojax._errors import InputError, MissingExtraError
from teleojax.sources import _remote as remote
from teleojax.sources import open_source
from teleojax.sources._remote import RemoteSource
from tests.io.twin import assert_measured, read_all

RNG = np.random.default_rng(13)
ONE = {"a": RNG.normal(size=(400, 300)).astype(np.float32), "i": np.arange(5)}
TWO = {"b": RNG.normal(size=70_000).astype(np.float16), "c": RNG.normal(size=(3, 3))}
ARRAYS = {"a": ONE["a"], **TWO}
SKIPPED = {"i": "integer type int64"}
INDEX = json.dumps(
    {"weight_map": {"a": "s1.safetensors", "i": "s1.safetensors", "b": "s2.safetensors", "c": "s2.safetensors"}}
)
FILES = {
    "/model/model.safetensors.index.json": INDEX.encode(),
    "/model/s1.safetensors": save(ONE),
    "/model/s2.safetensors": save(TWO),
    "/alone/model.safetensors": save(ONE | TWO),
    "/odd": save(ONE),
    "/cut.safetensors": save(ONE)[:-1],
    "/missing/model.safetensors.index.json": INDEX.encode(),
    "/missing/s1.safetensors": save(ONE),
    "/wrong/model.safetensors.index.json": INDEX.encode(),
    "/wrong/s1.safetensors": save(ONE),
    "/wrong/s2.safetensors": save(ONE),
    "/up/model.safetensors.index.json": json.dumps({"weight_map": {"a": "../odd"}}).encode(),
    "/text.txt": b"hello world, this is no model",
    "/empty.safetensors": b"",
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves FILES; `mood` is what is wrong with the server, `seen` what it was asked."""

    mood = ""
    seen: tuple[tuple[str, str, str], ...] = ()
    failures = 0

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path, kind = self.path.partition("?")[0], type(self)
        asked = self.headers.get("Range", "")
        kind.seen += ((self.command, path, asked),)
        data = FILES.get(path)
        if data is None:
            return self.send_error(404)
        if self.mood == "forbidden":
            return self.send_error(403)
        if body and self.mood == "busy" and kind.failures:
            kind.failures -= 1
            return self.send_error(503)
        if body and self.mood == "silent":
            time.sleep(1.5)
            return None
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        if match is None or self.mood == "no ranges":
            self.send_response(200)
            part = data
        else:
            start, stop = int(match[1]), int(match[2]) + 1
            part = data[start:stop]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
            if self.mood == "short" and kind.failures:
                kind.failures -= 1
                part = part[: len(part) // 2]
        if self.mood != "no length":
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            try:
                self.wfile.write(part[: len(part) // 2] if self.mood == "breaks" and part is not data else part)
            except ConnectionError:
                return None
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.01)
    Handler.mood, Handler.seen, Handler.failures = "", (), 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()
    fsspec.filesystem("http").clear_instance_cache()


@pytest.fixture
def memory() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    for path, data in FILES.items():
        fs.pipe_file(f"/bucket{path}", data)
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


@pytest.fixture(params=["http", "memory"])
def base(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("server" if request.param == "http" else "memory")


@pytest.mark.parametrize("path", ["/alone/model.safetensors", "/alone", "/alone/"])
def test_one_file(base, path):
    source = assert_measured(base + path, ARRAYS, SKIPPED)
    assert type(source) is RemoteSource
    assert source.storages == (f"{base}/alone/model.safetensors",)


@pytest.mark.parametrize("path", ["/model/model.safetensors.index.json", "/model", "/model/"])
def test_shards_of_an_index(base, path):
    source = assert_measured(base + path, ARRAYS, SKIPPED)
    assert source.storages == (f"{base}/model/s1.safetensors", f"{base}/model/s2.safetensors")


def test_a_directory_without_an_index():
    fs = fsspec.filesystem("memory")
    fs.pipe({"/d/x2.safetensors": save(TWO), "/d/x10.safetensors": save(ONE), "/d/readme": b"", "/e/readme": b""})
    try:
        source = assert_measured("memory://d", ARRAYS, SKIPPED)
        assert source.storages == ("memory://d/x2.safetensors", "memory://d/x10.safetensors")
        fs.pipe_file("/d/again.safetensors", save(TWO))
        with pytest.raises(InputError, match="tensor 'b', which another file holds too"):
            open_source("memory://d")
        with pytest.raises(InputError, match="a directory of 1 entries, none of them safetensors"):
            open_source("memory://e")
    finally:
        fs.rm("/d", recursive=True)
        fs.rm("/e", recursive=True)


def test_a_file_without_extension_and_a_query(server):
    assert_measured(f"{server}/odd?token=secret", {"a": ONE["a"]}, SKIPPED)
    assert_measured(f"{server}/model/model.safetensors.index.json?download=true", ARRAYS, SKIPPED)


def test_only_headers_are_fetched_first_and_only_wanted_tensors_then(server, monkeypatch):
    monkeypatch.setattr(remote, "HEAD_BYTES", 64)
    source = open_source(f"{server}/alone/model.safetensors")
    assert {c for c, _, _ in Handler.seen} == {"HEAD", "GET"}
    fetched = [m for _, _, r in Handler.seen if (m := re.fullmatch(r"bytes=(\d+)-(\d+)", r))]
    assert sum(int(m[2]) + 1 - int(m[1]) for m in fetched) < 1000
    Handler.seen = ()
    spec = next(s for s in source.specs if s.name == "c")
    tj.measure(source, include="^c$")
    assert {r for _, _, r in Handler.seen if r} == {
        f"bytes=0-{spec.offset + spec.nbytes - 1}"
    }  # one window, not the rest


def test_many_pieces_over_several_connections(base, monkeypatch):
    monkeypatch.setattr(remote, "PIECE_BYTES", 10_007)
    assert_measured(f"{base}/alone/model.safetensors", ARRAYS, SKIPPED)


def test_with_local_files_in_a_list(base, tmp_path):
    (tmp_path / "local.safetensors").write_bytes(save({"x": ONE["a"]}))
    source = open_source([f"{base}/alone/model.safetensors", tmp_path / "local.safetensors"])
    assert {s.name for s in source.specs} == {"a", "b", "c", "i", "x"}


def test_the_command_line(server):
    run = [sys.executable, "-m", "teleojax", "fit", f"{server}/model", "--format", "jsonl"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["name"] for r in rows[:-1]} == {"a", "b", "c", "i"}


# What goes wrong


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nothing.safetensors", "no such file"),
        ("/nothing", "no such file"),
        ("/cut.safetensors", "bytes missing|1 missing"),
        ("/missing", "s2.safetensors: found no such file"),
        ("/wrong", "no tensor 'b'"),
        ("/up", "lies outside the directory of the index"),
        ("/text.txt", "content that begins with b'hello wo'.*other formats: local paths"),
        ("/empty.safetensors", "nothing"),
    ],
)
def test_files_that_are_not_what_they_should_be(base, path, words):
    with pytest.raises(InputError, match=words) as e:
        open_source(base + path)
    assert base in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("forbidden", "permission denied"),
        ("no ranges", "a server that does not send ranges"),
        ("no length", "does not tell|does not say how large"),
        ("breaks", "an error of the connection"),
    ],
)
def test_servers_that_cannot_serve(server, monkeypatch, mood, words):
    monkeypatch.setattr(remote, "HEAD_BYTES", 64)
    Handler.mood = mood
    with pytest.raises(InputError, match=words):
        read_all(open_source(f"{server}/alone/model.safetensors"))


def test_a_server_that_says_nothing(server, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(remote, "TRIES", 1)
    Handler.mood = "silent"
    with pytest.raises(InputError, match=r"no answer in 0\.3 seconds"):
        open_source(f"{server}/alone/model.safetensors")


@pytest.mark.parametrize("mood", ["busy", "short"])
@pytest.mark.parametrize("failures", [2, 1000])
def test_what_goes_wrong_twice_is_tried_again(server, mood, failures):
    source = open_source(f"{server}/alone/model.safetensors")
    Handler.mood, Handler.failures = mood, failures
    if failures == 2:
        assert set(read_all(source)) == set(ARRAYS)
    else:
        with pytest.raises(InputError, match="an error of the connection"):
            read_all(source)


def test_a_file_that_changes_between_header_and_values(base, monkeypatch):
    source = open_source(f"{base}/alone/model.safetensors")
    monkeypatch.setitem(FILES, "/alone/model.safetensors", b"short")
    if base.startswith("memory"):
        fsspec.filesystem("memory").pipe_file("/bucket/alone/model.safetensors", b"short")
    with pytest.raises(InputError, match=r"alone/model\.safetensors"):
        tj.measure(source)


def test_one_broken_shard_fails_alone(server):
    source = open_source(f"{server}/model")
    gone = FILES.pop("/model/s2.safetensors")
    try:
        measured = tj.measure(source)
    finally:
        FILES["/model/s2.safetensors"] = gone
    assert set(measured) == {"a"}
    assert set(measured.failed) == {"b", "c"}
    assert "no such file (status 404)" in measured.failed["b"]


def test_secrets_are_not_shown(server):
    host = server.removeprefix("http://")
    with pytest.raises(InputError) as e:
        open_source(f"http://user:secret@{host}/nothing.safetensors?signature=secret")
    assert "secret" not in str(e.value)
    source = open_source(f"{server}/alone/model.safetensors?signature=secret")
    assert "secret" not in source.name + "".join(source.storages)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuch://host/m.safetensors", "Protocol not known: nosuch"),
        ("https://127.0.0.1:1/m.safetensors", "an error of the connection"),
    ],
)
def test_urls_that_lead_nowhere(monkeypatch, url, words):
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.01)
    with pytest.raises(InputError, match=words):
        open_source(url)


def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match="pip install s3fs"):
        open_source("s3://bucket/m.safetensors")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingExtraError, match=r"teleojax\[remote\]"):
        open_source("https://host/m.safetensors")
