"""Is this layer at arbitrage equilibrium? Two trained layers, and two controls whose answer is known.

    python scripts/fetch_models.py minilm blazepose
    python examples/is_this_layer_at_equilibrium.py
    python examples/is_this_layer_at_equilibrium.py CHECKPOINT [--tensor REGEX]

Prints a lesson with its numbers and leaves is_this_layer_at_equilibrium.png in the folder --out. Every `# %%` begins a
cell: Jupyter, VS Code and Spyder open this file as a notebook. Needs `pip install 'teleojax[plots,tflite]'`. Exit
status: 0 done, 2 usage, 3 no weights to be had.
"""

# %% [markdown]
# # Is this layer at arbitrage equilibrium?
#
# Statistical teleodynamics sees the connections of a layer as agents. One of strength x = |w| has the effective utility
#
#     h(x) = α ln x − β (ln x)² − ln(number of connections like it),
#
# benefit less cost less competition. A connection that could do better moves, until none can: at arbitrage equilibrium
# **every connection has the same h\***, and then |w| is lognormal. That is a prediction, and a layer can fail it.
#
# Four layers are put to the test: one matrix of MiniLM, one late convolution of BlazePose, and, since a test should be
# tested itself, an untrained Gaussian layer (the answer must be no, at 0.163 nats) and an exact lognormal (yes).

# %%
import argparse
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

import teleojax as tj
from teleojax.diagnose import Bins, LogDensity, density_bins, penalised_log_density

NOTEBOOK = "ipykernel" in sys.modules
if not NOTEBOOK:
    plt.switch_backend("Agg")
parser = argparse.ArgumentParser(description="Is a layer at arbitrage equilibrium? With controls, and a figure.")
parser.add_argument("checkpoint", nargs="?", help="any checkpoint that teleojax reads; default: MiniLM and BlazePose")
parser.add_argument("--tensor", metavar="REGEX", help="which tensor of CHECKPOINT; default: its largest matrix")
parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder of the figure")
parser.add_argument("--quick", action="store_true", help="five families in place of thirteen")
options = parser.parse_args([] if NOTEBOOK else None)
options.out.mkdir(parents=True, exist_ok=True)

GAUSSIAN, LOGNORMAL = "Gaussian, untrained", "lognormal, exact"
GAUSSIAN_KL = 0.162975  # nats: a half-normal from its maximum-likelihood lognormal, whatever its scale
FAMILIES = ["halfnormal", "half_t", "halfgennorm", "weibull"] if options.quick else ["all"]
MIXTURE = "lognormal_mixture"  # two lognormals with a weight: five parameters, and no single law


# %% [markdown]
# ## 1. Four layers


# %%
def stop(message: object) -> NoReturn:
    """Say why there is no answer; exit status 3."""
    print(message, file=sys.stderr)
    sys.exit(3)


def weights(checkpoint: str, pattern: str | None) -> tuple[str, np.ndarray]:
    """Name and values of the first tensor whose name matches, or of the largest, in rows of one output each."""
    source = tj.open_source(checkpoint)
    specs = [s for s in source.specs if s.skip is None and len(s.shape) > 1]
    if pattern is not None:
        specs = [s for s in specs if re.search(pattern, s.name)]
    if not specs:
        stop(f"{checkpoint}: found no matrix of floating-point numbers whose name matches {pattern or 'anything'}")
    spec = specs[0] if pattern else max(specs, key=lambda s: s.size)
    with source.open(spec.storage) as storage:
        buffer = np.empty(spec.nbytes, np.uint8)
        stored = storage.window(spec.offset, spec.offset + spec.nbytes, buffer).copy()
    values = stored.view(spec.dtype).reshape(spec.shape, order=spec.order).reshape(spec.shape[0], -1)
    return spec.name, values if spec.scale == 1 else values * np.float32(spec.scale)


try:
    if options.checkpoint is None:
        chosen = {
            "MiniLM, query 0": weights("models/minilm", r"layer\.0\.attention\.self\.query\.weight$"),
            "BlazePose, conv 42": weights("models/blazepose", r"/conv2d_42/Conv2D$"),
        }
    else:
        name, values = weights(options.checkpoint, options.tensor)
        chosen = {name if len(name) <= 24 else f"…{name[-23:]}": (name, values)}
