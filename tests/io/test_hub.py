"""Hugging Face: cache layouts that huggingface_hub itself makes, from a Hub that is a small server here."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from teleojax._errors import CorruptInputError, InputError, MissingExtraError
from teleojax.sources import open_source
from tests.io.twin import assert_measured

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RNG = np.random.default_rng(17)
A, B = RNG.normal(size=(40, 30)).astype(np.float32), RNG.normal(size=900).astype(np.float16)
SHARDED = {
    "model-1.safetensors": save({"a": A}),
    "model-2.safetensors": save({"b": B}),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "config.json": b"{}",
    "onnx/model.safetensors": save({"a": A}),
    "pytorch_model.bin": b"never fetched",
}
MODELS = {
    "org/sharded": SHARDED,
    "org/old": {"pytorch_model.bin": b"never fetched", "config.json": b"{}"},
    "single": {"model.safetensors": save({"a": A})},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's protocol as a download takes."""

    fetched: tuple[str, ...] = ()

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        for name, files in MODELS.items():
            if path in (
                f"/api/models/{name}",
                f"/api/models/{name}/revision/main",
                f"/api/models/{name}/revision/{COMMIT}",
            ):
                siblings = [{"rfilename": f} for f in files]
                return self.send({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings})
            if path.startswith(f"/api/models/{name}/tree/"):
                entries = [
                    {"type": "file", "path": f, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for f, d in files.items()
                ]
                return self.send(entries)
            for file, data in files.items():
                if path == f"/{name}/resolve/{COMMIT}/{file}":
                    if self.command == "GET":
                        type(self).fetched += (f"{name}/{file}",)
                    return self.send(data)
        self.send_response(404)
        kind = "RevisionNotFound" if "/revision/" in path and any(f"/{m}/" in path for m in MODELS) else "RepoNotFound"
        self.send_header("X-Error-Code", kind)
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def send(self, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.fetched = ()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


SCRIPT = """
import sys
from teleojax._errors import InputError
from teleojax.sources import open_source
for url in sys.argv[1:]:
    try:
        print(*sorted(s.name for s in open_source(url).specs))
    except InputError as e:
        print(e)
"""


def opened(urls: list[str], home: Path, endpoint: str = "http://127.0.0.1:1", **env: str) -> list[str]:
    """Names of tensors, or the error, for each URL, from a process: huggingface_hub reads the environment once."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"} | env
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    run = [sys.executable, "-c", SCRIPT, *urls]
    done = subprocess.run(run, env=clean | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_model_is_downloaded_once_and_then_read_from_the_cache(hub, tmp_path):
    main, commit, branch = "hf://org/sharded", f"hf://org/sharded@{COMMIT}", "hf://org/sharded@main"
    assert opened([main], tmp_path, hub) == ["a b"]
    assert set(Hub.fetched) == {f"org/sharded/{f}" for f in SHARDED if "/" not in f and not f.endswith(".bin")}
    Hub.fetched = ()
    offline = {"HF_HUB_OFFLINE": "1"}
    assert opened([main, commit, branch, "hf://single"], tmp_path, **offline)[:3] == ["a b"] * 3
    # the layout that was made is read by its path too
    folder = tmp_path / "hub" / "models--org--sharded"
    source = assert_measured(folder, {"a": A, "b": B})
    assert source.name == "org/sharded"
    shard = folder / "snapshots" / COMMIT / "model-1.safetensors"
    assert shard.is_symlink()
    assert_measured(folder / "snapshots" / COMMIT, {"a": A, "b": B})
    assert_measured(shard, {"a": A})
    # a download that was cut off is completed, where that can be done
    shard.unlink()
    cut, nowhere = opened([main, "hf://single"], tmp_path, **offline)
    assert "not in the cache" in cut
    assert "not in the cache" in nowhere
    assert Hub.fetched == ()
    assert opened([main, "hf://single"], tmp_path, hub) == ["a b", "a"]


def test_models_that_cannot_be_had(hub, tmp_path):
    cases = {
        "hf://org/old": "no safetensors at the top of the repository",
        "hf://org/nothing": "no such model (or a private one)",
        "hf://org/sharded@nothing": "no such revision",
        "hf://-org-/name": "hf://org/name",
    }
    for words, line in zip(cases.values(), opened(list(cases), tmp_path, hub), strict=True):
        assert words in line
    assert Hub.fetched == ("org/old/config.json",)


@pytest.mark.parametrize("url", ["hf://", "hf://a/b/c", "hf://org/name@", "hf://org name/x", "hf:///x"])
def test_urls_of_another_form(url):
    with pytest.raises(InputError, match="hf://org/name"):
        open_source(url)


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"teleojax\[hub\]"):
        open_source("hf://org/name")


# Cache folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "models--org--name"
    for revision, values in {"r1": A, "r2": B}.items():
        (path / "snapshots" / revision).mkdir(parents=True)
        (path / "blobs").mkdir(exist_ok=True)
        (path / "blobs" / f"blob-{revision}").write_bytes(save({"w": values}))
        (path / "snapshots" / revision / "model.safetensors").symlink_to(f"../../blobs/blob-{revision}")
    (path / "refs").mkdir()
    return path


def test_the_main_branch_decides(folder):
    for revision, values in {"r1": A, "r2": B}.items():
        (folder / "refs" / "main").write_text(revision)
        source = assert_measured(folder, {"w": values})
        assert source.name == "org/name"


def test_without_a_main_branch_there_must_be_one_snapshot(folder):
    with pytest.raises(InputError, match=r"no refs/main and 2 snapshots.*path of the snapshot"):
        open_source(folder)
    (folder / "snapshots" / "r1" / "model.safetensors").unlink()
    (folder / "snapshots" / "r1").rmdir()
    assert_measured(folder, {"w": B})


@pytest.mark.parametrize("ref", ["", "r3", "..", ".", "../../elsewhere", "/etc", "r1/../r2", "x" * 5000, "r1\nr2"])
def test_a_branch_that_leads_nowhere_or_out(folder, ref):
    (folder / "refs" / "main").write_text(ref)
    with pytest.raises(CorruptInputError, match="no snapshot"):
        open_source(folder)


def test_a_blob_that_is_missing(folder):
    (folder / "refs" / "main").write_text("r1")
    (folder / "blobs" / "blob-r1").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        open_source(folder)
