"""The law before rounding, from weights that were stored in four or eight bits."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from scipy import optimize

import teleojax as tj
from teleojax import FAMILIES, CellCounts, Report, TensorStats

CHANNELS, N = 16, 1 << 18
LAWS = {"halfnormal": {"scale": 0.02}, "lognormal": {"mu": -4.0, "sigma": 1.1}}
STORAGES = ("int8", "e4m3", "int4")
WITHIN = 0.005  # of a parameter; its standard error is 0.0014 of it


def weights(law: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = FAMILIES[law].sample(rng, LAWS[law], N).reshape(CHANNELS, -1)
    return x * rng.choice([-1, 1], x.shape)


def quantised(w: np.ndarray, bits: int) -> TensorStats:
    """Symmetric integers with one scale a row, the largest of which is the largest code."""
    scale = np.abs(w).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
    return TensorStats.from_codes(np.round(w / scale).astype(np.int8), scale)


@pytest.fixture(scope="module")
def stored() -> dict[str, TensorStats]:
    stats = {}
    for law in LAWS:
        w = weights(law)
        stats[f"{law} int8"] = quantised(w, 8)
        stats[f"{law} int4"] = quantised(w.reshape(CHANNELS, -1, 32), 4)
        stats[f"{law} e4m3"] = tj.measure({"w": w.astype(ml_dtypes.float8_e4m3fn)})["w"]
    e4m3 = stats["halfnormal e4m3"]
    stats["no zeros"] = replace(e4m3, moments=replace(e4m3.moments, n_zero=0))
    stats["merged"] = tj.merge(*(stats[f"halfnormal {storage}"] for storage in STORAGES))
    pruned = weights("halfnormal")[0, :4000].astype(ml_dtypes.bfloat16)
    pruned[:1000] = 0
    stats["pruned"] = tj.measure({"w": pruned})["w"]
    return stats


@pytest.fixture(scope="module")
def reports(stored: dict[str, TensorStats]) -> dict[str, Report]:
    return {method: tj.fit(stored, method=method) for method in ("mle", "interval")}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("storage", STORAGES)
def test_rounding_cells_give_the_law_back(law: str, storage: str, reports: dict[str, Report]) -> None:
    result = reports["interval"][f"{law} {storage}"]
    for key, value in LAWS[law].items():
        assert result.families[law].params[key] == pytest.approx(value, rel=WITHIN), key
    assert result.best_family == law
    assert result.families[law].n == N  # zeros are values like the others
    assert (result.checks or {})[law].goodness is None


def test_stored_values_do_not(reports: dict[str, Report]) -> None:
    """What maximum likelihood of the stored values says instead, well outside what is allowed above."""
    points = reports["mle"]
    sigma = {key: points[key].lognormal.sigma for key in points}
    assert sigma["halfnormal e4m3"] == pytest.approx(0.855, abs=0.005)  # 1.1107 before it was stored
    assert sigma["halfnormal int4"] == pytest.approx(0.634, abs=0.005)
    assert points["halfnormal e4m3"].moments.n_zero / N == pytest.approx(0.04, abs=0.005)
    assert points["halfnormal int4"].moments.n_zero / N == pytest.approx(0.13, abs=0.005)
    assert sigma["lognormal int8"] < 0.95 * 1.1
    assert sigma["lognormal int4"] < 0.7 * 1.1
    assert points["halfnormal int4"].families["halfnormal"].scale > 1.05 * 0.02
    assert points["halfnormal int4"].best_family == "lognormal"


@pytest.mark.parametrize("name", LAWS)
def test_the_likelihood_is_that_of_the_cells(
    name: str, stored: dict[str, TensorStats], reports: dict[str, Report]
) -> None:
    """Quadrature of the density against differences of the distribution function, and no optimiser gets further."""
    family = FAMILIES[name]
    for key in ("halfnormal e4m3", f"{name} int4"):
        cells, fit = stored[key].rounding_cells, reports["interval"][key].families[name]
        names = list(fit.params)

        def loglik(theta: np.ndarray, cells: CellCounts = cells, names: list[str] = names) -> float:
            params = {k: float(v if k == "mu" else np.exp(v)) for k, v in zip(names, theta, strict=True)}
            below, above = ([f(edge, params) for edge in (cells.lower, cells.upper)] for f in (family.cdf, family.sf))
            probability = np.where(below[0] < 0.5, below[1] - below[0], above[0] - above[1])
            return float(np.log(probability / (cells.upper - cells.lower)) @ cells.counts) / cells.n

        theta = np.asarray([v if k == "mu" else np.log(v) for k, v in fit.params.items()])
        assert fit.loglik_per_value == pytest.approx(loglik(theta), abs=1e-6)
        found = optimize.minimize(lambda t, f=loglik: -f(t), theta + 0.02, method="BFGS", jac="3-point", tol=1e-7)
        assert -found.fun - loglik(theta) < 1e-9


def test_the_zero_cell_counts(stored: dict[str, TensorStats], reports: dict[str, Report]) -> None:
    """Without the values that were rounded to zero the scale comes out too large."""
    whole = stored["halfnormal e4m3"]
    assert whole.rounding_cells.n == whole.moments.size == N
    assert whole.rounding_cells.lower[0] == 0
    assert whole.rounding_cells.upper[0] == whole.rounding_cells.lower[1] == 2.0**-10  # half the smallest e4m3
    assert reports["interval"]["no zeros"].families["halfnormal"].scale > 0.02 * (1 + 3 * WITHIN)


def test_zeros_of_wide_types_are_no_rounding(reports: dict[str, Report]) -> None:
    """A pruned bfloat16 weight was not rounded to zero."""
    fit = reports["interval"]["pruned"].families["halfnormal"]
    assert fit.n == 3000
    assert fit.scale == pytest.approx(0.02, rel=0.05)


def test_cells_of_unlike_storage_merge(stored: dict[str, TensorStats], reports: dict[str, Report]) -> None:
    assert stored["merged"].rounding_cells.n == 3 * N
    assert reports["interval"]["merged"].families["halfnormal"].scale == pytest.approx(0.02, rel=WITHIN)


def test_codes_stand_for_cells() -> None:
    cells = CellCounts.from_codes(np.asarray([[-3, 0, 1], [1, 1, 2]]), np.asarray([[0.5], [2.0]]))
    found = dict(zip(zip(cells.lower.round(9), cells.upper.round(9), strict=True), cells.counts, strict=True))
    assert found == {(0, 0.25): 1, (0.25, 0.75): 1, (1.25, 1.75): 1, (1, 3): 2, (3, 5): 1}
    shifted = CellCounts.from_codes(np.asarray([5, 8, 9, 11]), 0.5, 8)
    assert shifted.lower.tolist() == [0, 0.25, 1.25]
    assert shifted.counts.tolist() == [1, 1, 2]


def test_scales_nearly_alike_share_their_cells() -> None:
    """Thousands of group scales would be thousands of cells; 1% of a scale is nothing beside a step."""
    rng = np.random.default_rng(0)
    scale = np.exp(rng.uniform(0, 0.2, (5000, 1)))
    cells = CellCounts.from_codes(rng.integers(-7, 8, (5000, 32)), scale)
    assert len(cells.counts) <= 8 * 22
    assert cells.n == 160_000


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(tj.UsageError, match="a scale that is 0, negative or not finite; needed positive finite scales"):
        TensorStats.from_codes(np.asarray([1, 2]), np.asarray([1.0, scale]))


@pytest.mark.parametrize(("scale", "zero"), [(np.ones(3), 0), (np.ones((4, 1)), 0), (1.0, np.ones(3))])
def test_shapes_that_do_not_broadcast_are_refused(scale: np.ndarray | float, zero: np.ndarray | float) -> None:
    with pytest.raises(tj.UsageError, match="broadcast against the codes"):
        TensorStats.from_codes(np.ones((2, 8), np.int8), scale, zero)
