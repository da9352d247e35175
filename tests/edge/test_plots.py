"""Figures: what they draw is what was fitted, and they look as they did.

`python -m tests.edge.test_plots` draws the images anew.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from scipy.stats import halfnorm, norm, pareto

import teleojax as tj
from teleojax.report import plot_changes, plot_density, plot_roofline, plot_trajectory
from teleojax.report.plots._style import STYLES

IMAGES = Path(__file__).parents[1] / "images"
LARGEST = 40 * 1024  # bytes of an image
TOLERANCE = 3.0  # of 255: what versions of matplotlib may differ by, in squares of 4 by 4 pixels
LAYER = "model.layers.1.mlp.up_proj.weight"
RAW = {
    f"model.layers.{depth}.{part}.weight": law(np.random.default_rng(depth), scale)
    for depth in range(4)
    for part, scale, law in (
        ("self_attn.q_proj", 0.02 * (1 + depth), lambda rng, s: rng.normal(0, s, (60, 70)).astype(np.float32)),
        ("mlp.up_proj", 0.05 / (1 + depth), lambda rng, s: (s * rng.standard_t(4, (60, 70))).astype(np.float32)),
        ("mlp.down_proj", 0.01, lambda rng, s: (s * rng.lognormal(0, 1, (60, 70))).astype(np.float32)),
    )
}


def fitted() -> tj.Report:
    return tj.fit(RAW, families=("lognormal", "halfnormal", "exponential", "pareto"))


@pytest.fixture(scope="module")
def report() -> tj.Report:
    return fitted()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        plt.switch_backend("Agg")
        yield
    plt.close("all")


Draw = Callable[..., Any]
FIGURES: dict[str, Draw] = {
    "density": lambda r, **how: r[LAYER].plot_density(**how),
    "probability": lambda r, **how: r[LAYER].plot_probability(**how),
    "utility": lambda r, **how: r[LAYER].plot_utility(**how),
    "depth": lambda r, **how: r.plot_depth("mu", **how),
    "heatmap": lambda r, **how: r.plot_heatmap("kl_nats", **how),
    "wins": lambda r, **how: r.plot_wins(**how),
    "trajectory": lambda r, **how: plot_trajectory([r, r], [0, 100], "sigma", **how),
}
RUN = json.loads(
    (Path(__file__).parents[2] / "benchmarks/results/amd-epyc-2-cores-2026-11-24.json").read_text(encoding="utf-8")
)


def changes(_: tj.Report, **how: Any) -> Any:
    """A tensor of the report that stays as it is for eight steps, then doubles its weights."""
    run = tj.track({step: {"w": RAW[LAYER] * (2 if step > 7 else 1)} for step in range(16)})
    return plot_changes(run["w"], "mu", **how)


OF_RUNS: dict[str, Draw] = {"changes": changes, "roofline": lambda _, **how: plot_roofline(RUN, **how)}
GOLDEN = [*((name, "light") for name in (*FIGURES, *OF_RUNS)), ("density", "dark"), ("heatmap", "dark")]


def pixels(ax: Any) -> np.ndarray:
    ax.figure.set_dpi(80)
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())[:, :, :3].astype(np.float64)


def wordless(ax: Any) -> np.ndarray:
    """The picture in a fixed frame, without words and legends: versions of matplotlib set and place them unlike."""
    figure = ax.figure
    figure.set_layout_engine("none")
    for text in (*figure.findobj(mpl.text.Text), *figure.findobj(mpl.legend.Legend)):
        text.set_visible(False)
    for other in figure.axes:
        scale = other.get_label() == "<colorbar>"
        other.set_position((0.88, 0.1, 0.03, 0.8) if scale else (0.1, 0.1, 0.75, 0.8))
    return pixels(ax)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square over squares of 4 by 4 pixels, so that a shift of one is little."""
    assert a.shape == b.shape
    height, width = (4 * (n // 4) for n in a.shape[:2])
    squares = [x[:height, :width].reshape(height // 4, 4, width // 4, 4, 3).mean(axis=(1, 3)) for x in (a, b)]
    return float(np.sqrt(np.mean((squares[0] - squares[1]) ** 2)))


@pytest.mark.parametrize(("name", "style"), GOLDEN)
def test_figures_look_as_they_did(name: str, style: str, report: tj.Report) -> None:
    path = IMAGES / f"{name}_{style}.png"
    assert path.stat().st_size <= LARGEST
    want = 255 * plt.imread(path)[:, :, :3].astype(np.float64)
    assert difference(wordless((FIGURES | OF_RUNS)[name](report, style=style)), want) < TOLERANCE


@pytest.mark.parametrize("name", FIGURES)
def test_a_change_that_matters_is_seen(name: str, report: tj.Report) -> None:
    want = 255 * plt.imread(IMAGES / f"{name}_light.png")[:, :, :3].astype(np.float64)
    assert difference(wordless(FIGURES[name](report, style="dark")), want) > 3 * TOLERANCE
    values = [*RAW.values()]
    other = tj.fit(dict(zip(RAW, [2 * values[-1], *values[:-1]], strict=True)), families=("lognormal", "halfnormal"))
    assert difference(wordless(FIGURES[name](other)), want) > TOLERANCE


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", FIGURES | OF_RUNS)
def test_every_figure_is_drawn_upon_and_labelled(name: str, style: str, report: tj.Report) -> None:
    ax = (FIGURES | OF_RUNS)[name](report, style=style)
    assert isinstance(ax, mpl.axes.Axes)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    inks = {line.get_color() for line in ax.lines} | {p.get_facecolor() for p in ax.patches} | set(ax.images)
    assert inks
    paper = mpl.colors.to_rgb(STYLES[style].paper)
    assert mpl.colors.to_rgb(ax.get_facecolor()) == mpl.colors.to_rgb(ax.figure.get_facecolor()) == paper
    assert ax.xaxis.label.get_color() == ax.yaxis.label.get_color() == STYLES[style].ink
    drawn = pixels(ax)
    assert (np.abs(drawn - 255 * np.asarray(paper)).max(axis=2) > 60).mean() > 0.01


@pytest.mark.parametrize("name", FIGURES | OF_RUNS)
def test_given_axes_are_used(name: str, report: tj.Report) -> None:
    _, ax = plt.subplots()
    assert (FIGURES | OF_RUNS)[name](report, ax=ax) is ax


def test_roofline_has_the_rates_of_the_run() -> None:
    variant = {"benchmark": "exact counts", "contestant": "teleojax, sorted", "dtype": "float32", "values_per_s": 1e9}
    ax = plot_roofline({"records": [*RUN["records"], variant]}, "exact counts")
    types = [t.get_text() for t in ax.get_xticklabels()]
    drawn = {line.get_label(): dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in ax.lines}
    records = [r for r in RUN["records"] if r["benchmark"] == "exact counts" and "values_per_s" in r]
    for r in records:
        if r["contestant"] in drawn:
            assert drawn[r["contestant"]][types.index(r["dtype"])] == r["values_per_s"]
    assert {"teleojax", "NumPy bincount", "boost-histogram"} <= set(drawn)
    assert not any(name.startswith("teleojax, ") for name in drawn)
    roof = sorted(y for c in ax.collections for _, y in c.get_segments()[0][:1])
    assert roof == sorted(r["values_per_s"] for r in records if r["contestant"] == "memory read")
    with pytest.raises(tj.UsageError, match=r"one of .*log moments"):
        plot_roofline(RUN, "nothing")


def test_density_is_that_of_the_values(report: tj.Report) -> None:
    ax = plot_density(report[LAYER])
    values, edges, _ = ax.patches[0].get_data()
    assert (values * np.diff(edges)).sum() == pytest.approx(1)
    y = np.log(np.abs(RAW[LAYER].astype(np.float64)))
    want = np.histogram(y, edges)[0] / y.size / np.diff(edges)
    np.testing.assert_allclose(values, want, rtol=1e-9)
    curves = {line.get_label(): line.get_data() for line in ax.lines}
    assert list(curves) == ["lognormal", "halfnormal", "exponential", "pareto"]
    x, p = curves["lognormal"]
    np.testing.assert_allclose(p, norm.pdf(x, y.mean(), y.std()), rtol=1e-6)
    x, p = curves["halfnormal"]
    scale = math.sqrt(np.mean(np.square(RAW[LAYER].astype(np.float64))))
    kept = p > 1e-200
    np.testing.assert_allclose(p[kept], (halfnorm.pdf(np.exp(x), scale=scale) * np.exp(x))[kept], rtol=1e-6)
    tail = report[LAYER].families["pareto"]
    x, p = curves["pareto"]
    assert np.isnan(p[x < math.log(tail.xmin)]).all()
    share = (np.abs(RAW[LAYER]) >= tail.xmin * (1 - 1e-6)).mean()
    kept = np.log(tail.xmin) < x
    want = share * pareto.pdf(np.exp(x), tail.alpha, scale=tail.xmin) * np.exp(x)
    np.testing.assert_allclose(p[kept], want[kept], rtol=1e-6)
    assert ax.get_yscale() == "log"


def test_probability_plot_has_the_order_statistics(report: tj.Report) -> None:
    ax = report[LAYER].plot_probability()
    z, y = ax.lines[0].get_data()
    sorted_y = np.sort(np.log(np.abs(RAW[LAYER].astype(np.float64))).ravel())
    rank = norm.cdf(z) * len(sorted_y) + 0.5
    np.testing.assert_allclose(y, sorted_y[np.round(rank).astype(int) - 1], rtol=1e-12)
    assert y[0] == sorted_y[0]
    assert y[-1] == sorted_y[-1]
    curves = {line.get_label(): line.get_data() for line in ax.lines[1:]}
    x, line = curves["lognormal"]
    np.testing.assert_allclose(line, sorted_y.mean() + sorted_y.std() * x, rtol=1e-9, atol=1e-9)
    tail = report[LAYER].families["pareto"]
    _, line = curves["pareto"]
    assert line[0] >= math.log(tail.xmin) - 1e-9
    assert line[-1] == pytest.approx(sorted_y[-1], abs=1)
    assert f"{report[LAYER].lognormal.r2:.4f}" in ax.get_xlabel()


def test_utility_is_flat_at_equilibrium_and_not_elsewhere() -> None:
    fits = tj.fit(
        {
            "lognormal": np.random.default_rng(0).lognormal(-3, 1.3, 200_000).astype(np.float32),
            "gaussian": np.random.default_rng(0).normal(size=200_000).astype(np.float32),
        }
    )
    spread = {}
    for name, result in fits.items():
        ax = result.plot_utility()
        curves = {line.get_label(): line.get_data() for line in (*ax.lines, *ax.figure.axes[1].lines)}
        assert set(curves) == {"categories", "utility ĥ", "h* of equilibrium", "gradient ∂ĥ/∂ln|w|"}
        assert curves["h* of equilibrium"][1][0] == result.lognormal.h_star
        y, h = curves["utility ĥ"]
        spread[name] = np.abs(h - result.lognormal.h_star).max()
        slope = np.gradient(h, y)
        gradient = curves["gradient ∂ĥ/∂ln|w|"][1]
        np.testing.assert_allclose(gradient[1:-1], slope[1:-1], atol=0.02 * max(1, np.abs(gradient).max()))
        points, categories = curves["categories"]
        off = np.interp(points, y, h) - categories
        assert np.median(np.abs(off)) < 0.1
    assert spread["lognormal"] < 0.05
    assert spread["gaussian"] > 1
    # of a half-normal, ĥ − h* = −ln(p/q) in closed form
    y, h = report_curve(fits["gaussian"])
    mu, sigma = fits["gaussian"].lognormal.mu, fits["gaussian"].lognormal.sigma
    want = norm.logpdf(y, mu, sigma) - (halfnorm.logpdf(np.exp(y)) + y)
    np.testing.assert_allclose(h - fits["gaussian"].lognormal.h_star, want, atol=0.25)


def report_curve(result: tj.TensorFit) -> tuple[np.ndarray, np.ndarray]:
    (line,) = (x for x in result.plot_utility().lines if x.get_label() == "utility ĥ")
    return line.get_data()


def test_depth_shows_each_tensor_with_its_interval(report: tj.Report) -> None:
    ax = report.plot_depth("mu")
    assert [c.get_label() for c in ax.containers] == ["q", "up", "down"]
    for container, part in zip(ax.containers, ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"), strict=True):
        fits = [report[f"model.layers.{d}.{part}.weight"].lognormal for d in range(4)]
        x, y = container[0].get_data()
        assert list(x) == [0, 1, 2, 3]
        assert list(y) == [f.mu for f in fits]
        for segment, f in zip(container[2][0].get_segments(), fits, strict=True):
            np.testing.assert_allclose(segment[:, 1], [f.mu - 1.959964 * f.mu_se, f.mu + 1.959964 * f.mu_se], rtol=1e-6)
    assert ax.get_ylabel() == "μ, ln|w|"
    assert [c.get_label() for c in report.plot_depth("fisher", roles=["up"]).containers] == ["up"]


def test_heatmap_holds_the_numbers_and_leaves_gaps() -> None:
    few = tj.fit({n: x for n, x in RAW.items() if n != LAYER})
    ax = few.plot_heatmap("kl_nats")
    values = ax.images[0].get_array()
    assert values.shape == (4, 3)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["q", "up", "down"]
    for d in range(4):
        for j, part in enumerate(("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")):
            name = f"model.layers.{d}.{part}.weight"
            assert values.mask[d, j] == (name == LAYER)
            assert name == LAYER or values[d, j] == pytest.approx(few[name].lognormal.kl_nats)
    assert "nats per connection" in ax.figure.axes[1].get_ylabel()


def test_wins_are_counted_by_area(report: tj.Report) -> None:
    ax = report.plot_wins()
    area = {c.get_label(): sum(b.get_height() * b.get_width() for b in c) for c in ax.containers}
    best = [r.best_bic for r in report.values()]
    assert set(area) == set(best)
    for family, share in area.items():
        assert share == pytest.approx(best.count(family) / len(best), rel=0.02)
    texts = [int(t.get_text()) for t in ax.texts if t.get_text()]
    assert sum(texts) == len(best)


def test_trajectory_follows_the_steps_in_order(report: tj.Report) -> None:
    later = tj.fit({n: (2 * x).astype(np.float32) for n, x in RAW.items()})
    ax = plot_trajectory([later, report], [100, 0], "mu")
    lines = {line.get_label(): line.get_data() for line in ax.lines}
    assert list(lines) == ["q", "up", "down"]
    names = [n for n in RAW if "q_proj" in n]
    for x, y in lines.values():
        assert list(x) == [0, 100]
        assert y[1] - y[0] == pytest.approx(math.log(2), rel=1e-5)
    assert lines["q"][1][0] == pytest.approx(np.mean([report[n].lognormal.mu for n in names]))


def test_hostile_names_are_text() -> None:
    names = [r"$\frac{$", "$x_1$ and $y$", "a\nb\x1b[31m", "_hidden", "\\$", "x" * 500]
    rng = np.random.default_rng(0)
    fits = tj.fit({name: rng.normal(size=500).astype(np.float32) for name in names})
    for name in names:
        ax = fits[name].plot_density()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ax.figure.canvas.draw()
        assert "\n" not in ax.get_title()
        assert len(ax.get_title()) < 70
        assert not mpl.cbook.is_math_text(ax.get_title())


def test_refusals(report: tj.Report) -> None:
    with pytest.raises(tj.UsageError, match="style"):
        report.plot_depth(style="pink")
    with pytest.raises(tj.UsageError, match="stat"):
        report.plot_heatmap("mean")
    with pytest.raises(tj.UsageError, match="roles: found k"):
        report.plot_depth(roles=["k"])
    with pytest.raises(tj.UsageError, match="2 reports and 1 steps"):
        plot_trajectory([report, report], [1])
    with pytest.raises(tj.UsageError, match="a role and a depth"):
        tj.fit({"x": RAW[LAYER]}).plot_heatmap()
    with pytest.raises(tj.UsageError, match="no tensor with comparable fits"):
        tj.fit({"x": np.zeros(5, np.float32)}).plot_wins()
    flat = tj.fit({"x": np.ones(5, np.float32), "none": np.zeros(5, np.float32), "ids": np.arange(3)})
    with pytest.raises(tj.UsageError, match="equal"):
        flat["x"].plot_density()
    for name in ("none", "ids"):
        with pytest.raises(tj.UsageError, match="no histogram of its values"):
            flat[name].plot_utility()
    with pytest.raises(tj.UsageError, match="no histogram"):
        tj.fit(RAW, histogram=False)[LAYER].plot_density()


def draw_all() -> None:
    """Draw the images that figures are compared with."""
    plt.switch_backend("Agg")
    mpl.rcdefaults()
    report = fitted()
    IMAGES.mkdir(exist_ok=True)
    for name, style in GOLDEN:
        image = np.round(wordless((FIGURES | OF_RUNS)[name](report, style=style))).astype(np.uint8)
        plt.imsave(IMAGES / f"{name}_{style}.png", image)


if __name__ == "__main__":
    draw_all()
