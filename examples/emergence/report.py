"""The run as Markdown tables, figures, and the page of the documentation."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from examples.emergence.finding import ALL, CONTRAST, METRICS, PLACES, SPREAD, Change, in_order, paragraphs, select
from examples.emergence.models import INITIALIZERS
from teleojax.report import write_atomically

Record = dict[str, Any]
PAGE = Path(__file__).with_name("page.md")
GREY, INK = "#c8c8c8", "#222222"
COLOURS = dict(zip(INITIALIZERS, ("#0072b2", "#56b4e9", "#009e73", "#d55e00", "#cc79a7"), strict=True))
KINDS = {"real": ("o", INK), "null": ("s", "#e69f00"), "untrained": ("D", "#999999")}
NAMES = {
    "kl_nats": "KL, nats",
    "delta_nats": "best family's gain, nats",
    "sigma": "σ of ln x",
    SPREAD: "SD of σ over initializers",
}
DPI = 84
COLUMNS = ("real: start → end", "real", "fell", "null", "real − null", "untrained")
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 10,
    "font.size": 9,
    "text.color": INK,
    "savefig.facecolor": "white",
}


def tables(records: Sequence[Record], found: Sequence[Change]) -> dict[str, str]:
    """Markdown by name: "scores", "changes" over initializers, "initializers" one by one."""
    return {"scores": _scores(records), "changes": _changes(found), "initializers": _initializers(found)}


def write_report(folder: Path, records: Sequence[Record], found: Sequence[Change], facts: dict[str, str]) -> list[Path]:
    """The page and its two figures into a folder, the figures under images/. Returns their paths."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figures = {"trajectories": _trajectories(records), "changes": _panels_of_changes(found)}
        for name, figure in figures.items():
            figure.savefig(images / f"emergence-{name}.png", dpi=DPI)
            plt.close(figure)
    page = string.Template(PAGE.read_text(encoding="utf-8")).substitute(
        facts, **tables(records, found), finding="\n\n".join(paragraphs(found))
    )
    write_atomically(folder / "emergence.md", page)
    return [folder / "emergence.md", *(images / f"emergence-{name}.png" for name in figures)]


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (heading, ["---"] * len(heading), *rows)]
    return "\n".join(lines)


def _scores(records: Sequence[Record]) -> str:
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for r in records:
        if r["record"] == "replica" and r["kind"] != "untrained":
            groups[r["network"], r["kind"]].append(r)
    rows = []
    for (network, kind), replicas in groups.items():
        train, held = ([r["end"][part] for r in replicas] for part in ("train", "held_out"))
        rows.append(
            (
                PLACES[network],
                kind,
                str(len(replicas)),
                _range([t["loss"] for t in train], 3),
                _range([100 * t["accuracy"] for t in train], 1),
                _range([100 * h["accuracy"] for h in held], 1),
                f"{100 * replicas[0]['chance']:.1f}",
            )
        )
    heading = ("network", "data", "replicas", "training loss, nats", "accuracy, %", "held-out accuracy, %", "chance, %")
    return _table(heading, rows)


