"""Independent float64 NumPy answers to what the library measures."""

from __future__ import annotations

import numpy as np

EXACT = ("n", "n_zero", "n_nonfinite", "n_negative", "min", "max")


def reference_moments(values: np.ndarray) -> dict[str, float]:
    """Counts and moments of ln|w| straight from their definitions."""
    v = values.reshape(-1).astype(np.float64)
    finite = np.isfinite(v)
    x = np.abs(v[finite & (v != 0)])
    counts = {
        "n": len(x),
        "n_zero": int(np.sum(v == 0)),
        "n_nonfinite": int(np.sum(~finite)),
        "n_negative": int(np.sum(finite & (v < 0))),
    }
    if not len(x):
        return counts | {"min": np.inf, "max": 0.0}
    y = np.log(x)
    mean = y[0] + np.mean(y - y[0])  # exact for equal values
    d = y - mean
    sigma = float(np.sqrt(np.mean(d**2)))
    with np.errstate(over="ignore"):
        sum_x, sum_x2 = float(x.sum()), float(np.sum(x**2))
    return counts | {
        "min": float(x.min()),
        "max": float(x.max()),
        "mean": float(mean),
        "sigma": sigma,
        "skew": float(np.mean(d**3) / sigma**3) if sigma else np.nan,
        "excess_kurtosis": float(np.mean(d**4) / sigma**4 - 3) if sigma else np.nan,
        "sum_x": sum_x,
        "sum_x2": sum_x2,
    }


def assert_moments(moments: object, values: np.ndarray, *, relative: float = 1e-6, shape: float = 1e-4) -> None:
    """Counts and extremes equal; mean, sigma, sums within `relative`; skewness and kurtosis within `shape`."""
    expected = reference_moments(values)
    for name, want in expected.items():
        got = getattr(moments, name)
        if name in EXACT:
            assert got == want, (name, got, want)
        elif name in ("skew", "excess_kurtosis"):
            assert np.isnan(want) or abs(got - want) <= shape, (name, got, want)
        elif name == "mean":
            assert abs(got - want) <= relative * max(abs(want), expected["sigma"]), (name, got, want)
        else:
            assert got == want or abs(got - want) <= relative * abs(want), (name, got, want)
