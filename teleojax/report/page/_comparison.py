"""A comparison as a page: what changed from one network to the other, tensor by tensor and by role."""

from __future__ import annotations

from typing import Any

from scipy.special import ndtri

from teleojax.report._comparison import Comparison, TensorChange
from teleojax.report._comparison_table import HEADINGS, change_cells
from teleojax.report._result import TensorFit
from teleojax.report._table import Cells
from teleojax.report.page._columns import OF_COMPARISON, as_data
from teleojax.report.page._display import POINTS, displays
from teleojax.report.page._places import Group, Place, figure_rows
from teleojax.report.page._render import render, require_page

NO_HISTOGRAMS = (
    "Neither side holds histograms, so the figures show the fitted lognormals alone: compare checkpoints or statistics "
    "files for more."
)
MERGED = "The matched tensors of a role are merged on either side and fitted anew."


def comparison_page(comparison: Comparison) -> str:
    """The text of the page. Raises MissingExtraError without the extra "report"."""
    require_page()
    changes = list(comparison.changes.values())
    z = float(ndtri((1 + comparison.level) / 2))
    sides = [displays([side(c) for c in changes]) for side in (_a, _b)]
    drawn = [[_lognormal_alone(d) for d in pair] for pair in zip(*sides, strict=True)]
    others = len(list(comparison.rows())) - len(changes)
    alone = [None] * others  # rows of roles, and of what one side alone has, have no figure
    data: dict[str, Any] = {
        "kind": "comparison",
        "columns": as_data(OF_COMPARISON),
        "extra": {
            "name": [c.a.name for c in changes] + alone,
            "best": [_two(c.a.best_bic or "–", c.b.best_bic or "–") for c in changes] + alone,
        },
        "displays": [*drawn, *alone],
        "points": POINTS,
        "sides": [comparison.source_a, comparison.source_b],
        "z": z,
        "roles": figure_rows([_group(name, c, z) for name, c in comparison.roles.items()]),
        "depths": None,
    }
    uncounted = not any(d is not None and "edges" in d for pair in drawn for d in pair)
    return render(
        data=data,
        lines=comparison.jsonl(),
        kind="comparison",
        title=f"{comparison.source_a} → {comparison.source_b}",
        summary=_summary(comparison),
        findings=_findings(comparison),
        places={"role": Place(MERGED, _cells(comparison, z), [])} if comparison.roles else {},
        rows="Tensors of both",
        level=f"{comparison.level:.0%}",
        by_depth=False,
        note=NO_HISTOGRAMS if uncounted else None,
        alone=[
            (f"{side}: {source}", [(r.name, r.role or "–", "x".join(map(str, r.shape or ()))) for r in rest])
            for side, source, rest in (
                ("A", comparison.source_a, comparison.only_a),
                ("B", comparison.source_b, comparison.only_b),
            )
            if rest
        ],
    )


def _a(change: TensorChange) -> TensorFit:
    return change.a


def _b(change: TensorChange) -> TensorFit:
    return change.b


def _two(a: str, b: str) -> str:
    return a if a == b else f"{a} → {b}"


def _lognormal_alone(shown: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two networks and every family would be too many lines."""
    if shown is None:
        return None
    return {**shown, "families": {k: v for k, v in shown["families"].items() if k == "lognormal"}}


def _group(name: str, change: TensorChange, z: float) -> Group:
    return Group(name, change.kl_nats.delta, z * change.kl_nats.se)


def _cells(comparison: Comparison, z: float) -> Cells:
    rows = change_cells(comparison.roles.values(), z)
    return Cells(
        ["role", "tensors", *HEADINGS, "best"], ["left", "right", "right", "right", "right", "right", "left"], rows
    )


def _summary(comparison: Comparison) -> list[tuple[str, str]]:
    totals = comparison.summary
    shown = [("pairs", f"{totals['pairs']:,}")]
    for rule, words in (("name", "same name"), ("prefix", "name without prefix"), ("shape", "shape, role and depth")):
        if totals[f"by_{rule}"]:
            shown.append((f"by {words}", f"{totals[f'by_{rule}']:,}"))
    shown += [
        (f"only in {side.upper()}", f"{totals[f'only_{side}']:,}") for side in ("a", "b") if totals[f"only_{side}"]
    ]
    return shown


def _findings(comparison: Comparison) -> list[str]:
    """One sentence a number: in how many pairs it changed beyond its interval, and where most."""
    found = []
    for stat, words in (("mu", "μ"), ("sigma", "σ"), ("kl_nats", "The distance from arbitrage equilibrium")):
        known = [(c, getattr(c, stat)) for c in comparison.changes.values() if getattr(c, stat).sign is not None]
        if not known:
            continue
        rising, falling = (sum(change.sign == sign for _, change in known) for sign in (1, -1))
        most, change = max(known, key=lambda pair: abs(pair[1].delta))
        found.append(
            f"{words} rose in {rising:,} and fell in {falling:,} of {len(known):,} pairs, beyond "
            f"the {comparison.level:.0%} interval; it changed most in {most.a.name} ({change.delta:+.4f})."
        )
    return found
