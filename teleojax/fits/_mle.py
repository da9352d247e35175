"""Maximum likelihood of many families for many tensors, from their statistics."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from scipy.special import ndtri

from teleojax._errors import UsageError
from teleojax.engine import compiled_float64
from teleojax.families import FAMILIES, Family, Shape
from teleojax.fits._interval import intervals_of, mean_log_width
from teleojax.fits._nodes import nodes_of, tail_nodes
from teleojax.fits._solve import Intervals, Points, Solved, solve
from teleojax.fits._tail import find_tail
from teleojax.stats import LogMoments, TensorStats

LANES = 64  # tensors solved in one call: few shapes to compile, and the last call wastes little
INTERVAL_LANES = 8  # the same of rounding cells, of which a tensor may have thousands
FIRST_STEPS, MAX_STEPS = 12, 100  # from each of several starts, and from the best of them
RETRIES, JITTER = 8, 0.7  # further starts for a fit that did not converge, moved by normal deviates of this size
WEAK_SE = 1.0  # standard error of an unconstrained parameter (mostly a logarithm) from which data hardly tell it
WORSE = 1e-9  # nats a value: a family that lies this far below a special case of its own has not been maximised

Number = Any  # a float; a tuple of them for a vector


@dataclass(frozen=True, slots=True)
class FamilyFit:
    """One family at its maximum of likelihood.

    `loglik_per_value` is the mean of ln p(x), density in x, in nats, over the `n` values that the family describes: all
    of them, or for a tail family those from xmin up. `aic` = 2k − 2 ln L and `bic` = k ln n − 2 ln L, k parameters.
    `se` are standard errors of the parameters from the observed information, for independent values; NaN where the
    information is not positive definite. `jackknife_se` are those of a delete-a-group jackknife over contiguous blocks,
    where groups were measured. `limit` names the simpler law that the parameters have all but reached. `extra` holds
    what another method than maximum likelihood says besides.

    status: "ok"; "weak" (some parameter is hardly determined by the data: `limit`, or its standard error, tells, or it
    lies at the end of its range; the law itself is settled); "not converged"; "degenerate" (no maximum exists: no
    values, no spread, no tail, or a parameter below the range of floats), where `params` is empty and the numbers are
    NaN; "no histogram" (only moments were taken, and the family needs more).
    """

    family: str
    params: dict[str, Number]
    loglik_per_value: float
    aic: float
    bic: float
    status: str
    n: int = 0
    se: dict[str, Number] = field(default_factory=dict)
    limit: str | None = None
    jackknife_se: dict[str, Number] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Number:
        """A parameter by its name: `fit.scale`."""
        try:
            return self.params[name]
        except KeyError:
            raise AttributeError(
                f"{self.family} has no {name!r}; it has {', '.join(self.params) or 'no fit'}"
            ) from None

    @property
    def maximised(self) -> bool:
        """Whether the likelihood is at its maximum, so that it may be compared."""
        return self.status in ("ok", "weak")

    def interval(self, name: str, *, level: float = 0.95, kind: str = "information") -> tuple[Number, Number]:
        """A confidence interval of a parameter, normal in the logarithm of a positive one, elsewhere in itself.

        `kind` is "information" (independent values) or "jackknife" (contiguous blocks; NaN unless groups were
        measured). Raises UsageError for a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise UsageError("level", found=f"{level!r}", needed="a number between 0 and 1", remedy="Use 0.95, say.")
        errors = self.se if kind == "information" else self.jackknife_se
        z = float(ndtri((1 + level) / 2))
        value, se = np.asarray(self.params[name]), np.asarray(errors.get(name, math.nan))
        if name in REAL_PARAMETERS:
            low, high = value - z * se, value + z * se
        else:
            factor = np.exp(z * se / np.abs(value))
            low, high = np.sort(np.stack([value / factor, value * factor]), axis=0)
        return as_number(low), as_number(high)


REAL_PARAMETERS = frozenset({"mu", "mus"})  # of the lognormals; every other parameter has one sign


def families_by_name(names: Iterable[str]) -> list[Family]:
    """The families of those names, each once, in that order; "all" stands for every registered one.

    Raises UsageError for a name that is not known.
    """
    names = list(dict.fromkeys(each for name in names for each in (FAMILIES if name == "all" else (name,))))
    unknown = [n for n in names if n not in FAMILIES]
    if unknown:
        raise UsageError(
            "families",
            found=", ".join(map(repr, unknown)),
            needed=f"names among {', '.join(FAMILIES)}, or all",
            remedy="Correct the name.",
        )
    return [FAMILIES[n] for n in names]


