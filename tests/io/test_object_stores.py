"""s3:// and gs://, against servers of these protocols that run here; skipped where they or their clients are absent."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import teleojax as tj
from teleojax.cli import run
from teleojax.sources import _remote as remote
from teleojax.sources import open_source
from teleojax.sources._remote import HEAD_BYTES
from tests.io.twin import read_all

numpy = pytest.importorskip("safetensors.numpy")
CLIENTS = {"s3": ("s3fs", "moto"), "gs": ("gcsfs", "gcp_storage_emulator")}
MANY_AT_ONCE = """
import http.server, sys
http.server.HTTPServer = http.server.ThreadingHTTPServer  # else one idle connection keeps all others waiting
from gcp_storage_emulator.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
SLACK = 64 << 10  # of headers and listings, beside what is asked for
RNG = np.random.default_rng(0)
TENSORS = {
    "layers.0.q_proj.weight": RNG.normal(0, 0.02, (900, 1000)).astype(np.float32),
    "layers.1.q_proj.weight": RNG.normal(0, 0.03, (900, 1000)).astype(np.float16),
    "norm.weight": RNG.normal(1, 0.1, 300).astype(np.float32),
}


@dataclass
class Store:
    """A server of one protocol with a bucket "models", and how many bytes it has sent."""

    protocol: str
    port: int
    sent: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.protocol}://models/net/model.safetensors"

    def put(self, key: str, data: bytes) -> None:
        if self.protocol == "gs":
            place = f"upload/storage/v1/b/models/o?uploadType=media&name={key.replace('/', '%2F')}"
            self._ask(place, "POST", data)
        else:
            self._ask(f"models/{key}", "PUT", data)

    def _ask(self, place: str, method: str, data: bytes) -> None:
        kind = {"Content-Type": "application/octet-stream", "x-amz-acl": "public-read"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{place}", data, kind, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the server has ended"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server does not listen")


def counting(port: int, sent: list[int]) -> tuple[list[socket.socket], int]:
    """A listener that hands everything on to `port` and back, and adds what comes back to `sent`; all its sockets."""
    listener = socket.create_server(("127.0.0.1", 0))
    every = [listener]

    def pump(a: socket.socket, b: socket.socket, count: list[int] | None) -> None:
        try:
            while data := a.recv(1 << 16):
                if count is not None:
                    count.append(len(data))
                b.sendall(data)
        except OSError:
            pass
        finally:
            for s in (a, b):
                s.close()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            every.extend((client, server))
            threading.Thread(target=pump, args=(client, server, None), daemon=True).start()
            threading.Thread(target=pump, args=(server, client, sent), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return every, listener.getsockname()[1]


@pytest.fixture(params=CLIENTS)
def server(request: pytest.FixtureRequest) -> Iterator[Store]:
    protocol = request.param
    for package in CLIENTS[protocol]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    port = free_port()
    command = {
        "s3": [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        "gs": [sys.executable, "-c", MANY_AT_ONCE, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory",
               "--default-bucket=models"],
    }[protocol]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until_it_listens(port, process)
            store = Store(protocol, port)
            if protocol == "s3":
                store._ask("models", "PUT", b"")
            store.put("net/model.safetensors", numpy.save(TENSORS))
            store.put("other/notes.txt", b"nothing")
            yield store
        finally:
            process.terminate()


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The server behind a counter, and an environment that leads there."""
    sockets, port = counting(server.port, server.sent)
    here = f"http://127.0.0.1:{port}"
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "FSSPEC_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    found = {"AWS_ENDPOINT_URL": here, "STORAGE_EMULATOR_HOST": here, "AWS_DEFAULT_REGION": "us-east-1"}
    found |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    found |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    forget()
    server.sent.clear()
    yield server
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
    forget()


def forget() -> None:
    """Let go of the connections and listings that clients keep."""
    for module, name in (("s3fs", "S3FileSystem"), ("gcsfs", "GCSFileSystem")):
        if module in sys.modules:
            getattr(sys.modules[module], name).clear_instance_cache()


@pytest.mark.parametrize("place", ["net/model.safetensors", "net", "net/"])
def test_the_json_is_that_of_the_local_file(store: Store, tmp_path: Path, place: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(numpy.save(TENSORS))
    for target, out in ((f"{store.protocol}://models/{place}", "there"), (str(tmp_path / "model.safetensors"), "here")):
        assert run(["fit", target, "-o", str(tmp_path / f"{out}.jsonl")]) == 0
    there, here = ((tmp_path / f"{out}.jsonl").read_text().splitlines()[:-1] for out in ("there", "here"))
    assert there == here
    assert len(here) == len(TENSORS)


def test_only_what_is_wanted_is_fetched(store: Store) -> None:
    source = open_source(store.url)
    assert sum(store.sent) <= HEAD_BYTES + SLACK
    assert read_all(source) == {n: a.tobytes() for n, a in TENSORS.items()}
    total = sum(a.nbytes for a in TENSORS.values())
    assert total <= sum(store.sent) <= HEAD_BYTES + total + 2 * SLACK
    store.sent.clear()
    tj.measure(store.url, include=r"layers\.0")  # the first in the file: a window ends where what is wanted does
    wanted = TENSORS["layers.0.q_proj.weight"].nbytes
    assert wanted <= sum(store.sent) <= HEAD_BYTES + wanted + SLACK


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("models/net/none.safetensors", "none.safetensors: found no such file.*Check the URL"),
        ("models/other", "a directory of 1 entries, none of them safetensors"),
        ("nobody/model.safetensors", "found no such (bucket|file).*Check the (name of the bucket|URL)"),
    ],
)
def test_what_is_not_there(store: Store, monkeypatch: pytest.MonkeyPatch, place: str, words: str) -> None:
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 30.0)
    begin = time.monotonic()
    with pytest.raises(tj.InputError, match=words):
        open_source(f"{store.protocol}://{place}")
    assert time.monotonic() - begin < 30  # nothing was tried a second time


def test_without_credentials_the_remedy_says_how(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if store.protocol != "s3":
        pytest.skip("the emulator of gs:// asks nobody who they are")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget()
    with pytest.raises(tj.InputError, match=r"no credentials.*AWS_ACCESS_KEY_ID.*FSSPEC_S3_ANON=true") as caught:
        open_source(store.url)
    told = re.search(r"(FSSPEC_\w+)=(\w+)", str(caught.value))
    assert told is not None
    command = [sys.executable, "-m", "teleojax", "fit", store.url, "--include", "norm"]
    done = subprocess.run(
        command, env=os.environ | {told[1]: told[2]}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr  # as a public bucket