def _range(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def _changes(found: Sequence[Change]) -> str:
    order = [NAMES[m] for m in (*METRICS, SPREAD)]
    rows = [_row(found, c, NAMES[c.metric]) for c in select(found, kind="real", initializer=ALL)]
    places = list(dict.fromkeys(r[0] for r in rows))
    rows.sort(key=lambda r: (places.index(r[0]), order.index(r[1])))
    return _table(("of", "number", *COLUMNS), rows)


def _initializers(found: Sequence[Change]) -> str:
    each = [c for c in select(found, kind="real", metric="kl_nats") if c.initializer != ALL]
    return _table(("of", "initializer", *COLUMNS), [_row(found, c, c.initializer) for c in each])


def _row(found: Sequence[Change], c: Change, name: str) -> tuple[str, ...]:
    """A real change beside the null's, the contrast and the control's."""
    of = {"network": c.network, "what": c.what, "metric": c.metric, "initializer": c.initializer}
    others = (select(found, kind=kind, **of) for kind in ("null", CONTRAST, "untrained"))
    return (
        f"{PLACES[c.network]} {c.what}",
        name,
        f"{c.start:.4f} → {c.end:.4f}",
        str(c.change),
        f"{c.fell}/{c.n}",
        *(str(o[0].change) if o else "" for o in others),
    )


def _trajectories(records: Sequence[Record]) -> Any:
    layers = [r for r in records if r["record"] == "layer" and r["kind"] != "untrained"]
    places = sorted({(r["network"], r["what"]) for r in layers}, key=in_order)
    figure, axes = plt.subplots(
        2, len(places), figsize=(3.2 * len(places), 5.6), layout="constrained", sharex="col", squeeze=False
    )
    for column, (network, what) in enumerate(places):
        here = [r for r in layers if (r["network"], r["what"]) == (network, what)]
        for row, metric in enumerate(("kl_nats", "sigma")):
            ax = axes[row, column]
            for initializer, colour in COLOURS.items():
                for kind, dashes in (("null", (0, (3, 2))), ("real", "-")):
                    steps, runs = _paths(here, metric, initializer, kind)
                    if not steps:
                        continue
                    ax.plot(steps, runs.mean(axis=0), color=colour, ls=dashes, lw=1.6 if kind == "real" else 1)
                    if kind == "real":
                        ax.fill_between(steps, runs.min(axis=0), runs.max(axis=0), color=colour, alpha=0.2, lw=0)
            ax.set_xscale("symlog", linthresh=1)
            ax.set_xlim(left=0)
            if metric == "kl_nats":
                ax.set_title(f"{PLACES[network]}, {what}")
                ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
            else:
                ax.set_xlabel("step")
            if column == 0:
                ax.set_ylabel("KL from equilibrium, nats" if metric == "kl_nats" else "σ of ln x")
    handles = [Line2D([], [], color=colour, label=name) for name, colour in COLOURS.items()]
    handles += [Line2D([], [], color=INK, ls=ls, label=text) for ls, text in (("-", "real"), ("--", "null"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _paths(layers: Sequence[Record], metric: str, initializer: str, kind: str) -> tuple[list[int], np.ndarray]:
    """Steps, and one path a seed: means over layers that have the number."""
    values: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in layers:
        if r["initializer"] == initializer and r["kind"] == kind and r[metric] is not None:
            values[r["seed"]][r["step"]].append(r[metric])
    steps = sorted({step for path in values.values() for step in path})
    return steps, np.array([[np.mean(path.get(step, [np.nan])) for step in steps] for path in values.values()])


def _panels_of_changes(found: Sequence[Change]) -> Any:
    places = list(dict.fromkeys((c.network, c.what) for c in found))
    names = [*INITIALIZERS, ALL]
    figure, axes = plt.subplots(
        2, len(places), figsize=(3.2 * len(places), 5.6), layout="constrained", sharey=True, squeeze=False
    )
    for column, (network, what) in enumerate(places):
        for row, metric in enumerate(("kl_nats", "delta_nats")):
            ax = axes[row, column]
            ax.axvline(0, color=GREY, lw=1)
            for offset, (kind, (marker, colour)) in zip((-0.22, 0, 0.22), KINDS.items(), strict=True):
                for c in select(found, network=network, what=what, metric=metric, kind=kind):
                    y = names.index(c.initializer) + offset
                    if c.change.n > 1:
                        ax.plot((c.change.low, c.change.high), (y, y), color=colour, lw=1.2)
                    ax.plot(c.change.mean, y, marker, color=colour, ms=4)
            _limit(ax, select(found, network=network, what=what, metric=metric))
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.set_yticks(range(len(names)), [*INITIALIZERS, "all"])
            if row == 0:
                ax.set_title(f"{PLACES[network]}, {what}")
            ax.set_xlabel("change of KL, nats" if metric == "kl_nats" else "change of the best family's gain, nats")
    axes[0, 0].invert_yaxis()
    handles = [Line2D([], [], color=c, marker=m, ls="", ms=5, label=k) for k, (m, c) in KINDS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _limit(ax: Any, here: Sequence[Change]) -> None:
    """Room for twice the largest change: an interval of two or three seeds may be far longer, and is cut off."""
    largest = max((abs(c.change.mean) for c in here if c.kind in KINDS), default=1)
    if np.isfinite(largest) and largest > 0:
        ax.set_xlim(-2 * largest, 2 * largest)