except tj.MissingExtraError as error:
    stop(error)
except tj.TeleojaxError as error:
    stop(f"{error}\nThe two networks: python scripts/fetch_models.py minilm blazepose")

rng = np.random.default_rng(2024)
shape = next(iter(chosen.values()))[1].shape
layers = {
    GAUSSIAN: np.float32(0.02 * rng.standard_normal(shape)),
    **{title: values for title, (_, values) in chosen.items()},
    LOGNORMAL: np.float32(np.exp(-5 + 2 * rng.standard_normal(shape))),
}
print("IS THIS LAYER AT ARBITRAGE EQUILIBRIUM?\n")
for title, values in layers.items():
    where = chosen[title][0] if title in chosen else "drawn at the size of the first layer"
    print(f"  {title:<24} {' × '.join(map(str, values.shape)):>11} = {values.size:>10,} weights   {where}")


# %% [markdown]
# ## 2. The answer in numbers
#
# `tj.fit` finds the maximum-likelihood lognormal, which fixes α and β, and how far the layer is from it:
#
# * `kl_nats` is the **potential gap** φ\* − φ = KL(p̂ ‖ lognormal), by which the mean utility falls short of h\*;
# * `dispersion` is the standard deviation of h over connections: "all have the same utility" says that it is 0;
# * `fisher` is I, the mean square of the utility gradient ∂h/∂ln|w|, the force on a connection. The Gaussian
#   log-Sobolev inequality ties the two together: KL ≤ ½ σ² I. Small forces leave no room for a large gap.
#
# For the Gaussian layer all of it is known in closed form: KL = 0.162975 and I = 2 − 8/π², whatever its scale.


# %%
def rival(layer: tj.TensorFit) -> str:
    """The family of lowest BIC among the single laws."""
    fits = [f for f in layer.comparable if f.family != MIXTURE]
    return min(fits, key=lambda f: f.bic).family


def nats(fit: tj.LognormalFit) -> str:
    """The distance from equilibrium, with its 95% interval."""
    error = 1.96 * fit.kl_se
    return "< 0.0001" if fit.kl_nats + error < 1e-4 else f"{fit.kl_nats:.4f} ± {error:.4f}"


report = tj.fit(layers, families=FAMILIES)
for title, layer in report.items():
    if layer.reason is not None:
        stop(f"{title}: no distance from equilibrium ({layer.reason})")
print("\nThe maximum-likelihood lognormal, and the distance from it (± 1.96 standard errors):\n")
print(f"  {'':<24}    μ      σ        α       β     KL, nats            dispersion  fisher I   ½σ²I   KL/½σ²I")
for title in layers:
    fit = report[title].lognormal
    bound = 0.5 * fit.sigma**2 * fit.fisher
    share = f"{fit.kl_nats / bound:7.2f}" if fit.kl_nats > 1e-3 else "      –"
    print(
        f"  {title:<24} {fit.mu:6.3f} {fit.sigma:6.3f} {fit.alpha:8.3f} {fit.beta:7.4f}   "
        f"{nats(fit):<15}     {fit.dispersion:.4f}    {fit.fisher:8.4f} {bound:7.4f} {share}"
    )
gaussian = report[GAUSSIAN].lognormal
fisher, bound = 2 - 8 / math.pi**2, math.pi**2 / 8 - 0.5
line = f"{GAUSSIAN_KL:.4f}{'':24}{fisher:8.4f} {bound:7.4f} {GAUSSIAN_KL / bound:7.2f}"
print(f"  {'in theory: Gaussian':<24}{'':34}{line}")
print("\nWhat the best single law gains over the lognormal, in nats a weight, by BIC:\n")
for title in layers:
    best, line = rival(report[title]), f"  {title:<24}"
    line += f" {best:<12} {report[title].gain(best):.4f}" if best != "lognormal" else " lognormal     none"
    if MIXTURE in (report[title].families or {}):
        line += f"    (a mixture of two lognormals: {max(report[title].gain(MIXTURE), 0):.4f})"
    print(line)

