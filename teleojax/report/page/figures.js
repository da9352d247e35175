// The figures: Bokeh's, made once, filled anew whenever something else is to be shown.
const figures = {};
const COLOURS = 7;
const DASHES = [[], [7, 3], [8, 3, 2, 3], [3, 2], [14, 3]];
const MARKERS = ["circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "star", "hex", "x"];

const variable = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const colour = i => variable("s" + (i % COLOURS));
// unlike in colour, and beyond the colours there are in dashes too
const dash = i => DASHES[(i + Math.floor(i / COLOURS)) % DASHES.length];
// what stands between two dollars, or in \( \), would be set as mathematics
const plain = text => printable(text).replaceAll("$", "\u{ff04}").replaceAll("\\", "\u{ff3c}");

async function embedFigures() {
  Bokeh.set_log_level("error");
  const items = JSON.parse(document.getElementById("figures").textContent);
  for (const [kind, item] of Object.entries(items)) {
    const target = document.getElementById("figure-" + kind);
    if (target === null) continue;
    const views = await Bokeh.embed.embed_item(item, target);
    figures[kind] = views.roots[0].model;
    passOver(target);
  }
}

/** Nothing in a figure answers to keys, so the tab key need not stop there. */
function passOver(root) {
  for (const inner of root.querySelectorAll("*")) {
    if (inner.hasAttribute("tabindex")) inner.tabIndex = -1;
    if (inner.shadowRoot) passOver(inner.shadowRoot);
  }
}

/** Replace the data of a figure; what is not given becomes empty. */
function fill(kind, { bars = [], lines = [], points = [] }) {
  const figure = figures[kind];
  const ink = variable("ink");
  for (const axis of [...figure.left, ...figure.below]) {
    axis.setv({ axis_line_color: ink, major_tick_line_color: ink, major_label_text_color: ink, axis_label_text_color: ink });
  }
  for (const grid of figure.center) if ("grid_line_color" in grid) grid.grid_line_color = ink;
  for (const [name, rows] of Object.entries({ bars, lines, points })) {
    const source = figure.document.get_model_by_name(name);
    source.data = Object.fromEntries(Object.keys(source.data).map(key => [key, rows.map(row => row[key])]));
  }
}

function reach(range, low, high) {
  range.setv({ start: low, end: high });
}

/** The range of numbers with a little room either side. */
function around(range, values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = 0.04 * (high - low) || 0.5;
  reach(range, low - room, high + room);
}

const STEPS = 10000;
const PER_NAT = 1000;
const OF_CURVE = 100;
const nats = (values, parts = PER_NAT) => values.map(v => (v === null ? NaN : v / parts));
const even = ([low, high], n) => Array.from({ length: n }, (_, i) => low + ((high - low) * i) / (n - 1));
const stepped = ([low, high], steps) => steps.map(s => low + ((high - low) * s) / STEPS);
const finite = values => values.filter(Number.isFinite);

/** Families drawn for a tensor, in the order of their colours. */
const drawnFamilies = sides => [...new Set(sides.flatMap(side => (side ? Object.keys(side.families) : [])))];

/** Histograms of ln|w| with the fitted families; of two sides, the colour says which. */
function drawDensity(sides, points) {
  const two = sides.length > 1;
  const families = drawnFamilies(sides);
  const bars = [];
  const lines = [];
  sides.forEach((side, s) => {
    if (!side) return;
    if (side.edges) {
      const y = stepped(side.range, side.edges);
      nats(side.density).forEach((d, i) => {
        if (Number.isFinite(d)) bars.push({ left: y[i], right: y[i + 1], top: Math.exp(d), color: two ? colour(s) : variable("muted"), alpha: two ? 0.35 : 1 });
      });
    }
    for (const [family, curve] of Object.entries(side.families)) {
      const which = two ? s : families.indexOf(family);
      const [first, values] = curve;
      const xs = even(side.range, points).slice(first, first + values.length);
      lines.push({ xs, ys: nats(values, OF_CURVE).map(Math.exp), color: colour(which), dash: dash(which), width: 2 });
    }
  });
  const heights = [...bars.map(bar => bar.top), ...(bars.length ? [] : lines.flatMap(line => finite(line.ys)))];
  const low = Math.min(...heights) / 2;
  const high = Math.max(...heights) * 3;
  bars.forEach(bar => { bar.bottom = low; });
  const ranges = sides.filter(Boolean).map(side => side.range);
  if (ranges.length) {
    reach(figures.density.x_range, Math.min(...ranges.map(r => r[0])), Math.max(...ranges.map(r => r[1])));
    reach(figures.density.y_range, bars.length ? low : Math.max(low, high * 1e-7), high);
  }
  fill("density", { bars, lines });
}

/** Effective utility by category, its smooth estimate, and h*, at which it would lie flat. */
function drawUtility(sides, points) {
  const two = sides.length > 1;
  const lines = [];
  const marks = [];
  sides.forEach((side, s) => {
    const utility = side?.utility;
    if (!utility) return;
    const at = stepped(utility.range, utility.at);
    nats(utility.points).forEach((u, i) => marks.push({ x: at[i], y: u, color: two ? colour(s) : variable("muted"), marker: MARKERS[s], name: "" }));
    lines.push({ xs: even(utility.range, points), ys: nats(utility.line), color: colour(s), dash: dash(s), width: 2 });
    lines.push({ xs: utility.range, ys: [utility.star, utility.star], color: two ? colour(s) : variable("ink"), dash: [2, 3], width: 1.5 });
  });
  const ys = [...lines.flatMap(line => finite(line.ys)), ...marks.map(mark => mark.y)];
  if (ys.length) {
    const xs = lines.flatMap(line => line.xs);
    const margin = Math.max(0.5, 0.08 * (Math.max(...ys) - Math.min(...ys)));
    reach(figures.utility.x_range, Math.min(...xs), Math.max(...xs));
    reach(figures.utility.y_range, Math.min(...ys) - margin, Math.max(...ys) + margin);
  }
  fill("utility", { lines, points: marks });
}

/** A point and its interval a role: rows of [name, value, half]. */
function drawRoles(rows, label, withZero) {
  const figure = figures.roles;
  const n = rows.length;
  const place = i => n - i - 0.5;
  figure.height = 70 + 22 * n;
  figure.y_range.factors = rows.map(([name]) => plain(name)).reverse();
  figure.below[0].axis_label = label;
  const lines = rows.map(([, value, half], i) => ({ xs: [value - half, value + half], ys: [place(i), place(i)], color: colour(0), dash: [], width: 2 }));
  if (withZero) lines.push({ xs: [0, 0], ys: [0, n], color: variable("ink"), dash: [2, 3], width: 1 });
  around(figure.x_range, lines.flatMap(line => line.xs));
  fill("roles", { lines, points: rows.map(([name, value], i) => ({ x: value, y: place(i), color: colour(0), marker: "circle", name: plain(name) })) });
}

/** A number by depth: a line a role through the means, a point a tensor. */
function drawDepths({ roles }, stat, rows) {
  const lines = roles.map(({ at, mean }, i) => ({ xs: at, ys: mean, color: colour(i), dash: dash(i), width: 1.5 }));
  const points = roles.flatMap(({ role }, i) => rows
    .filter(row => row.role === role && row.depth !== null && isNumber(row[stat]) && row.status === "ok")
    .map(row => ({ x: row.depth, y: row[stat], color: colour(i), marker: MARKERS[i % MARKERS.length], name: plain(row.name) })));
  around(figures.depths.x_range, points.map(point => point.x));
  around(figures.depths.y_range, points.map(point => point.y));
  fill("depths", { lines, points });
}

/** A short line in the colour and dashes of a series. */
function swatch(i) {
  const svg = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(svg, "svg");
  for (const [name, value] of Object.entries({ class: "swatch s" + (i % COLOURS), width: 28, height: 10, "aria-hidden": "true" })) picture.setAttribute(name, value);
  const line = document.createElementNS(svg, "line");
  for (const [name, value] of Object.entries({ x1: 0, x2: 28, y1: 5, y2: 5, "stroke-dasharray": dash(i).join(" ") })) line.setAttribute(name, value);
  picture.append(line);
  return picture;
}
