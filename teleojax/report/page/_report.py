"""A report as a page: what it found, every tensor, and the network by role and by depth."""

from __future__ import annotations

import math
from typing import Any

from scipy.special import ndtri

from teleojax.report._finding import finding
from teleojax.report._report import Report
from teleojax.report.page._columns import OF_REPORT, as_data
from teleojax.report.page._display import POINTS, displays
from teleojax.report.page._places import depths, extremes, figure_rows, place
from teleojax.report.page._render import render, require_page

NO_HISTOGRAMS = (
    "These results hold no histograms, so the figures show the fitted densities alone and no utility. A statistics "
    "file that teleojax measure wrote, or the checkpoint itself, has them."
)


def report_page(report: Report) -> str:
    """The text of the page. Raises MissingExtraError without the extra "report"."""
    require_page()
    results = list(report.values())
    by_group = any(r.tensors is not None for r in results)
    drawn = displays(results)
    places = {by: found for by in ("role", "depth") if (found := place(report, by)) is not None}
    findings = [] if by_group else [finding(report)]
    findings += [words for by, found in places.items() if (words := extremes(found, by))]
    data: dict[str, Any] = {
        "kind": "report",
        "columns": as_data(OF_REPORT),
        "extra": {"gain": [g if math.isfinite(g := r.gain(r.best_bic)) else None for r in results]},
        "displays": [[d] for d in drawn],
        "points": POINTS,
        "sides": [str(report.summary.get("source") or "")],
        "z": float(ndtri((1 + report.options.level) / 2)),
        "roles": figure_rows(places["role"].groups) if "role" in places else [],
        "depths": depths(report) if "depth" in places else None,
    }
    uncounted = not any(d is not None and "edges" in d for d in drawn)
    return render(
        data=data,
        lines=report.jsonl(),
        kind="report",
        title=data["sides"][0],
        summary=_summary(report),
        findings=findings,
        places=places,
        rows="Groups" if by_group else "Tensors",
        level=f"{report.options.level:.0%}",
        by_depth=data["depths"] is not None,
        note=NO_HISTOGRAMS if uncounted else None,
        alone=[],
    )


def _summary(report: Report) -> list[tuple[str, str]]:
    """Headings and numbers; a summary read from a file may lack any."""
    totals = report.summary

    def count(key: str) -> int:
        found = totals.get(key)
        return found if type(found) is int and found > 0 else 0

    shown = []
    if tensors := count("tensors"):
        others = [f"{n:,} {status}" for status in ("degenerate", "skipped", "failed") if (n := count(status))]
        shown.append(("tensors", f"{tensors:,}" + (f" ({', '.join(others)})" if others else "")))
    if values := count("values"):
        shown.append(("values", f"{values:,}"))
    if n_bytes := count("bytes"):
        shown.append(("read", f"{n_bytes / 1e6:,.1f} MB"))
    return [*shown, ("families", ", ".join(report.options.families))]
