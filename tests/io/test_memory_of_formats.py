"""PyTorch, GGUF and ONNX are read in memory that does not grow with the file: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
from onnx import helper, numpy_helper

MIB = 1 << 20
LARGE, SMALL = 128 * MIB, MIB
MOST = 100 * MIB  # that the peak on the large file may lie above what the small one left behind
WINDOWS = 192 * MIB  # the three windows that are filled in turn where values have to be made

WATCH = """
import json, re, sys, threading, time
from pathlib import Path
import teleojax as tj

def anonymous():
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"^Anonymous:\\s+(\\d+) kB", text, re.MULTILINE)[1]) * 1024

out = {}
for small, large in zip(sys.argv[1::2], sys.argv[2::2]):
    tj.measure(small)
    before, peak, done = anonymous(), 0, threading.Event()

    def watch():
        global peak
        while not done.wait(0.003):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    measured = tj.measure(large)
    done.set()
    watcher.join()
    out[large] = [peak - before, sum(s.moments.size for s in measured.values())]
print(json.dumps(out))
"""


def write(path: Path, kind: str, nbytes: int) -> Path:
    """A file of about so many bytes, in four tensors."""
    width = 1024 * (7 if kind == "q4_0" else 1)
    w = np.random.default_rng(0).standard_normal((nbytes // 4 // 4096, width), np.float32)
    names = [f"h.{i}.weight" for i in range(4)]
    if kind == "torch":
        import torch

        torch.save({name: torch.from_numpy(w.copy()) for name in names}, path)
    elif kind == "onnx":
        graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(w, name) for name in names])
        path.write_bytes(helper.make_model(graph).SerializeToString())
    else:
        quantised = kind == "q4_0"
        writer = gguf.GGUFWriter(path, "llama")
        for name in names:
            t = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor(name, gguf.quants.quantize(w, t) if quantised else w, raw_dtype=t if quantised else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="anonymous memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    kinds = [kind for kind in ("gguf", "onnx", "torch", "q4_0") if kind != "torch" or find_spec("torch")]
    files = [write(tmp_path / f"{kind}.{n}", kind, n) for kind in kinds for n in (SMALL, LARGE)]
    done = subprocess.run([sys.executable, "-c", WATCH, *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for kind, large in zip(kinds, files[1::2], strict=True):
        grown, size = found[str(large)]
        assert large.stat().st_size == pytest.approx(LARGE, rel=0.02)
        assert size == LARGE // 4 * (7 if kind == "q4_0" else 1)
        assert grown <= MOST + (WINDOWS if kind == "q4_0" else 0), kind
