"""One fit per index along an axis, against float64 NumPy slice by slice."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import teleojax as tj
from teleojax.cli import run
from tests.reference import reference_moments

NAMES = {"mu": "mean", "sigma": "sigma", "skew": "skew", "excess_kurtosis": "excess_kurtosis"}
TOLERANCE = {"mu": 3e-6, "sigma": 3e-6, "skew": 1e-4, "excess_kurtosis": 3e-4}


def check(fit: tj.AxisFit, values: np.ndarray, axes: tuple[int, ...]) -> None:
    leading = np.moveaxis(values, axes, range(len(axes)))
    assert fit.shape == leading.shape[: len(axes)]
    for index in np.ndindex(*fit.shape):
        want = reference_moments(leading[index])
        for name in ("n", "n_zero", "n_nonfinite", "n_negative"):
            assert getattr(fit, name)[index] == want[name], (index, name)
        if not want["n"]:
            assert all(np.isnan(getattr(fit, name)[index]) for name in (*NAMES, "min", "max", "rms"))
            continue
        assert fit.min[index] == np.float32(want["min"]) or fit.min[index] == want["min"]
        assert fit.max[index] == np.float32(want["max"]) or fit.max[index] == want["max"]
        assert fit.rms[index] == pytest.approx(np.sqrt(want["sum_x2"] / want["n"]), rel=1e-6)
        for name, reference in NAMES.items():
            if np.isfinite(want[reference]):
                scale = max(1.0, abs(want[reference]))
                assert abs(getattr(fit, name)[index] - want[reference]) <= TOLERANCE[name] * scale, (index, name)


def matrix(shape: tuple[int, ...], dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_matrix(dtype: type, axis: int) -> None:
    values = matrix((37, 300), dtype)
    check(tj.fit(values, axis=axis)["array"], values, (axis,))


@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 20_001), (0,)), ((3, 24_576), (0,)), ((4, 6, 11, 13), (0, 1)), ((9, 7), (1, 0))]
)
def test_long_rows_and_several_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    values = matrix(shape)
    check(tj.fit(values, axis=axes)["array"], values, axes)


def test_awkward_rows_are_done_with_care() -> None:
    values = matrix((12, 500))
    values[1, 7], values[2, 8], values[3, 9] = np.nan, np.inf, 1e-42
    values[4], values[5, ::2], values[6] = 0, 0, -0.5
    values[7] = 1 + 1e-4 * values[7]
    values[8, 5:] = 0
    values[9] *= np.float32(1e-25)
    values[10, 0] = 1e30
    check(tj.fit(values, axis=0)["array"], values, (0,))


def test_derived_numbers() -> None:
    values = matrix((6, 4000))
    fit = tj.fit(values, axis=0)["array"]
    for i, row in enumerate(values):
        one = tj.fit({"w": row})["w"]
        assert one.lognormal is not None
        for name in ("mu_se", "sigma_se", "alpha", "beta", "h_star"):
            assert getattr(fit, name)[i] == pytest.approx(getattr(one.lognormal, name), rel=1e-4), name
        assert fit.delta_nats[i] == pytest.approx(
            one.families["halfnormal"].loglik_per_value - one.families["lognormal"].loglik_per_value, abs=1e-5
        )


def test_many_rows_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from teleojax.engine import _axis

    monkeypatch.setattr(_axis, "CALL_VALUES", 64 * 128)
    monkeypatch.setattr(_axis, "STAGE_VALUES", 64 * 100)
    for width in (128, 100):  # rows that can be read in place, and rows that cannot
        values = matrix((1000, width))
        whole = tj.fit(jnp.asarray(values), axis=0)["array"]
        np.testing.assert_allclose(whole.mu, np.log(np.abs(values)).mean(axis=1), rtol=1e-5)


def test_fortran_order_is_understood(tmp_path: Path) -> None:
    values = np.asfortranarray(matrix((8, 30)))
    np.save(tmp_path / "w.npy", values)
    check(tj.fit(tmp_path / "w.npy", axis=0)["w"], values, (0,))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = matrix((3, 50))
    save_file({"w": values, "bias": values[0], "ids": np.arange(3)}, tmp_path / "m.safetensors")
    assert run(["fit", str(tmp_path / "m.safetensors"), "--axis", "0", "--include", "w"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["name"], r["index"]) for r in lines[:-1]] == [("w", [i]) for i in range(3)]
    assert lines[-1]["summary"] == {"tensors": 1, "fits": 3, "skipped": 2}
    assert lines[1]["mu"] == pytest.approx(np.log(np.abs(values[1])).mean(), rel=1e-6)
    assert run(["fit", str(tmp_path / "m.safetensors"), "--axis", "1", "--format", "csv"]) == 0
    assert "no axis 1" in capsys.readouterr().err
    assert run(["fit", str(tmp_path / "m.safetensors"), "--axis", "0", "--format", "table"]) == 2


def test_axes_that_cannot_be() -> None:
    with pytest.raises(tj.UsageError, match="different axes"):
        tj.fit(matrix((3, 4)), axis=(0, 0))
    report = tj.fit(matrix((3, 4)), axis=5)
    with pytest.raises(KeyError, match="no axis 5"):
        report["array"]