# %% [markdown]
# ## 3. The answer connection by connection
#
# One number hides who gains and who loses. The density p̂ of y = ln|w| is estimated by a penalised likelihood whose
# smoothest answer *is* the lognormal, so a layer at equilibrium shows up flat. Then, at every strength,
#
#     ĥ = α y − β y² − ln p̂(x) − ln n        ∂ĥ/∂y = −(y − μ)/σ² − d ln p̂/dy.
#
# Below h\* a strength is overcrowded, above it there is room. Two checks: ĥ − h\* must be −ln(p̂/q), q the lognormal;
# and `tj.teleo.density_distance`, which integrates on a grid by that other road, must find the numbers of the table.


# %%
@dataclass
class Curve:
    """Utility ĥ − h* and its gradient over y = ln|w|, with the bins and the density estimate that they come from."""

    y: np.ndarray
    utility: np.ndarray
    gradient: np.ndarray
    log_q: np.ndarray
    bins: Bins
    density: LogDensity


def curve(layer: tj.TensorFit) -> Curve:
    """From the fit of one layer, over all but the weakest 0.1% and the strongest 0.01% of its connections."""
    fit, moments = layer.lognormal, layer.stats.moments
    bins = density_bins(layer.stats.histogram, moments.mean, moments.sigma)
    (density,) = penalised_log_density([bins.edges], [bins.counts], np.array([moments.mean]), np.array([moments.sigma]))
    cumulative = np.concatenate([[0], np.cumsum(bins.counts)]) / bins.counts.sum()
    y = np.linspace(*np.interp([1e-3, 1 - 1e-4], cumulative, bins.edges), 601)
    log_q = -0.5 * ((y - fit.mu) / fit.sigma) ** 2 - math.log(fit.sigma * math.sqrt(2 * math.pi))
    per_x = density.log_density(y) - y  # p(ln x) = x p(x), and α, β are of the measure dx
    h = tj.teleo.connection_utility(np.exp(y), per_x, fit.alpha, fit.beta, n=moments.n)
    utility = np.asarray(h, np.float64) - fit.h_star
    return Curve(y, utility, -(y - fit.mu) / fit.sigma**2 - density.score(y), log_q, bins, density)


curves = {title: curve(report[title]) for title in layers}
print("\nThe same from the curve ĥ(ln|w|), integrated on a grid; 90% of the connections lie between the two points:\n")
print(f"  {'':<24} KL, nats   dispersion   I         5% … 95% of ĥ − h*, nats")
for title, c in curves.items():
    fit = report[title].lognormal
    beyond = 4 * fit.sigma  # the estimate goes on past the last bins
    grid = np.linspace(c.bins.edges[0] - beyond, c.bins.edges[-1] + beyond, 8001)
    again = tj.teleo.density_distance(grid, c.density.log_density(grid), fit.mu, fit.sigma, score=c.density.score(grid))
    spread = again.utility
    print(
        f"  {title:<24} {float(again.gap_nats):.4f}     {float(spread.sd):.4f}    {float(again.fisher):8.4f}"
        f"     {float(spread.low):+.3f} … {float(spread.high):+.3f}"
    )
off = max(np.abs(c.utility - (c.log_q - c.density.log_density(c.y))).max() for c in curves.values())
print(f"\n  ĥ − h* from α and β against −ln(p̂/q): the same within {off:.0e} nats")

# %% [markdown]
# ## 4. Near to lognormal, but why?
#
# A product of many factors tends to a lognormal, and a weight of a network is a product: of the scale of its output
# channel (batch normalisation, folded into the weights, is such a factor), of the scale of its input channel, and of
# what is left. Connections that seek equal utility are one way to a lognormal; channels of many scales are another.
# They can be told apart: divide each output and each input channel by its own geometric mean |w|. A layer whose
# connections are lognormal stays so. The controls say that the division itself does no harm.


# %%
def rescaled(values: np.ndarray) -> tuple[np.ndarray, float]:
    """|w| with the geometric mean of every row and column made equal, and the share of Var(ln|w|) that this removes."""
    y = np.log(np.abs(np.where(values == 0, np.nan, values.astype(np.float64))))
    rest = y - np.nanmean(y, axis=1, keepdims=True)
    rest -= np.nanmean(rest, axis=0, keepdims=True)
    removed = 1 - np.nanvar(rest) / np.nanvar(y)
    return np.exp(np.nan_to_num(rest, nan=-np.inf)), float(removed)


