"""Every float tensor of two trained networks, against float64 NumPy on the raw values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tflite
from safetensors import safe_open

import teleojax as tj
from teleojax.cli import run
from tests.reference import assert_moments


def minilm_values(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, framework="np") as f:
        arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  # not a mapping
    return {name: a for name, a in arrays.items() if a.dtype.kind == "f"}


def blazepose_values(path: Path) -> dict[str, np.ndarray]:
    model = tflite.Model.GetRootAs(path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    arrays = {}
    for i in range(graph.TensorsLength()):
        tensor = graph.Tensors(i)
        if tensor.Type() == tflite.TensorType.FLOAT16 and model.Buffers(tensor.Buffer()).DataLength():
            arrays[tensor.Name().decode()] = model.Buffers(tensor.Buffer()).DataAsNumpy().view(np.float16)
    return arrays


NETWORKS = {"minilm": (minilm_values, 103, 22_713_216), "blazepose": (blazepose_values, 192, 3_169_489)}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_tensor(network: str, networks: dict[str, Path]) -> None:
    read, n_tensors, n_values = NETWORKS[network]
    raw = read(networks[network])
    report = tj.fit(networks[network])
    measured = {name: r for name, r in report.items() if r.status in ("ok", "degenerate")}
    assert set(measured) == set(raw)
    assert len(measured) == n_tensors
    assert sum(r.size for r in measured.values()) == n_values
    for name, result in measured.items():
        assert result.moments is not None
        assert_moments(result.moments, raw[name])
        if result.status == "ok":
            assert result.lognormal is not None
            assert result.lognormal.mu == result.moments.mean
            assert np.isfinite(result.lognormal.kl_nats) or result.reason


@pytest.mark.parametrize("network", NETWORKS)
def test_directory_gives_the_same_lines(
    network: str, networks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for path in (networks[network], networks[network].parent):
        assert run(["fit", str(path), "--format", "jsonl"]) == 0
        texts.append(capsys.readouterr().out.splitlines())
    assert texts[0][:-1] == texts[1][:-1]
    totals = [json.loads(t[-1])["summary"] for t in texts]
    assert totals[0]["values"] == totals[1]["values"] == NETWORKS[network][2]


def test_whole_model_merges_to_all_weights(networks: dict[str, Path]) -> None:
    raw = np.concatenate([a.ravel() for a in minilm_values(networks["minilm"]).values()])
    groups = tj.fit(networks["minilm"]).group_by("model")
    assert len(groups) == 1
    (model,) = groups.values()
    assert model.moments is not None
    assert_moments(model.moments, raw)
    assert model.stats is not None
    assert model.stats.histogram.n == np.count_nonzero(raw)


def test_matrices_of_minilm_are_nearer_gaussian_than_lognormal(networks: dict[str, Path]) -> None:
    """A fact of this network that the instrument must not hide: its matrices stay near their Gaussian start."""
    report = tj.fit(networks["minilm"], min_size=100_000)
    matrices = [r for r in report.values() if r.status == "ok"]
    assert len(matrices) == 39
    for r in matrices:
        assert r.best_family == "halfnormal"
        assert r.lognormal is not None
        assert 0.10 < r.lognormal.kl_nats < 0.165
