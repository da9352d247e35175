"""A report in a notebook: a table with a small histogram of ln|w| in each row. Nothing is fetched from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

import numpy as np

from teleojax._errors import printable
from teleojax.diagnose import density_bins
from teleojax.report._report import Report
from teleojax.report._result import TensorFit
from teleojax.report._table import report_cells
from teleojax.stats import TensorStats

MOST_ROWS = 1000  # of a table in a notebook: longer ones make browsers slow
REACH, BARS = 4.0, 32  # standard deviations of ln|w| either side of mu, bars of a small histogram
WIDTH, HEIGHT = 96, 22  # pixels of one
NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+")
STYLE = (
    "<style>.teleojax{border-collapse:collapse;font-size:12px}.teleojax th,.teleojax td{padding:2px 8px}"
    ".teleojax .r{text-align:right;font-variant-numeric:tabular-nums}.teleojax .l{text-align:left}"
    ".teleojax th[data-sorts]{cursor:pointer}</style>"
)
# where scripts may run, a click on a heading sorts; where not, the table is complete without
SCRIPT = """<script>
document.querySelectorAll("table.teleojax:not([data-ready])").forEach(table => {
  table.dataset.ready = "";
  table.querySelectorAll("th").forEach((heading, column) => {
    heading.dataset.sorts = "";
    let rising = false;
    heading.addEventListener("click", () => {
      rising = !rising;
      const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)], [p, q] = [Number(x), Number(y)];
        const by = x !== "" && y !== "" && !isNaN(p) && !isNaN(q) ? p - q : x.localeCompare(y);
        return rising ? by : -by;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
});
</script>"""


def notebook_table(report: Report) -> str:
    """HTML: the columns of the table for people, and the law of ln|w| over mu ± 4 sigma with its lognormal."""
    cells = report_cells(report, wide=True)
    shown = [r for r in report.values() if r.moments is not None][:MOST_ROWS]
    sides = [side[0] for side in cells.justify]
    head = [f'<th class="{s}">{escape(h)}</th>' for s, h in zip(sides, cells.headings, strict=True)]
    head.insert(1, '<th class="l">ln|w|</th>')
    lines = [STYLE, '<table class="teleojax">', f"<thead><tr>{''.join(head)}</tr></thead>", "<tbody>"]
    for result, row in zip(shown, cells.rows, strict=False):
        body = [_cell(side, text) for side, text in zip(sides, row, strict=True)]
        body.insert(1, f"<td>{sparkline(result)}</td>")
        lines.append(f"<tr>{''.join(body)}</tr>")
    lines += ["</tbody></table>"]
    if len(cells.rows) > len(shown):
        lines.append(f"<p>{len(cells.rows) - len(shown):,} more rows are not shown.</p>")
    lines += [f"<p>{escape(printable(str(report.summary.get('source', ''))))}</p>", SCRIPT]
    return "\n".join(lines)


def _cell(side: str, text: str) -> str:
    number = NUMBER.match(text)
    value = f' data-v="{number[0].replace(",", "")}"' if side == "r" and number else ""
    return f'<td class="{side}"{value}>{escape(text)}</td>'


def sparkline(result: TensorFit) -> str:
    """SVG: bars of the density of ln|w|, a line for the lognormal; "" without a histogram or spread."""
    if result.stats is None or result.stats.histogram is None or result.status != "ok":
        return ""
    z, density = _density(result.stats)
    normal = np.exp(-0.5 * np.square(np.linspace(-REACH, REACH, 2 * BARS + 1))) / np.sqrt(2 * np.pi)
    top = max(float(density.max()), float(normal.max()))
    step, scale = WIDTH / BARS, (HEIGHT - 1) / top
    bars = "".join(f"M{i * step:g} {HEIGHT}v{-d * scale:.1f}h{step:g}V{HEIGHT}" for i, d in enumerate(density) if d > 0)
    line = _points(np.linspace(0, WIDTH, len(normal)), HEIGHT - normal * scale)
    label = f"ln|w| from {z[0]:.3g} to {z[-1]:.3g}"
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<path d="{bars}" fill="#0072b2" fill-opacity="0.6"/>'
        f'<polyline points="{line}" fill="none" stroke="#d55e00"/></svg>'
    )


def _points(x: Sequence[float] | np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _density(stats: TensorStats) -> tuple[np.ndarray, np.ndarray]:
    """Edges in y = ln|w| and densities, per standard deviation of y."""
    mu, sigma, histogram = stats.moments.mean, stats.moments.sigma, stats.histogram
    edges = mu + sigma * np.linspace(-REACH, REACH, BARS + 1)
    if histogram is None:
        return edges, np.zeros(BARS)
    bins = density_bins(histogram, mu, sigma)
    below = np.interp(edges, bins.edges, np.append(0, np.cumsum(bins.counts)))
    return edges, np.diff(below) / bins.counts.sum() / np.diff(edges) * sigma