within = {title: rescaled(values) for title, values in layers.items()}
inside = tj.fit({title: values for title, (values, _) in within.items()}, families=FAMILIES)
print("\nWith the scale of every output and input channel taken out:\n")
print(f"  {'':<24} Var ln|w| from scales   KL before   KL after, nats     best single law")
for title, (_, removed) in within.items():
    fit = inside[title].lognormal
    print(
        f"  {title:<24} {removed:>12.0%}{'':14}{report[title].lognormal.kl_nats:.4f}      "
        f"{nats(fit):<15}    {rival(inside[title])}"
    )

# %% [markdown]
# ## 5. What follows
#
# The words below are chosen by the numbers, for the theory or against it.


# %%
def verdict(title: str) -> str:
    """What the numbers say of one layer."""
    fit, after = report[title].lognormal, inside[title].lognormal
    best = rival(report[title])
    away = fit.kl_nats / fit.kl_se
    text = f"{title}: {nats(fit)} nats from equilibrium"
    if away < 3:
        return f"{text}, none that {report[title].moments.n:,} connections could show.\n    At equilibrium."
    if fit.kl_nats < 1e-3:
        return f"{text}: beyond doubt, and too little to matter.\n    At equilibrium."
    text += f", {away:.0f} standard errors:\n    {fit.kl_nats / GAUSSIAN_KL:.0%} of the distance of an untrained layer."
    if best != "lognormal":
        text += f"\n    {best} describes it better, by {report[title].gain(best):.4f} nats a weight."
    if fit.kl_nats > GAUSSIAN_KL - 0.01:
        text += "\n    Not at equilibrium, and no nearer to it than where training starts."
    elif fit.kl_nats > 0.5 * GAUSSIAN_KL:
        text += "\n    Not at equilibrium, and nearer to where training starts."
    else:
        text += "\n    Much nearer to the lognormal than to its Gaussian start, yet not on it."
    nearer, gone = GAUSSIAN_KL - fit.kl_nats, after.kl_nats - fit.kl_nats
    if nearer > 0.01 and gone > 3 * (fit.kl_se + after.kl_se):
        text += (
            f"\n    Taking out the scales of channels undoes {min(gone / nearer, 1):.0%} of its approach to "
            f"the lognormal:\n    within channels it lies at {after.kl_nats:.4f}, and {rival(inside[title])} is best."
        )
    return text


print("\nWhat follows:\n")
for title in layers:
    print(f"  {verdict(title)}")
settled = [title for title in chosen if verdict(title).endswith("At equilibrium.")]
print(f"\n  Trained layers at arbitrage equilibrium: {len(settled)} of {len(chosen)}. ", end="")
print("The prediction holds here." if len(settled) == len(chosen) else "Equal utility is not what these weights show.")
if verdict(LOGNORMAL).endswith("At equilibrium.") and abs(gaussian.kl_nats - GAUSSIAN_KL) < 3 * gaussian.kl_se:
    print("  Both controls came out as they must, so this is a finding about the layers and not about the test.")

# %% [markdown]
# ## 6. One figure