def maximum_likelihood(
    families: Sequence[Family], stats: Sequence[TensorStats], *, interval: bool = False, xmin: float | None = None
) -> list[dict[str, FamilyFit]]:
    """Fit every family to every set of statistics: for each set, family name -> FamilyFit, in the order given.

    Families with a closed form take it from the exact log-moments; the others are maximised on the histogram, all
    tensors side by side. With `interval` all of them are maximised on the probabilities of the rounding cells that the
    storage type leaves, zeros of a type of at most 8 bits included (the cell [0, half a step)); n counts those too.
    Tail families describe the values from `xmin` up, by default where `find_tail` puts it, and always as points.
    """
    results = [{family.name: _unfitted(family, s) for family in families} for s in stats]
    usable = [i for i, s in enumerate(stats) if _usable(s)]
    by_likelihood = [f for f in families if f.closed_form is None or interval]
    for family in families:
        if family not in by_likelihood:
            for s, mine in zip(stats, results, strict=True):
                mine[family.name] = _closed(family, s.moments)
    jobs = [
        (family, problem)
        for tail, make in (
            (False, partial(_whole_problem, interval=interval)),
            (True, partial(_tail_problem, xmin=xmin)),
        )
        if (mine := [f for f in by_likelihood if f.tail == tail]) and usable
        for problem in [make(stats, usable)]
        for family in mine
    ]
    # a thread a core: one family compiles while another is solved
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        solved = list(threads.map(lambda job: _solve_all(*job), jobs))
    for (family, problem), found in zip(jobs, solved, strict=True):
        for lane, i in enumerate(problem.index):
            results[i][family.name] = _fit_of(family, problem, found, lane)
    for (family, problem), found in zip(jobs, solved, strict=True):
        _redo_where_a_special_case_is_better(family, problem, found, results)
    return results


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """Likelihoods of those tensors of a list that `index` names, one a lane: n values behind each, start shapes, and
    what to take from a mean log-likelihood of the data to have the mean log-density in x.
    """

    data: Points | Intervals
    centre: np.ndarray
    index: list[int]
    n: np.ndarray
    shapes: list[Shape]
    offset: np.ndarray


def _usable(stats: TensorStats) -> bool:
    return stats.histogram is not None and stats.moments.n > 1 and stats.moments.m2 > 0


def _whole_problem(stats: Sequence[TensorStats], usable: list[int], *, interval: bool) -> _Problem:
    some = [stats[i] for i in usable]
    moments = [s.moments for s in some]
    shapes = [Shape(m.sigma, m.skew, m.excess_kurtosis) for m in moments]
    centre = np.asarray([m.mean for m in moments])
    if not interval:
        return _Problem(nodes_of(some), centre, usable, np.asarray([m.n for m in moments]), shapes, centre)
    cells = [s.rounding_cells for s in some]
    n, offset = np.asarray([c.n for c in cells]), np.asarray([mean_log_width(c) for c in cells])
    return _Problem(intervals_of(cells, centre), centre, usable, n, shapes, offset)


def _tail_problem(stats: Sequence[TensorStats], usable: list[int], *, xmin: float | None) -> _Problem:
    tails = {i: find_tail(stats[i], xmin) for i in usable}
    index = [i for i in usable if len(tails[i].cells.mean) > 1]  # else there is no tail, or it has no spread
    centre = np.asarray([tails[i].log_xmin for i in index])
    points = tail_nodes([tails[i].cells for i in index], centre)
    y, weight = np.asarray(points.y), np.asarray(points.weight)
    mean = np.sum(weight * y, axis=1)
    m2, m3, m4 = (np.sum(weight * (y - mean[:, None]) ** k, axis=1) for k in (2, 3, 4))
    m2 = np.maximum(m2, 1e-150)  # its square is a float
    shapes = [Shape(*row) for row in zip(np.sqrt(m2), m3 / m2**1.5, m4 / m2**2 - 3, strict=True)]
    return _Problem(points, centre, index, np.asarray([tails[i].n for i in index]), shapes, centre + mean)


def _starts(family: Family, problem: _Problem) -> np.ndarray:
    return np.stack([family.starts(shape) for shape in problem.shapes])


def _solve_all(family: Family, problem: _Problem) -> Solved | None:
    """All tensors of a problem; one that did not converge gets further starts. None without a tensor."""
    if not problem.index:
        return None
    solved = _best(family, problem, _starts(family, problem), np.arange(len(problem.index)))
    stubborn = np.flatnonzero(~np.asarray(solved.converged))
    return _retry(family, problem, solved, stubborn) if len(stubborn) else solved


def _retry(family: Family, problem: _Problem, solved: Solved, lanes: np.ndarray) -> Solved:
    """The solutions, those of some lanes replaced where starts near the old ones, or the old end, do better."""
    rng = np.random.default_rng(0)
    starts = _starts(family, problem)[lanes]
    moved = starts[:, rng.integers(starts.shape[1], size=RETRIES)]
    moved = moved + JITTER * rng.standard_normal(moved.shape)
    theta = np.asarray(solved.theta)[lanes][:, None]
    again = _best(family, problem, np.concatenate([theta, moved], axis=1), lanes)
    value, converged = np.asarray(solved.value)[lanes], np.asarray(solved.converged)[lanes]
    better = (np.asarray(again.converged) & ~converged) | (np.asarray(again.value) > value) | np.isnan(value)

    def replaced(old: Any, new: Any) -> np.ndarray:
        old = np.array(old)
        old[lanes[better]] = np.asarray(new)[better]
        return old

    return jax.tree.map(replaced, solved, again)


