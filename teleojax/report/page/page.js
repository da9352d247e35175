// The page: its rows, its table, what is beside it, and the files it gives back.
const LARGE = 1000; // values of a tensor that is worth seeing first
const island = id => document.getElementById(id).textContent;

/** The JSON lines as they were before "<" was written as an escape to stand in a page. */
const jsonLines = () => island("lines").replace(/\\(u003c|.)/g, (whole, what) => (what === "u003c" ? "<" : whole));

/** CSV of the lines, with the columns and the very digits that teleojax writes. */
function csv() {
  const asWritten = (key, value, context) => (isNumber(value) ? (context?.source ?? String(value)) : value);
  const rows = jsonLines().trim().split("\n").slice(0, -1).map(line => flat(JSON.parse(line, asWritten)));
  const columns = [...new Set(rows.flatMap(row => Object.keys(row)))];
  const cell = value => {
    const text = value == null ? "" : Array.isArray(value) ? `[${value.join(", ")}]` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows.map(row => columns.map(key => row[key]))].map(row => row.map(cell).join(",") + "\n").join("");
}

function flat(row) {
  const out = {};
  for (const [key, value] of Object.entries(row)) {
    if (key === "families") {
      for (const [family, fit] of Object.entries(value ?? {})) for (const [name, v] of Object.entries(fit)) out[`${family}.${name}`] = v;
    } else out[key] = key.startsWith("shape") && value !== null ? value.join("x") : value;
  }
  return out;
}

function save(name, type, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function start() {
  const data = JSON.parse(island("data"));
  const rows = jsonLines().trim().split("\n").slice(0, -1).map(line => JSON.parse(line));
  rows.forEach((row, i) => {
    row.index = i;
    for (const [key, values] of Object.entries(data.extra)) row[key] = values[i];
  });
  const listed = rows.filter(row => row.kind === undefined || row.kind === "tensor");
  const byId = id => document.getElementById(id);
  const roleFilter = byId("role-filter");
  const roles = [...new Set(listed.map(row => row.role).filter(role => role != null))].sort(collator.compare);
  for (const role of roles) roleFilter.append(element("option", { value: role }, role));
  roleFilter.parentElement.hidden = roles.length < 2;

  let chosen = null;
  const show = () => { if (chosen) showDetail(chosen, data.displays[chosen.index], data); };
  const table = dataTable({
    table: byId("table"), columns: data.columns, rows: listed, z: data.z,
    controls: { filter: byId("filter"), role: roleFilter, count: byId("count"), previous: byId("previous"), next: byId("next"), range: byId("range") },
    onSelect: row => {
      const first = chosen === null;
      chosen = row;
      show();
      if (first) return; // nobody has asked for it
      byId("said").textContent = `Showing ${printable(row.name)}`;
      if (getComputedStyle(byId("back")).display !== "none") { // on narrow screens it is below the table
        byId("detail-name").focus();
        byId("detail").scrollIntoView();
      }
    },
  });
  byId("back").addEventListener("click", () => table.focusSelected());
  const file = printable(data.kind === "report" ? "teleojax" : "teleojax-compare");
  byId("save-csv").addEventListener("click", () => save(file + ".csv", "text/csv", csv()));
  byId("save-jsonl").addEventListener("click", () => save(file + ".jsonl", "application/x-ndjson", jsonLines()));

  await embedFigures();
  const stat = byId("stat");
  const places = () => {
    if (figures.roles) drawRoles(data.roles, data.kind === "report" ? "distance, nats per connection" : "change, nats per connection", data.kind !== "report");
    if (figures.depths) drawDepths(data.depths[stat.value], stat.value, listed);
  };
  if (figures.depths) {
    for (const [key, { label }] of Object.entries(data.depths)) stat.append(element("option", { value: key }, label));
    stat.addEventListener("change", places);
    const { roles: lines } = Object.values(data.depths)[0];
    byId("depth-key").append(...lines.map(({ role }, i) => element("li", {}, swatch(i), role)));
  }
  places();
  const drawn = listed.filter(row => data.displays[row.index]?.some(Boolean));
  const begin = drawn.find(row => (row.n ?? row.n_a) >= LARGE) ?? drawn[0] ?? listed[0];
  if (begin) table.select(begin);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { places(); show(); });
  document.documentElement.dataset.ready = "";
}

start();
