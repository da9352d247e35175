"""A game that becomes lognormal: a hundred thousand selfish agents, and the equilibrium that nobody planned.

    python examples/a_game_that_becomes_lognormal.py

Prints a lesson with its numbers and leaves a_game_that_becomes_lognormal.png in the folder --out. Every `# %%` begins a
cell: Jupyter, VS Code and Spyder open this file as a notebook. Needs `pip install 'teleojax[plots]'`.
"""

# %% [markdown]
# # A game that becomes lognormal
#
# Why should the weights of a network be lognormal at all? Statistical teleodynamics answers with a game. Connections
# are agents; the strength x that one has is the category it sits in. Strength brings α ln x, costs β (ln x)², and has
# to be shared with the M_i agents of the same category:
#
#     h_i = α ln x_i − β (ln x_i)² − ln M_i.
#
# Each agent looks after itself alone. Yet there is one number that every such move raises on average, the potential
#
#     φ(p) = Σ p_i u_i − Σ p_i ln p_i,        u_i = α ln x_i − β (ln x_i)²,
#
# and since it is concave there is one place where they end: all h_i equal, p\* = softmax(u), φ\* = ln Σ exp(u). For
# this u, that is a lognormal. Here the game is played, by agents who know nothing of it.

# %%
import argparse
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from teleojax import teleo

NOTEBOOK = "ipykernel" in sys.modules
if not NOTEBOOK:
    plt.switch_backend("Agg")
parser = argparse.ArgumentParser(description="A population that plays the game of statistical teleodynamics.")
parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder of the figure")
parser.add_argument("--quick", action="store_true", help="fewer replicas, fewer steps")
options = parser.parse_args([] if NOTEBOOK else None)
options.out.mkdir(parents=True, exist_ok=True)

AGENTS, CATEGORIES = 100_000, 64
MU, SIGMA = -5.0, 2.0  # of ln x at equilibrium: about those of a late convolution of BlazePose
REPLICAS, STEPS = (16, 400) if options.quick else (64, 2000)
REST = 200  # steps after which nothing of the start is left, in the slowest of the games below

# %% [markdown]
# ## 1. The game
#
# 64 categories of equal width in ln x, over μ ± 3.5 σ. The measure matters: with equal widths in ln x the lognormal
# needs α = μ/σ²; with equal widths in x it would be μ/σ² − 1.

# %%
log_edges = MU + SIGMA * np.linspace(-3.5, 3.5, CATEGORIES + 1)
log_x, width = 0.5 * (log_edges[1:] + log_edges[:-1]), log_edges[1] - log_edges[0]
params = teleo.utility_parameters(MU, SIGMA, measure="dlnx")
u = teleo.lognormal_utility(np.exp(log_x), params.alpha, params.beta)
target = teleo.equilibrium(u)
print("A GAME THAT BECOMES LOGNORMAL\n")
print(f"  agents M = {AGENTS:,}, categories m = {CATEGORIES}, replicas {REPLICAS}")
print(f"  benefit α = {params.alpha:.3f}, cost β = {params.beta:.4f}: lognormal of μ = {MU:g}, σ = {SIGMA:g}")
print(f"  potential at equilibrium φ* = {float(target.potential):.4f} nats an agent")
print(f"  effective utility there h* = φ* − ln M = {float(target.h_star(AGENTS)):.4f} nats, the same for all")

# %% [markdown]
# ## 2. A bad start
#
# The worst-liked categories are the fullest: shares proportional to 1/p\*.

# %%
inverse = np.asarray(1 / target.p, np.float64)
exact = AGENTS * inverse / inverse.sum()
start = np.floor(exact).astype(int)
start[np.argsort(start - exact)[: AGENTS - start.sum()]] += 1  # largest remainders
shares = jnp.asarray(start / AGENTS)
before = teleo.utility_spread(u - jnp.log(shares), shares)
gap_before = float(teleo.potential_gap(shares, u))
print("\nThe start, with shares proportional to 1/p*:\n")
print(f"  potential φ = {float(teleo.potential(shares, u)):.4f}, short of φ* by {gap_before:.4f} nats an agent")
print(f"  SD of effective utility over agents = {float(before.sd):.4f} nats")

