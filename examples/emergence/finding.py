"""From start and end of every replica to changes with intervals, and to words that follow from them alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

METRICS = ("kl_nats", "delta_nats", "sigma")
SPREAD = "sigma_spread"  # standard deviation of σ over initializers, of one seed
ALL = "all"
CONTRAST = "real − null"
LEVEL = 0.95
NEAR = 0.01  # nats: closer than this, a layer of any realistic size looks lognormal
PLACES = {"mlp": "MLP", "transformer": "Transformer"}
Pairs = dict[tuple[str, int], tuple[float, float]]  # (initializer, seed) -> (start, end)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its t interval over `n` values; infinite for one value alone."""

    mean: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(values: Iterable[float]) -> Interval:
        """Of finite values; NaN of none."""
        x = np.array([v for v in values if math.isfinite(v)])
        if len(x) < 2:
            return Interval(float(x[0]) if len(x) else math.nan, -math.inf, math.inf, len(x))
        half = float(stats.t.ppf(0.5 + LEVEL / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
        return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))

    @property
    def sign(self) -> int:
        """−1 or +1 where the interval leaves 0 out, else 0."""
        return (self.low > 0) - (self.high < 0)

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:+.4f} [no interval]"
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True, slots=True)
class Change:
    """How one number moved from step 0 to the end: means of replicas, the change, and how many fell.

    With one initializer the interval is over seeds; with "all" it is over the means of initializers. `kind` is "real",
    "null", "untrained" (two draws, no step) or "real − null": of replicas paired by initializer and seed. `fell` and
    `near` count replicas that fell, and that ended below 0.01.
    """

    network: str
    what: str
    metric: str
    kind: str
    initializer: str
    start: float
    end: float
    change: Interval
    fell: int
    near: int
    n: int


def changes(records: Iterable[Mapping[str, Any]]) -> list[Change]:
    """Of all layer records, each replica being the mean of its layers."""
    found = []
    for (network, what, metric), kinds in sorted(_replicas(records).items(), key=lambda item: in_order(item[0])):
        paired = dict(kinds)
        if metric == "sigma":
            for kind, pairs in kinds.items():
                found.append(_change(network, what, SPREAD, kind, ALL, _spreads(pairs)))
        if "real" in kinds and "null" in kinds:
            paired[CONTRAST] = _contrast(kinds["real"], kinds["null"])
            if metric == "sigma":
                contrast = _contrast(_spreads(kinds["real"]), _spreads(kinds["null"]))
                found.append(_change(network, what, SPREAD, CONTRAST, ALL, contrast))
        for kind, pairs in paired.items():
            for initializer in (*dict.fromkeys(i for i, _ in pairs), ALL):
                found.append(_change(network, what, metric, kind, initializer, pairs))
    return found


def in_order(place: Sequence[str]) -> tuple[int, int]:
    """Where a network and what of it come: the MLP first, weights before neurons."""
    return list(PLACES).index(place[0]), ("weights", "neurons").index(place[1])


def select(found: Iterable[Change], **fields: str) -> list[Change]:
    """The changes with those fields."""
    return [c for c in found if all(getattr(c, name) == value for name, value in fields.items())]


def verdict(found: Sequence[Change], network: str, what: str) -> str:
    """Whether training moved this towards equilibrium, by KL over initializers.

    "supported": KL fell on real data, and by more than in the null; "refuted": it rose; else "not shown". Intervals
    must leave 0 out.
    """
    real, contrast = (_one(found, network, what, "kl_nats", kind) for kind in ("real", CONTRAST))
    if real.change.sign > 0:
        return "refuted"
    return "supported" if real.change.sign < 0 and contrast.change.sign < 0 else "not shown"


def verdicts(found: Sequence[Change]) -> dict[str, str]:
    """The verdict of each network's weights and neurons."""
    places = dict.fromkeys((c.network, c.what) for c in found)
    return {f"{network} {what}": verdict(found, network, what) for network, what in places}


def paragraphs(found: Sequence[Change]) -> list[str]:
    """What the numbers say of weights and of neurons of each network, and a closing line on all of them."""
    places = list(dict.fromkeys((c.network, c.what) for c in found))
    closing = ", ".join(f"{PLACES[network]} {what} {verdict(found, network, what)}" for network, what in places)
    ended = select(found, metric="kl_nats", kind="real", initializer=ALL)
    arrived = (
        f"{sum(c.near for c in cs)} of {sum(c.n for c in cs)} replicas by their {what}" for what, cs in _by(ended)
    )
    control = select(found, kind="untrained")
    alarms = sum(c.change.sign != 0 for c in control)
    return [
        *(_paragraph(found, *place) for place in places),
        f"**Move towards equilibrium by training:** {closing}. Within {NEAR:g} nats of a lognormal at the end: "
        f"{', '.join(arrived)}. Of {len(control)} intervals of the untrained control {alarms} leave 0 out; chance "
        f"would have it in {100 * (1 - LEVEL):.0f}%.",
    ]


def _by(found: Iterable[Change]) -> list[tuple[str, list[Change]]]:
    groups = defaultdict(list)
    for c in found:
        groups[c.what].append(c)
    return list(groups.items())


