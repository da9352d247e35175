// A table that sorts, filters and pages. Whatever a row holds becomes text, never markup.
const PAGE = 25; // rows shown at a time
const collator = new Intl.Collator("en", { numeric: true });

/** Text on one line: control characters, invisible ones and those that turn the direction of writing, as escapes. */
const printable = text => String(text).replace(/[\p{C}\p{Z}]/gu, c => {
  if (c === " ") return c;
  const short = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[c];
  if (short) return short;
  const code = c.codePointAt(0).toString(16);
  if (code.length <= 2) return "\\x" + code.padStart(2, "0");
  return code.length <= 4 ? "\\u" + code.padStart(4, "0") : "\\U" + code.padStart(8, "0");
});

/** An element with attributes; children are elements, or text that is shown as it is. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) made.setAttribute(name, value);
  made.append(...children.map(child => (child instanceof Node ? child : printable(child))));
  return made;
}

/** A name with places to break a line, after its dots, slashes and underscores. */
const breakable = name => printable(name).split(/(?<=[./_])/).flatMap((part, i) => (i ? [element("wbr"), part] : [part]));

const isNumber = value => typeof value === "number";
const count = value => (isNumber(value) ? value.toLocaleString("en").replace("-", "−") : "–");
const fixed = (value, digits = 4) => (isNumber(value) ? value.toFixed(digits).replace("-", "−") : "–");
const signed = (value, digits = 4) => {
  const text = fixed(value, digits);
  if (!/[1-9]/.test(text)) return text.replace("−", ""); // nothing is left of it: neither more nor less
  return (isNumber(value) && value > 0 ? "+" : "") + text;
};
const ARROWS = { "1": "↑", "-1": "↓", "0": "=" };

/** What a cell of a column says: strings and elements. */
function cellOf(row, column, z) {
  const value = row[column.key];
  if (column.kind === "text") return breakable(value ?? "–");
  if (column.kind === "count") return [count(value)];
  if (!isNumber(value)) return ["–"];
  const parts = [column.sign ? signed(value, column.digits) : fixed(value, column.digits)];
  const se = column.se ? row[column.se] : null;
  if (isNumber(se)) parts.push(element("span", { class: "se" }, " ± " + fixed(z * se, column.digits)));
  if (column.sign) parts.push(element("span", { class: "sign" }, ARROWS[row[column.sign]] ?? " "));
  return parts;
}

/** Fill `table` with `rows`; `onSelect(row)` when one is chosen. Returns { select, focusSelected }. */
function dataTable({ table, columns, rows, z, controls, onSelect }) {
  const { filter, role, count: said, previous, next, range } = controls;
  const body = table.tBodies[0];
  const words = rows.map(row => ["name", "name_b", "role", "dtype", "best_bic", "best", "status", "reason", "matched"]
    .map(key => row[key] ?? "").join(" ").toLowerCase());
  let sorted = rows.map((_, i) => i);
  let shown = sorted;
  let sort = null;
  let page = 0;
  let selected = null;

  const headings = columns.map(column => {
    const button = element("button", { type: "button", title: column.meaning }, column.label);
    const side = column.kind === "text" ? "left" : "right";
    const heading = element("th", { scope: "col", class: side + (column.wide ? " wide" : "") }, button);
    button.addEventListener("click", () => {
      const rising = sort?.column === column ? !sort.rising : column.kind === "text";
      sort = { column, rising };
      headings.forEach(h => h.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
      order();
    });
    return heading;
  });
  table.tHead.rows[0].append(...headings);

  function order() {
    const { column, rising } = sort;
    const text = column.kind === "text";
    const key = i => rows[i][column.key];
    const by = (a, b) => (text ? collator.compare(a, b) : a - b) * (rising ? 1 : -1);
    // what is missing comes last either way
    sorted = rows.map((_, i) => i).sort((i, j) => (key(i) == null) - (key(j) == null) || (key(i) == null ? 0 : by(key(i), key(j))) || i - j);
    narrow();
  }

  function narrow() {
    const terms = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const of = role ? role.value : "";
    shown = sorted.filter(i => (!of || rows[i].role === of) && terms.every(term => words[i].includes(term)));
    page = 0;
    const all = `${count(rows.length)} ${rows.length === 1 ? "row" : "rows"}`;
    said.textContent = shown.length === rows.length ? all : `${count(shown.length)} of ${all}`;
    draw();
  }

  function draw() {
    const begin = page * PAGE;
    const some = shown.slice(begin, begin + PAGE);
    body.replaceChildren(...some.map(i => {
      const row = rows[i];
      const cells = columns.map((column, c) => {
        const place = `${column.kind === "text" ? "left" : "right"}${column.wide ? " wide" : ""}`;
        if (c === 0) return element("th", { scope: "row", class: "name" }, element("button", { type: "button" }, ...breakable(row.name)));
        const missing = column.key.startsWith("best") && row.status && row.status !== "ok";
        return element("td", { class: place }, ...(missing ? [element("span", { class: "status" }, row.status)] : cellOf(row, column, z)));
      });
      const line = element("tr", { "data-row": i, "aria-current": row === selected ? "true" : null }, ...cells);
      return line;
    }));
    if (!some.length) body.append(element("tr", {}, element("td", { colspan: columns.length }, "No row matches the filter.")));
    range.textContent = some.length ? `${count(begin + 1)}–${count(begin + some.length)} of ${count(shown.length)}` : "";
    previous.disabled = page === 0;
    next.disabled = begin + PAGE >= shown.length;
  }

  function select(row) {
    selected = row;
    for (const line of body.rows) {
      if (rows[line.dataset.row] === row) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
    }
    onSelect(row);
  }

  body.addEventListener("click", event => {
    const line = event.target.closest("tr");
    if (line?.dataset.row) select(rows[line.dataset.row]);
  });
  body.addEventListener("keydown", event => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const to = step && event.target.closest("tr")[step]?.querySelector("button");
    if (!to) return;
    event.preventDefault();
    to.focus();
  });
  filter.addEventListener("input", narrow);
  role?.addEventListener("change", narrow);
  const turn = by => { page += by; draw(); };
  previous.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  narrow();
  return { select, focusSelected: () => (body.querySelector("tr[aria-current] button") ?? filter).focus() };
}