# %% [markdown]
# ## 3. A population plays
#
# In a step all categories are paired at random and the agents of each pair move for effective utility until neither
# side is better than the other, up to chance: M_i ~ Bin(M_i + M_j, 1/(1 + exp(u_j − u_i))). `jax.vmap` over keys gives
# replicas.
#
# A finite population cannot sit still. Theory says what is left at rest, to first order in 1/M:
#
#     E[φ* − φ] = (m − 1)/(2M)        SD[φ* − φ] = √((m − 1)/2)/M        SD of utility ≈ √((m − 1)/M)
#
# and of the first even the next term, (Σ 1/p* − 1)/(12M²).


# %%
def play(seed: int, u: jax.Array, start: np.ndarray) -> teleo.Population:
    """All replicas of one game; each array has a leading axis of replicas."""
    keys = jax.random.split(jax.random.key(seed), REPLICAS)
    return jax.vmap(lambda key: teleo.simulate_population(key, u, AGENTS, STEPS, start=start, burn_in=REST))(keys)


def over_replicas(values: jax.Array) -> tuple[float, float]:
    """Mean over steps at rest and replicas, and its standard error from the spread between replicas."""
    means = np.asarray(values, np.float64)[:, REST:].mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(REPLICAS))


FLOOR, FLOOR_SD = (CATEGORIES - 1) / (2 * AGENTS), math.sqrt((CATEGORIES - 1) / 2) / AGENTS
SPREAD = math.sqrt((CATEGORIES - 1) / AGENTS)
BEYOND = float(jnp.sum(1 / target.p) - 1) / (12 * AGENTS**2)
game = play(1, u, start)
gaps = np.column_stack([np.full(REPLICAS, gap_before), np.asarray(game.gap)])  # step 0 first
spreads = np.column_stack([np.full(REPLICAS, float(before.sd)), np.asarray(game.dispersion)])
potentials = float(target.potential) - gaps
print(f"\nThe population plays (means over {REPLICAS} replicas, nats an agent):\n")
print("  step   potential φ   gap φ* − φ   SD of utility")
for step in (0, 1, 2, 4, 8, 16, 32, 64, REST, STEPS):
    print(
        f"  {step:4d}   {potentials[:, step].mean():11.4f}   {gaps[:, step].mean():10.6f}   "
        f"{spreads[:, step].mean():13.4f}"
    )
rises = np.diff(potentials.mean(axis=0))[: int(np.argmax(gaps.mean(axis=0) < 2 * FLOOR))]
print(f"\n  of the {len(rises)} steps until the gap was within twice what chance leaves, φ rose in {(rises > 0).sum()}")

(gap, gap_se), (sd, sd_se) = over_replicas(game.gap), over_replicas(game.dispersion)
gap_sd = float(np.asarray(game.gap)[:, REST:].std())
print(f"\nAt rest (steps {REST + 1} to {STEPS}), beside theory:\n")
print(f"  gap φ* − φ       {gap:.4e} ± {gap_se:.1e}    (m − 1)/(2M)     = {FLOOR:.4e}    ratio {gap / FLOOR:.3f}")
print(f"{'':38}to second order  = {FLOOR + BEYOND:.4e}    ratio {gap / (FLOOR + BEYOND):.3f}")
print(f"  its fluctuation  {gap_sd:.4e}{'':14}√((m − 1)/2)/M   = {FLOOR_SD:.4e}    ratio {gap_sd / FLOOR_SD:.3f}")
print(f"  SD of utility    {sd:.4e} ± {sd_se:.1e}    √((m − 1)/M)     = {SPREAD:.4e}    ratio {sd / SPREAD:.3f}")

