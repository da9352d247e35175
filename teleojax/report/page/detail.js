// What is said of the row that was chosen, beside the table.
const NUMBERS = [
  ["μ", "mu", "mu_se"], ["σ", "sigma", "sigma_se"], ["distance, nats", "kl_nats", "kl_se"],
  ["dispersion of utility, nats", "dispersion"], ["mean squared gradient", "fisher"],
  ["α", "alpha"], ["β", "beta"], ["h*", "h_star"], ["KS", "ks"], ["W₁ of ln|w|", "w1_log"], ["R²", "r2"],
  ["skewness", "skew"], ["excess kurtosis", "excess_kurtosis"], ["least |w|", "min"], ["largest |w|", "max"], ["rms", "rms"],
];
const NOT_PARAMETERS = new Set(["n", "loglik_per_value", "aic", "bic", "kl_nats", "ks", "ad", "cvm", "w1_log", "r2",
  "p_value", "replicates", "vuong_z", "vuong_p", "status", "limit", "bins", "n_outside"]);
const figure4 = value => (Array.isArray(value) ? value.map(figure4).join(" ") : isNumber(value) ? String(Number(value.toPrecision(4))).replace("-", "−") : "–");

const shapeOf = shape => (shape ? shape.join(" × ") : null);
const joined = parts => parts.filter(part => part != null && part !== "").join(" · ");

/** A table from headings, the side of each column ("left" or "right"), and rows of text. */
function tableOf(caption, headings, sides, rows) {
  const head = element("tr", {}, ...headings.map((h, i) => element("th", { scope: "col", class: sides[i] }, h)));
  const body = rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row" }, ...[first].flat()), ...rest.map((cell, i) => element("td", { class: sides[i + 1] }, cell))));
  return element("table", {}, element("caption", { class: "unseen" }, caption), element("thead", {}, head), element("tbody", {}, ...body));
}

function reportParts(row, [side], z) {
  const place = joined([row.role, row.depth === null ? null : `depth ${row.depth}`, shapeOf(row.shape), row.dtype,
    row.tensors ? `${count(row.tensors)} tensors` : null, `${count(row.n ?? row.size)} values`, row.n_zero ? `${count(row.n_zero)} zeros` : null,
    row.n_nonfinite ? `${count(row.n_nonfinite)} not finite` : null]);
  const order = drawnFamilies([side]);
  const lognormal = row.families?.lognormal;
  const fits = Object.entries(row.families ?? {}).map(([name, fit]) => {
    const i = order.indexOf(name);
    const parameters = Object.entries(fit).filter(([key]) => !NOT_PARAMETERS.has(key) && !key.endsWith("_se"));
    const gain = lognormal && lognormal.n === fit.n && isNumber(fit.loglik_per_value) ? fit.loglik_per_value - lognormal.loglik_per_value : null;
    const remark = joined([fit.status === "ok" ? null : fit.status, fit.limit ? `near ${fit.limit}` : null]);
    return [[...(i < 0 ? [] : [swatch(i)]), name], parameters.map(([key, value]) => `${key} ${figure4(value)}`).join(", ") + (remark ? ` (${remark})` : ""),
      name === "lognormal" ? "0" : signed(gain), isNumber(fit.bic) ? count(Math.round(fit.bic)) : "–"];
  });
  const numbers = NUMBERS.filter(([, key]) => isNumber(row[key])).flatMap(([label, key, se]) => [
    element("dt", {}, label), element("dd", {}, figure4(row[key]) + (se && isNumber(row[se]) ? ` ± ${figure4(z * row[se])}` : ""))]);
  return { place, fits: fits.length ? tableOf("Fits", ["family", "parameters", "gain", "BIC"], ["left", "left", "right", "right"], fits) : null, numbers };
}

function comparisonParts(row, _, z, sides) {
  const place = joined([row.name_b === row.name_a ? null : `B: ${row.name_b}, matched by ${row.matched}`, row.role, row.depth === null ? null : `depth ${row.depth}`,
    shapeOf(row.shape_a), row.dtype_a === row.dtype_b ? row.dtype_a : `${row.dtype_a} → ${row.dtype_b}`]);
  const changes = [["μ", "mu"], ["σ", "sigma"], ["distance, nats", "kl_nats"]].map(([label, key]) => [
    label, fixed(row[key + "_a"]), fixed(row[key + "_b"]),
    `${signed(row["d_" + key])}${isNumber(row[`d_${key}_se`]) ? ` ± ${fixed(z * row[`d_${key}_se`])}` : ""} ${ARROWS[row[key + "_sign"]] ?? ""}`]);
  changes.push(["values", count(row.n_a), count(row.n_b), ""], ["zeros", count(row.n_zero_a), count(row.n_zero_b), ""],
    ["best", row.best_bic_a ?? "–", row.best_bic_b ?? "–", row.best_bic_a === row.best_bic_b ? "" : "changed"]);
  const table = tableOf("Before and after", ["number", "A", "B", "change"], ["left", "right", "right", "right"], changes);
  table.tHead.rows[0].cells[1].prepend(swatch(0));
  table.tHead.rows[0].cells[2].prepend(swatch(1));
  const key = element("p", { class: "key" }, `A is ${sides[0]}, B is ${sides[1]}.`);
  return { place, fits: element("div", {}, table, key), numbers: [] };
}

function showDetail(row, display, data) {
  const byId = id => document.getElementById(id);
  const sides = display ?? [null];
  const drawable = sides.some(Boolean);
  const { place, fits, numbers } = (data.kind === "report" ? reportParts : comparisonParts)(row, sides, data.z, data.sides.map(printable));
  byId("detail-name").textContent = printable(row.name);
  byId("detail-place").textContent = printable(place);
  byId("detail-reason").textContent = row.reason ? printable(row.reason) : "";
  byId("detail-reason").hidden = !row.reason;
  byId("detail-fits").replaceChildren(...(fits ? [fits] : []));
  byId("detail-numbers").replaceChildren(...numbers);
  byId("detail-more").hidden = numbers.length === 0;
  byId("density").hidden = !drawable;
  byId("utility").hidden = !sides.some(side => side?.utility);
  if (drawable) {
    drawDensity(sides, data.points);
    const families = drawnFamilies(sides).join(", ");
    const histogram = sides.some(side => side?.edges);
    const [low, high] = sides.find(Boolean).range;
    byId("figure-density").setAttribute("aria-label", `Density of ln|w| of ${printable(row.name)}, from ${fixed(low, 2)} to ${fixed(high, 2)}: ` +
      (histogram ? `histogram, with the fitted ${families}.` : `the fitted ${families} alone.`));
  }
  if (sides.some(side => side?.utility)) {
    drawUtility(sides, data.points);
    const stars = sides.filter(side => side?.utility).map(side => fixed(side.utility.star, 2));
    byId("figure-utility").setAttribute("aria-label", `Effective utility of the connections of ${printable(row.name)} by ln|w|, beside h* = ${stars.join(" and ")} nats.`);
  }
}