def _best(family: Family, problem: _Problem, starts: np.ndarray, lanes: np.ndarray) -> Solved:
    """Of several starts (lanes, starts, p) of each lane the best: a few steps from each, from that one to the end."""
    n_lanes, n_starts, _ = starts.shape
    if n_starts > 1:
        flat = starts.reshape(n_lanes * n_starts, -1)
        tried = _solve_lanes(family, problem, flat, np.repeat(lanes, n_starts), FIRST_STEPS)
        value = np.asarray(tried.value).reshape(n_lanes, n_starts)
        best = np.argmax(np.where(np.isfinite(value), value, -np.inf), axis=1) + n_starts * np.arange(n_lanes)
        starts = np.asarray(tried.theta)[best][:, None]
    return _solve_lanes(family, problem, starts[:, 0], lanes, MAX_STEPS)


def _solve_lanes(family: Family, problem: _Problem, starts: np.ndarray, lanes: np.ndarray, max_steps: int) -> Solved:
    """The given lanes, as many in a call as its program takes; the last call repeats some."""
    run = compiled_float64(solve, "family")
    at_once, parts = INTERVAL_LANES if isinstance(problem.data, Intervals) else LANES, []
    for a in range(0, len(lanes), at_once):
        rows = np.resize(np.arange(a, min(a + at_once, len(lanes))), at_once)
        mine = lanes[rows]
        data = jax.tree.map(lambda leaf, mine=mine: leaf[mine], problem.data)
        n = problem.n[mine].astype(np.float64)
        parts.append(run(data, starts[rows], problem.centre[mine], n, max_steps, family=family))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(lanes)], *parts)


def _redo_where_a_special_case_is_better(
    family: Family, problem: _Problem, solved: Solved | None, results: list[dict[str, FamilyFit]]
) -> None:
    """A maximum below that of a special case is a local one: try further starts for it."""
    if solved is None or family.tail:
        return
    lanes = []
    for lane, i in enumerate(problem.index):
        special = [fit.loglik_per_value for name in family.contains if (fit := results[i].get(name)) and fit.maximised]
        if special and not results[i][family.name].loglik_per_value >= max(special) - WORSE:
            lanes.append(lane)
    if lanes:
        again = _retry(family, problem, solved, np.asarray(lanes))
        for lane in lanes:
            results[problem.index[lane]][family.name] = _fit_of(family, problem, again, lane)


def _fit_of(family: Family, problem: _Problem, solved: Solved | None, lane: int) -> FamilyFit:
    if solved is None:
        raise ValueError("no tensor was solved")
    n, loglik = int(problem.n[lane]), float(solved.value[lane] - problem.offset[lane])
    params = {name: as_number(solved.params[name][lane]) for name in family.parameters}
    se = {name: as_number(solved.se[name][lane]) for name in family.parameters if name != "xmin"}
    sizes = [np.abs(np.asarray(value)) for name, value in params.items() if name not in REAL_PARAMETERS]
    if not all(np.all((size > 0) & np.isfinite(size)) for size in sizes):  # past the range of floats
        return FamilyFit(family.name, {}, math.nan, math.nan, math.nan, "degenerate", n)
    limit = family.limit(params)
    low, high = np.asarray(family.bounds).T
    inside = np.all((solved.theta[lane] > low) & (solved.theta[lane] < high))
    if not math.isfinite(loglik) or not (solved.converged[lane] or limit):  # towards a limit, a ridge may run on
        status = "not converged"
    elif limit is not None or not inside or not np.all(solved.theta_se[lane] < WEAK_SE):  # NaN is weak too
        status = "weak"
    else:
        status = "ok"
    k, total = family.n_free, n * loglik
    return FamilyFit(family.name, params, loglik, 2 * k - 2 * total, k * math.log(n) - 2 * total, status, n, se, limit)


def _closed(family: Family, moments: LogMoments) -> FamilyFit:
    form = family.closed_form
    params = form.estimate(moments) if form is not None and moments.n > 1 else None
    if form is None or params is None:
        return FamilyFit(family.name, {}, math.nan, math.nan, math.nan, "degenerate", moments.n)
    loglik = form.loglik_per_value(moments, params)
    k, total = family.n_free, moments.n * loglik
    aic, bic = 2 * k - 2 * total, k * math.log(moments.n) - 2 * total
    return FamilyFit(
        family.name, {**params}, loglik, aic, bic, "ok", moments.n, {**form.standard_errors(params, moments.n)}
    )


def _unfitted(family: Family, stats: TensorStats) -> FamilyFit:
    status = "no histogram" if stats.histogram is None and stats.moments.m2 > 0 else "degenerate"
    return FamilyFit(family.name, {}, math.nan, math.nan, math.nan, status, stats.moments.n)


def as_number(value: Any) -> Number:
    """A float, or a tuple of floats of a vector."""
    array = np.asarray(value, np.float64)
    return tuple(array.tolist()) if array.ndim else float(array)
