"""Penalised Poisson likelihood of binned counts for many tensors at once: Newton's method, and the choice of λ.

The tensors' banded systems lie end to end in one block-diagonal band, so one LAPACK call factors them all; sums over
bins are `np.add.reduceat` over contiguous cells. No Python loop over tensors runs inside Newton's method. Each tensor
takes its own steps and stops by itself, so its answer does not depend on its companions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import get_lapack_funcs

from teleojax.diagnose._bspline import ORDER
from teleojax.diagnose._design import PAIRS, Batch

LADDER = 10.0 ** np.arange(0.5, -12.6, -1.0)  # λ per value, stiff to loose
COST = 1.4  # of a degree of freedom, in units of AIC's
GIVE_UP = 8.0  # a criterion this far above its minimum, at looser and looser λ, ends the search
RETRIES = 4  # a tensor that does not converge at its λ is tried at ten times that
NEAR = 1e-4  # a Newton decrement this small means quadratic convergence: rounding would blur a line search
NUDGE = 0.03  # of ln λ: wide, for at stiff λ rounding leaves ln det good to 1e-6 only
pbtrf, pbtrs = get_lapack_funcs(("pbtrf", "pbtrs"), dtype=np.float64)


@dataclass(frozen=True)
class State:
    """What one evaluation yields: coefficients less the starting quadratic, likelihood and its derivatives.

    delta: [K].  loglik: [T], relative to the saturated model.  objective: [T], less the penalty.
    rough: [K], penalty matrix times delta.  mean_count: [N], expected.  mean_basis: [4, N], the B-splines averaged over
    a cell under the fitted density.
    """

    delta: np.ndarray
    loglik: np.ndarray
    objective: np.ndarray
    rough: np.ndarray
    mean_count: np.ndarray
    mean_basis: np.ndarray


@dataclass(frozen=True)
class Fit:
    """Fitted coefficients [K] and, per tensor, ∫e^f by the fit's own nodes, λ, edf, λ∫f‴² and success."""

    coefs: np.ndarray
    norm: np.ndarray
    lam: np.ndarray
    edf: np.ndarray
    penalty: np.ndarray
    converged: np.ndarray


def fit_batch(batch: Batch) -> Fit:
    """Walk λ from stiff to loose, choose it by AIC with a parabola through the best three, and fit once more there.

    AIC(ln λ) is smooth, and the parabola's vertex moves continuously as the best rung of the ladder changes, so that a
    small change of the bins is a small change of the estimate.
    """
    n_tensors = batch.total.size
    table = np.full((LADDER.size, n_tensors), np.inf)
    state = evaluate(batch, np.zeros_like(batch.quadratic), LADDER[0] * batch.total)
    best = state.delta
    searching = np.ones(n_tensors, bool)
    for rung, per_value in enumerate(LADDER):
        lam = per_value * batch.total
        state, hessian, arrived = newton(batch, state, lam, searching, tolerance=0.02, max_steps=20)
        aic = information_criterion(state.loglik, degrees_of_freedom(batch, hessian, lam), batch.total)
        table[rung, searching] = np.where(arrived & np.isfinite(aic), aic, np.inf)[searching]
        improved = searching & (table[rung] <= table.min(0))
        best = np.where(improved[batch.tensor_of_coef], state.delta, best)
        searching = searching & ~(arrived & (table[rung] > table.min(0) + GIVE_UP))
        if not searching.any():
            break
    lam = 10.0 ** _vertex(np.log10(LADDER), table) * batch.total
    state = evaluate(batch, best, lam)
    converged = np.zeros(n_tensors, bool)
    hessian = batch.penalty
    for _ in range(RETRIES):
        state, hessian, arrived = newton(batch, state, lam, ~converged, tolerance=1e-8, max_steps=50)
        converged |= arrived
        if converged.all():
            break
        lam = np.where(converged, lam, 10 * lam)
        state = evaluate(batch, state.delta, lam)
    edf = degrees_of_freedom(batch, hessian, lam)
    penalty = lam * np.add.reduceat(state.delta * state.rough, batch.coef_start)
    norm = np.add.reduceat(state.mean_count, batch.cell_start) / batch.total
    return Fit(state.delta + batch.quadratic, norm, lam, edf, penalty, converged)


def information_criterion(loglik: np.ndarray, edf: np.ndarray, n: np.ndarray) -> np.ndarray:
    """−2 ln L + 2·1.4·edf·n/(n − edf − 1): AIC, safe against its two habits of fitting too closely.

    n/(n − edf − 1) is the small-sample term of Hurvich & Tsai (1989); without it a sample of ten is interpolated, a
    spike a value. 1.4 is the factor of Kim & Gu (2004), who found that it ends the occasional gross undersmoothing of
    such criteria and costs little: here it takes a fifth to a half off the error of the score.
    """
    room = n - edf - 1
    return np.where(room > 0, 2 * COST * edf * n / np.where(room > 0, room, 1) - 2 * loglik, np.inf)


