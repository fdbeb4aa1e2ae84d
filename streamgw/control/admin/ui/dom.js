// Elements from values. Text stays text: nothing here, or anywhere in this page, makes markup out of a string.

const SVG = "http://www.w3.org/2000/svg";
const SVG_NAMES = new Set(["svg", "path", "line"]);

/** An element. Attributes that are null or false are left out; `on…` are listeners; children may be nested lists. */
export function h(name, attributes = {}, ...children) {
  const element = SVG_NAMES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (attribute.startsWith("on")) element.addEventListener(attribute.slice(2), value);
    else element.setAttribute(attribute, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Set a text only where it differs: what a screen reader announces, and what a person has selected, stays. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * A table that is shown again and again: rows are kept by key, cells are touched only where their text changed, so that
 * focus, selection and scrolling survive.
 *
 * A column has `id`, `title`, `text(item)`, and maybe `node(item)` (drawn when the text changed), `numeric`, `wide`, and
 * `by(item)`: what it is sorted by.
 */
export class Table {
  #columns;
  #key;
  #rows = new Map();
  #body = h("tbody");
  #heads = new Map();
  #empty;

  constructor({ caption, columns, key, empty, sort = null, onsort = () => {}, decorate = () => {} }) {
    this.#columns = columns;
    this.#key = key;
    this.sort = sort;
    this.decorate = decorate;
    this.#empty = h("p", { class: "nothing" }, empty);
    const heads = columns.map((column) => {
      const resort = () => {
        const down = this.sort?.id === column.id ? !this.sort.down : Boolean(column.numeric);
        this.sort = { id: column.id, down };
        onsort();
      };
      const title = column.by ? h("button", { type: "button", onclick: resort }, column.title) : column.title;
      const head = h("th", { scope: "col", class: column.numeric ? "number" : null }, title);
      this.#heads.set(column.id, head);
      return head;
    });
    const table = h(
      "table",
      {},
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, heads)),
      this.#body,
    );
    // Focusable, so that a wide table can be scrolled with the keyboard.
    this.element = h(
      "div",
      { class: "table", role: "region", "aria-label": caption, tabindex: "0" },
      table,
      this.#empty,
    );
  }

  sorted(items) {
    const column = this.#columns.find((each) => each.id === this.sort?.id);
    if (!column) return items;
    const sign = this.sort.down ? -1 : 1;
    return [...items].sort((one, other) => sign * compare(column.by(one), column.by(other)));
  }

  /** Show exactly these, in this order. */
  show(items) {
    for (const [id, head] of this.#heads) {
      const mine = this.sort?.id === id;
      if (mine) head.setAttribute("aria-sort", this.sort.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    const shown = new Map();
    let place = this.#body.firstChild;
    for (const item of items) {
      const key = this.#key(item);
      const row = this.#rows.get(key) ?? {
        element: h(
          "tr",
          {},
          this.#columns.map((each) => this.#cell(each)),
        ),
        texts: [],
      };
      shown.set(key, row);
      this.#update(row, item);
      if (row.element === place) place = place.nextSibling;
      else this.#body.insertBefore(row.element, place);
    }
    for (const [key, row] of this.#rows) if (!shown.has(key)) row.element.remove();
    this.#rows = shown;
    this.#empty.hidden = items.length > 0;
  }

  #cell(column) {
    const kinds = [column.numeric && "number", column.wide && "wide", column.mono && "mono"]
      .filter(Boolean)
      .join(" ");
    return h("td", { class: kinds || null });
  }

  #update(row, item) {
    this.#columns.forEach((column, index) => {
      const text = column.text(item);
      if (row.texts[index] === text) return;
      row.texts[index] = text;
      row.element.cells[index].replaceChildren(column.node ? column.node(item) : text);
    });
    this.decorate(row.element, item);
  }
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

/** Figures over time as a line with a filled ground: the newest last, at the right; `room` is how many fit. */
export function sparkline(values, room) {
  const [width, height] = [160, 32];
  const top = Math.max(...values, 1e-9);
  const step = width / (room - 1);
  const left = width - (values.length - 1) * step;
  const points = values.map(
    (value, index) =>
      `${(left + index * step).toFixed(1)},${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`,
  );
  const line = points.length > 1 ? `M${points.join("L")}` : "";
  const ground = line && `${line}L${width},${height}L${left.toFixed(1)},${height}Z`;
  return h(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    h("path", { class: "ground", d: ground }),
    h("path", { class: "line", d: line }),
  );
}