# %% [markdown]
# ## 4. The replicator beside it
#
# With agents without number, shares grow by their utility above the mean: ṗ_i = p_i (h_i − h̄). This is linear in ln p,
#
#     p_i(t) ∝ p_i(0)^a exp((1 − a) u_i),        a = e^{−t},
#
# so from 1/p\* the path is p ∝ exp((1 − 2a) u): through equal shares at t = ln 2, and on to p\*. The gap falls to zero,
# in the end as e^{−2t}, the SD of utility as e^{−t}: nothing is left to chance.

# %%
times = np.linspace(0, 6, 121)
path = teleo.replicator(shares, u, times)
path_gap = np.asarray(jax.vmap(teleo.potential_gap, (0, None))(path.p, u))
path_spread = np.asarray(jax.vmap(teleo.utility_spread)(u - path.log_p, path.p).sd)
memory = np.exp(-times)[:, None]
closed = jax.nn.log_softmax(memory * np.log(start) + (1 - memory) * np.asarray(u))
print("\nThe replicator, by its closed form:\n")
print("     t    gap φ* − φ   SD of utility   largest |ln p − ln p_closed|")
for k in range(0, len(times), 20):
    off = float(jnp.max(jnp.abs(path.log_p[k] - closed[k])))
    print(f"  {times[k]:4.1f}   {path_gap[k]:11.6f}   {path_spread[k]:13.4f}   {off:.1e}")
middle = teleo.replicator(shares, u, math.log(2)).p
print(
    f"\n  at t = ln 2 shares lie between {float(middle.min()):.5f} and {float(middle.max()):.5f}, "
    f"around 1/m = {1 / CATEGORIES:.5f}"
)
highest = int(np.argmax(path_spread))
print(
    f"  the SD of utility rises at first, to {path_spread[highest]:.4f} at t = {times[highest]:.2f}: "
    "φ alone is sure to climb"
)
late = times > 4
rate = np.polyfit(times[late], np.log(path_gap[late]), 1)[0]
print(f"  for t > 4 the gap falls as exp({rate:.2f} t); theory: exp(−2 t)")

# %% [markdown]
# ## 5. Where they ended
#
# Nobody aimed at p\*, let alone at a lognormal.

# %%
counts = np.asarray(game.counts[0])  # after the last step, in the first replica
p_star = np.asarray(target.p, np.float64)
lognormal = np.exp(-0.5 * ((log_x - MU) / SIGMA) ** 2) / (SIGMA * math.sqrt(2 * math.pi))  # per unit of ln x
chance = np.sqrt((1 - p_star) / (AGENTS * p_star))  # relative SD of a multinomial share
standard = (counts / (AGENTS * p_star) - 1) / chance
mean_shares = np.asarray(game.mean_shares, np.float64).mean(axis=0)


def moments(p: np.ndarray) -> str:
    """Mean and standard deviation of ln x."""
    mean = p @ log_x
    return f"{mean:7.4f}   {math.sqrt(p @ (log_x - mean) ** 2):.4f}"


print("\nWhere they ended:\n")
print("                          μ        σ")
print(f"  start               {moments(start / AGENTS)}")
print(f"  one replica         {moments(counts / AGENTS)}")
print(f"  equilibrium p*      {moments(p_star)}")
print(f"  lognormal, uncut    {MU:7.4f}   {SIGMA:.4f}")
pearson = float(((counts - AGENTS * p_star) ** 2 / (AGENTS * p_star)).sum())
print(
    f"\n  shares at the end against p*: χ² = {pearson:.1f}, expected "
    f"{CATEGORIES - 1} ± {math.sqrt(2 * (CATEGORIES - 1)):.1f}"
)
print(f"  within ±2 SD of chance: {int((np.abs(standard) < 2).sum())} of {CATEGORIES} categories, expected 61")
print(f"  mean shares at rest over all replicas: within {np.abs(mean_shares / p_star - 1).max():.2%} of p* everywhere")
print(
    f"  p* itself is within {np.abs(p_star / width / lognormal - 1).max():.2%} of the lognormal density: its cut tails"
)