def _paragraph(found: Sequence[Change], network: str, what: str) -> str:
    kl, null, contrast, control = (
        _one(found, network, what, "kl_nats", kind) for kind in ("real", "null", CONTRAST, "untrained")
    )
    gain, sigma, spread = (_one(found, network, what, metric, "real") for metric in ("delta_nats", "sigma", SPREAD))
    return " ".join(
        (
            f"**{PLACES[network]}, {what}: {verdict(found, network, what)}.**",
            f"The distance from equilibrium went from {kl.start:.3f} to {kl.end:.3f} nats, a change of {kl.change}: "
            f"{_direction(kl)}; it fell in {kl.fell} of {kl.n} replicas, and {kl.near} ended within {NEAR:g} nats.",
            f"By initializer: {_by_initializer(found, network, what, 'real')}. {_starts(found, network, what)}",
            f"The null changed by {null.change}, {_direction(null)}; real less null is {contrast.change}: "
            f"{_contrasted(contrast)}. By initializer, real less null: "
            f"{_by_initializer(found, network, what, CONTRAST)}.",
            f"Two untrained draws differ by {control.change}, {_expected(control)}.",
            f"What the best family gains over the lognormal changed by {gain.change}: {_direction(gain)}.",
            f"σ went from {sigma.start:.3f} to {sigma.end:.3f}, a change of {sigma.change}: {_width(sigma)}; its "
            f"standard deviation over initializers from {spread.start:.3f} to {spread.end:.3f}, {spread.change} over "
            f"seeds: {_drawn_together(spread)}.",
        )
    )


def _direction(c: Change) -> str:
    return {-1: "towards equilibrium", 0: "no direction that the interval can tell", 1: "away from equilibrium"}[
        c.change.sign
    ]


def _contrasted(c: Change) -> str:
    return {
        -1: "real data brought it nearer than the null did",
        0: "no difference from the null that the interval can tell",
        1: "real data left it farther than the null did",
    }[c.change.sign]


def _expected(c: Change) -> str:
    return "as they should: the interval holds 0" if c.change.sign == 0 else "though nothing was trained: beware"


def _width(c: Change) -> str:
    return {-1: "narrower", 0: "no direction that the interval can tell", 1: "wider"}[c.change.sign]


def _drawn_together(c: Change) -> str:
    return {-1: "the starts drew together", 0: "undecided", 1: "the starts drew apart"}[c.change.sign]


def _starts(found: Sequence[Change], network: str, what: str) -> str:
    """What became of initializers that begin in equilibrium and of those that do not."""
    each = _each(found, network, what, "real")
    inside, outside = ([c for c in each if (c.start < NEAR) == begins] for begins in (True, False))
    left, nearer = sum(c.change.sign > 0 for c in inside), sum(c.change.sign < 0 for c in outside)
    return (
        f"Of {len(inside)} that begin within {NEAR:g} nats {left} left; of {len(outside)} that begin farther off "
        f"{nearer} came nearer; they ended between {min(c.end for c in each):.3f} and {max(c.end for c in each):.3f}."
    )


def _each(found: Sequence[Change], network: str, what: str, kind: str) -> list[Change]:
    """Changes of KL, one an initializer, with intervals over seeds."""
    of_all = select(found, network=network, what=what, metric="kl_nats", kind=kind)
    return [c for c in of_all if c.initializer != ALL]


def _by_initializer(found: Sequence[Change], network: str, what: str, kind: str) -> str:
    each = _each(found, network, what, kind)
    words = ((-1, "towards"), (1, "away"), (0, "undecided"))
    groups = ((word, [c.initializer for c in each if c.change.sign == sign]) for sign, word in words)
    return "; ".join(f"{word} {', '.join(names) or 'none'}" for word, names in groups)


def _one(found: Sequence[Change], network: str, what: str, metric: str, kind: str) -> Change:
    (c,) = select(found, network=network, what=what, metric=metric, kind=kind, initializer=ALL)
    return c


def _replicas(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], dict[str, Pairs]]:
    """(network, what, metric) -> kind -> start and end of each replica, means over the layers that have both."""
    layers: dict[tuple, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for r in records:
        if r["stage"] in ("start", "end"):
            for metric in METRICS:
                place = (r["network"], r["what"], metric, r["kind"], r["initializer"], r["seed"])
                layers[place][r["layer"]][r["stage"]] = math.nan if r[metric] is None else r[metric]
    tree: dict[tuple[str, str, str], dict[str, Pairs]] = defaultdict(lambda: defaultdict(dict))
    for (network, what, metric, kind, initializer, seed), by_layer in layers.items():
        ends = [(v["start"], v["end"]) for v in by_layer.values()]
        whole = [e for e in ends if all(map(math.isfinite, e))]
        start, end = np.mean(whole, axis=0) if whole else (math.nan, math.nan)
        tree[network, what, metric][kind][initializer, seed] = (float(start), float(end))
    return tree


def _change(network: str, what: str, metric: str, kind: str, initializer: str, pairs: Pairs) -> Change:
    mine = {k: v for k, v in pairs.items() if initializer in (ALL, k[0])}
    moved = {k: end - start for k, (start, end) in mine.items()}
    groups: dict[str | int, list[float]] = defaultdict(list)
    for (i, seed), value in moved.items():
        groups[i if initializer == ALL and metric != SPREAD else seed].append(value)
    start, end = np.mean(list(mine.values()), axis=0)
    return Change(
        network,
        what,
        metric,
        kind,
        initializer,
        float(start),
        float(end),
        Interval.of(float(np.mean(values)) for values in groups.values()),
        sum(v < 0 for v in moved.values()),
        sum(end < NEAR for _, end in mine.values()),
        len(moved),
    )


def _spreads(pairs: Pairs) -> Pairs:
    by_seed = defaultdict(list)
    for (_, seed), ends in pairs.items():
        by_seed[seed].append(ends)
    return {(ALL, seed): tuple(np.std(ends, axis=0, ddof=1).tolist()) for seed, ends in by_seed.items()}


def _contrast(real: Pairs, null: Pairs) -> Pairs:
    """Changes of real data from changes of the null, as (change of the null, change of the real)."""
    return {k: (null[k][1] - null[k][0], real[k][1] - real[k][0]) for k in real if k in null}