def _vertex(grid: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Where the parabola through the smallest entry of each column and its neighbours has its minimum.

    At an end of the grid the three last rungs serve, and the end itself where they bend the wrong way.
    """
    smallest, columns = np.argmin(table, axis=0), np.arange(table.shape[1])
    middle = np.clip(smallest, 1, grid.size - 2)
    before, here, after = (table[middle + k, columns] for k in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        bend = before - 2 * here + after
        shift = np.where((bend > 0) & np.isfinite(bend), 0.5 * (before - after) / bend, smallest - middle)
    return np.clip(grid[middle] + (grid[1] - grid[0]) * shift, grid[-1], grid[0])


def evaluate(batch: Batch, delta: np.ndarray, lam: np.ndarray) -> State:
    """Likelihood, expected counts and mean basis functions at f = quadratic + Σ delta_k B_k."""
    local = (batch.quadratic + delta)[batch.gather]
    with np.errstate(over="ignore", invalid="ignore"):
        mass = np.einsum("qjn,jn->qn", batch.basis, local)
        mass += batch.log_weight
        peak = mass.max(0)
        mass -= peak
        np.exp(mass, out=mass)
        scaled = mass.sum(0)
        mean_basis = np.einsum("qn,qjn->jn", mass, batch.basis)
        mean_basis /= scaled
        log_count = peak + np.log(scaled)
        mean_count = np.exp(log_count)
        part = batch.counts - mean_count
        hit = batch.occupied
        part[hit] += batch.counts[hit] * (log_count[hit] - batch.log_counts)
        loglik = np.add.reduceat(part, batch.cell_start)
        rough = band_times(batch.penalty, delta)
        objective = loglik - 0.5 * lam * np.add.reduceat(delta * rough, batch.coef_start)
    return State(delta, loglik, objective, rough, mean_count, mean_basis)


def newton(
    batch: Batch, state: State, lam: np.ndarray, wanted: np.ndarray, *, tolerance: float, max_steps: int
) -> tuple[State, np.ndarray, np.ndarray]:
    """Damped Fisher scoring at fixed λ for the `wanted` tensors; the others stay where they are.

    A tensor stops when its Newton decrement gᵀH⁻¹g, twice the likelihood still to be gained, is under `tolerance`.
    Returns the state, the band of the likelihood's information matrix there, and which tensors arrived.
    """
    of_coef = batch.tensor_of_coef
    step_number = 0
    while True:
        gradient, information = derivatives(batch, state)
        gradient -= lam[of_coef] * state.rough
        step, solvable = solve(batch, information + lam[of_coef] * batch.penalty, gradient)
        decrement = np.add.reduceat(gradient * step, batch.coef_start)
        arrived = solvable & (decrement <= max(tolerance, NEAR)) & (decrement >= 0)
        moving = wanted & solvable & (decrement > tolerance)
        if not moving.any() or step_number == max_steps:
            return state, information, arrived
        step_number += 1
        scale = moving.astype(np.float64)
        doubtful = moving & (decrement > NEAR)
        while True:
            trial = evaluate(batch, state.delta + scale[of_coef] * step, lam)
            worse = (scale > 0) & ~(trial.objective >= np.where(doubtful, state.objective, -np.inf))
            if not worse.any():
                break
            scale[worse] *= np.where(scale[worse] > 1e-6, 0.5, 0.0)
        state = trial


def derivatives(batch: Batch, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [K] of the log-likelihood and the lower band [4, K] of its expected information."""
    rows = np.empty((ORDER + len(PAIRS), state.mean_count.size))
    np.multiply(batch.counts - state.mean_count, state.mean_basis, out=rows[:ORDER])
    weighted = state.mean_count * state.mean_basis
    for row, (i, j) in enumerate(PAIRS, start=ORDER):
        np.multiply(weighted[i], state.mean_basis[j], out=rows[row])
    by_interval = np.zeros((rows.shape[0], batch.quadratic.size))
    by_interval[:, batch.base] = np.add.reduceat(rows, batch.interval_start, axis=1)
    size = batch.quadratic.size
    gradient, band = np.zeros(size), np.zeros((ORDER, size))
    for j in range(ORDER):
        gradient[j:] += by_interval[j, : size - j]
    for row, (i, j) in enumerate(PAIRS, start=ORDER):
        band[j - i, i:] += by_interval[row, : size - i]
    return gradient, band


def band_times(band: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Product of the symmetric matrix whose lower band is [4, K] with a vector [K]."""
    out = band[0] * x
    for d in range(1, ORDER):
        out[d:] += band[d, :-d] * x[:-d]
        out[:-d] += band[d, :-d] * x[d:]
    return out


def factor(batch: Batch, band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky factor of the block-diagonal band, and which tensors' blocks are positive definite.

    A block that is not becomes the identity, so that it cannot spoil its neighbours.
    """
    good = np.ones(batch.total.size, bool)
    while True:
        factored, info = pbtrf(band, lower=1)
        if info == 0:
            return factored, good
        bad = batch.tensor_of_coef[info - 1]
        good[bad] = False
        band = np.where(batch.tensor_of_coef == bad, np.eye(ORDER)[:, :1], band)


def solve(batch: Batch, band: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton steps of every tensor, zero where its matrix is not positive definite."""
    factored, good = factor(batch, band)
    right = np.where(good[batch.tensor_of_coef] & np.isfinite(right), right, 0.0)
    step, _ = pbtrs(factored, right, lower=1)
    return step, good


def degrees_of_freedom(batch: Batch, information: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """edf = tr[(G + λP)⁻¹ G] = K − d ln det(G + λP)/d ln λ, by a central difference of the Cholesky diagonal."""
    logdet = []
    good = np.ones(lam.size, bool)
    for nudge in (np.exp(NUDGE), np.exp(-NUDGE)):
        factored, solvable = factor(batch, information + (nudge * lam)[batch.tensor_of_coef] * batch.penalty)
        logdet.append(2 * np.add.reduceat(np.log(factored[0]), batch.coef_start))
        good &= solvable
    each = np.diff(np.append(batch.coef_start, batch.quadratic.size))
    return np.where(good, each - (logdet[0] - logdet[1]) / (2 * NUDGE), np.nan)