# %% [markdown]
# ## 6. The same game, another utility
#
# Nothing in the dynamics knew that u is of lognormal kind. Let categories be the 2⁶ states of six spins and u = −E/T,
# with E the energy of a Hopfield network that remembers two patterns. The equilibrium of this game is the Gibbs
# distribution, φ\* = −F/T with F the free energy, and the same agents find it: a Boltzmann machine. The start is equal
# shares, its equilibrium at T = ∞. The colder it is the longer this takes, for the few good states seldom meet.

# %%
patterns = np.array([[1, 1, 1, -1, -1, -1], [1, -1, 1, -1, 1, -1]])
weights = teleo.store_patterns(patterns)
energies = np.asarray(teleo.hopfield_energy(teleo.spin_states(6), weights), np.float64)
even = np.full(CATEGORIES, AGENTS // CATEGORIES) + (np.arange(CATEGORIES) < AGENTS % CATEGORIES)
print("\nThe same agents in a Hopfield network of 6 spins, 64 states, at rest at temperature T:\n")
print("    T    free energy F            energy ⟨E⟩              gap φ* − φ    (m − 1)/(2M)   in the 4 lowest states")
print("         exact      agents       exact      agents                                    exact    agents")
spins = {}
lowest = energies < energies.min() + 1e-3
for seed, temperature in ((2, 1.0), (3, 0.5)):
    gibbs = teleo.boltzmann_equilibrium(weights, 0.0, temperature)
    run = play(seed, -jnp.asarray(energies) / temperature, even)
    p = np.asarray(run.mean_shares, np.float64).mean(axis=0)
    rest_gap, _ = over_replicas(run.gap)
    free = -temperature * over_replicas(run.potential)[0]
    exact_p = np.asarray(gibbs.probabilities, np.float64)
    spins[temperature] = (np.asarray(run.counts[0]) / AGENTS, exact_p)
    print(
        f"  {temperature:3.1f}   {float(gibbs.free_energy):.5f}   {free:.5f}     "
        f"{float(gibbs.mean_energy):.5f}   {p @ energies:.5f}     "
        f"{rest_gap:.4e}    {FLOOR:.4e}     {exact_p[lowest].sum():.5f}  {p[lowest].sum():.5f}"
    )
stopped = teleo.hopfield_update(teleo.spin_states(6), weights)
stops = np.asarray(teleo.hopfield_energy(stopped.states, weights))
stored = np.abs(np.asarray(stopped.states) @ patterns.T).max(axis=1) == 6
print(
    f"\n  T → 0: asynchronous updates from all 64 states stop at E = {stops.min():.4f} … {stops.max():.4f}; "
    f"{int(stored.sum())} of 64 at a stored pattern or its mirror"
)

# %% [markdown]
# ## 7. One figure

# %%
BLUE, ORANGE, GREEN, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#a8a8a8", "#222222"  # after Okabe and Ito
DASHES = (0, (4, 2))
plt.rcParams.update(
    {
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 7.5,
        "figure.facecolor": "white",
    }
)
figure, ((a, b, c), (d, e, f)) = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
shown = 51
steps = np.arange(shown)
a.plot(steps, potentials[:24, :shown].T, color=BLUE, lw=0.6, alpha=0.5)
a.axhline(float(target.potential), color=ORANGE, lw=1.2, ls=DASHES)
a.annotate(
    "equilibrium $\\varphi^*$",
    (shown - 1, float(target.potential)),
    (0, -11),
    textcoords="offset points",
    ha="right",
    color=ORANGE,
)
a.set(
    title="a  The potential rises",
    xlabel="step of the population",
    ylabel="potential $\\varphi$, nats per agent",
    xlim=(0, shown - 1),
)

for panel, x, both in ((b, steps, (gaps[:24, :shown].T, spreads[:24, :shown].T)), (c, times, (path_gap, path_spread))):
    lines = {"lw": 0.6, "alpha": 0.5} if panel is b else {"lw": 1.4}
    for values, colour in zip(both, (BLUE, GREEN), strict=True):
        panel.plot(x, values, color=colour, **lines)
    panel.set(yscale="log", ylim=(5e-5, 10), xlim=(x[0], x[-1]))
for level, name in ((FLOOR, "$(m-1)/2M$"), (SPREAD, "$\\sqrt{(m-1)/M}$")):
    b.axhline(level, color=ORANGE, lw=1.2, ls=DASHES, zorder=3)
    b.annotate(
        name, (shown - 1, level), (0, 5 if level > 1e-3 else -13), textcoords="offset points", ha="right", color=ORANGE
    )
b.plot([], [], color=GREEN, lw=1.4, label="SD of utility over agents")
b.plot([], [], color=BLUE, lw=1.4, label="gap $\\varphi^* - \\varphi$")
b.legend(loc="upper right")
b.set(title="b  100,000 agents: down to chance", xlabel="step of the population", ylabel="nats per agent")
c.set(title="c  The replicator: down to zero", xlabel="time t of the replicator")
c.annotate("$e^{-2t}$", (times[60], path_gap[60]), (-22, -8), textcoords="offset points", color=BLUE)
c.annotate("$e^{-t}$", (times[80], path_spread[80]), (4, 4), textcoords="offset points", color=GREEN)

fine = np.linspace(log_edges[0], log_edges[-1], 301)
d.stairs(start / AGENTS / width, log_edges, baseline=None, color=GREY, lw=1.2, label="start, shares ∝ 1/p*")
d.plot(log_x, counts / AGENTS / width, "o", color=BLUE, ms=3, label=f"after {STEPS} steps")
d.plot(
    fine,
    np.exp(-0.5 * ((fine - MU) / SIGMA) ** 2) / (SIGMA * math.sqrt(2 * math.pi)),
    color=ORANGE,
    lw=1.2,
    ls=DASHES,
    label="lognormal",
)
d.set(
    yscale="log",
    ylim=(5e-5, None),
    title="d  They end at the lognormal",
    xlabel="ln x",
    ylabel="density, per unit of ln x",
)
d.legend(loc="lower center")

e.fill_between(log_x, -200 * chance, 200 * chance, color=ORANGE, alpha=0.18, lw=0, label="±2 SD of chance")
e.axhline(0, color=ORANGE, lw=1.2, ls=DASHES)
e.plot(log_x, 100 * (counts / (AGENTS * p_star) - 1), "o", color=BLUE, ms=3, label="one replica")
e.set(title="e  No closer than chance allows", xlabel="ln x", ylabel="share at the end, % off p*")
e.legend(loc="upper center")

levels = np.linspace(energies.min() - 0.2, energies.max() + 0.2, 50)
f.axhline(1 / CATEGORIES, color=GREY, lw=1.2)
f.annotate(
    "start: $T = \\infty$", (energies.max(), 1 / CATEGORIES), (0, 4), textcoords="offset points", ha="right", color=INK
)
for (temperature, (p, exact_p)), marker in zip(spins.items(), "os", strict=True):
    scale = exact_p[0] * math.exp(energies[0] / temperature)
    f.plot(energies, p, marker, color=BLUE, ms=4, mfc="none", mew=0.9, label=f"agents, T = {temperature:g}")
    f.plot(
        levels,
        scale * np.exp(-levels / temperature),
        color=ORANGE,
        lw=1.2,
        ls=DASHES,
        label="Gibbs" if marker == "s" else None,
    )
f.set(
    yscale="log",
    title="f  Another utility: a Boltzmann machine",
    xlabel="energy E of a state",
    ylabel="share of agents in the state",
)
f.legend(loc="lower left")
path_png = options.out / "a_game_that_becomes_lognormal.png"
figure.savefig(path_png, dpi=200)
print(f"\nFigure: {path_png}")