# %%
BLUE, ORANGE, GREY, INK = "#0072b2", "#d55e00", "#c8c8c8", "#222222"  # blue and vermilion of Okabe and Ito
plt.rcParams.update(
    {
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "figure.facecolor": "white",
    }
)
CORNER = {"xycoords": "axes fraction", "textcoords": "offset points", "weight": "bold", "fontsize": 10}
columns = len(layers)
figure = plt.figure(figsize=(9, 7.6), layout="constrained")
grid = figure.add_gridspec(4, columns, height_ratios=[1, 1, 1, 0.7])
panels = np.array([[figure.add_subplot(grid[i, j]) for j in range(columns)] for i in range(3)])
for j, (title, c) in enumerate(curves.items()):
    fit, top, middle, bottom = report[title].lognormal, *panels[:, j]
    for panel in (middle, bottom):
        panel.sharex(top)
        panel.tick_params(labelbottom=panel is bottom)
    top.tick_params(labelbottom=False)
    top.set_xlim(c.y[0], c.y[-1])
    top.stairs(c.bins.counts / c.bins.counts.sum() / np.diff(c.bins.edges), c.bins.edges, fill=True, color=GREY)
    top.plot(c.y, np.exp(c.density.log_density(c.y)), color=BLUE, lw=1.4)
    top.plot(c.y, np.exp(c.log_q), color=ORANGE, lw=1.2, ls=(0, (4, 2)))
    top.set_title(f"{title}\nKL {'' if '<' in nats(fit) else '= '}{nats(fit)} nats", color=INK)
    low, high = fit.utility_low - fit.kl_nats, fit.utility_high - fit.kl_nats
    middle.axhspan(low, high, color=BLUE, alpha=0.15, lw=0)
    middle.plot(c.y, c.utility, color=BLUE, lw=1.4)
    bottom.plot(c.y, c.gradient, color=BLUE, lw=1.4)
    for panel in (middle, bottom):
        panel.axhline(0, color=ORANGE, lw=1.2, ls=(0, (4, 2)))
    top.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    bottom.set_xlabel("ln |w|")
labels = (
    "density, per unit of ln |w|",
    "utility $\\hat h - h^*$, nats",
    "gradient $\\partial\\hat h/\\partial\\ln|w|$, nats",
)
limits = ((0, None), (-1.6, 1.6), (-2.2, 2.2))
for letter, row, label, limit in zip("abc", panels, labels, limits, strict=True):
    row[0].set_ylabel(label)
    row[0].annotate(letter, (0, 1), (-38, 4), **CORNER)
    height = max(panel.get_ylim()[1] for panel in row)
    for panel in row:
        panel.set_ylim(limit[0], height if limit[1] is None else limit[1])
        panel.tick_params(labelleft=panel is row[0])
words = (("room to gain", "overcrowded"), ("stronger pays", "weaker pays"))
for panel, pair in zip(panels[1:, -1], words, strict=True):
    for height, word in zip((0.85, 0.15), pair, strict=True):
        panel.text(0.5, height, word, transform=panel.transAxes, ha="center", va="center", color="#666666")

strip = figure.add_subplot(grid[3, :])
for j, title in enumerate(reversed(layers)):
    before, after = report[title].lognormal, inside[title].lognormal
    strip.plot([before.kl_nats, after.kl_nats], [j, j], color=GREY, lw=2, zorder=1)
    for fit, colour in ((before, BLUE), (after, "white")):
        strip.errorbar(
            fit.kl_nats,
            j,
            xerr=1.96 * fit.kl_se,
            fmt="o",
            color=BLUE,
            mfc=colour,
            ms=5,
            elinewidth=1,
            zorder=2,
        )
strip.axvline(GAUSSIAN_KL, color=INK, lw=0.8, ls=":")
strip.annotate("Gaussian, in theory", (GAUSSIAN_KL, columns - 0.5), (-4, 0), textcoords="offset points", ha="right")
strip.annotate("d", (0, 1), (-38, 4), **CORNER)
strip.axvline(0, color=ORANGE, lw=1.2, ls=(0, (4, 2)))
strip.set(yticks=range(columns), yticklabels=reversed(layers), ylim=(-0.6, columns - 0.1), xlim=(-0.004, None))
strip.set_xlabel("distance from equilibrium KL, nats per connection")
handles = [
    plt.Line2D([], [], color=BLUE, lw=1.4, label="layer"),
    plt.Rectangle((0, 0), 1, 1, color=GREY, label="counts"),
    plt.Line2D([], [], color=ORANGE, lw=1.2, ls=(0, (4, 2)), label="equilibrium: its lognormal"),
    plt.Rectangle((0, 0), 1, 1, color=BLUE, alpha=0.15, lw=0, label="90% of connections"),
    plt.Line2D([], [], color=BLUE, marker="o", ls="", ms=5, label="as stored"),
    plt.Line2D([], [], color=BLUE, marker="o", mfc="white", ls="", ms=5, label="channel scales taken out"),
]
figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, handlelength=1.8, columnspacing=1.4)
path = options.out / "is_this_layer_at_equilibrium.png"
figure.savefig(path, dpi=200)
print(f"\nFigure: {path}")
