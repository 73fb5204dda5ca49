// A table that is sorted by any column, shown a page at a time, and walked through with the arrow keys.
//
// columns: { name, title, value(index), kind: "number" | "short" | "long" | "wrap", cell(index)?, digits? }
// Sorting is stable, by numbers or by text without regard to case; what has no value comes last, both ways.

import { element, visible } from "./text.js";
import { fixed, plainNumber } from "./numbers.js";

const PAGE = 50;
const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

export class Table {
  constructor({ columns, indices, open, label, sort, page = PAGE }) {
    this.columns = columns;
    this.all = indices;
    this.open = open;
    this.page = page;
    this.first = 0;
    this.sorting = sort;
    this.filter = () => true;
    this.head = element("thead");
    this.body = element("tbody");
    this.pages = element("div", { class: "pages", role: "group", "aria-label": `Pages of ${label}` });
    this.table = element("table", { class: "rows", "aria-label": label }, this.head, this.body);
    this.scroll = element("div", { class: "scroll" }, this.table);
    this.body.addEventListener("click", (event) => this.clicked(event));
    this.body.addEventListener("keydown", (event) => this.pressed(event));
    this.root = element("div", {}, this.scroll, this.pages);
    this.update();
  }

  // Sort and filter anew, from the first page on.
  update() {
    const column = this.columns.find((one) => one.name === this.sorting.name) || this.columns[0];
    const chosen = this.all.filter(this.filter).map((index, at) => ({ index, at, value: column.value(index) }));
    const turn = this.sorting.down ? -1 : 1;
    const none = (value) => value === null || value === undefined;
    chosen.sort((a, b) => {
      if (none(a.value) || none(b.value)) return none(a.value) - none(b.value) || a.at - b.at;
      const order = column.kind === "number" ? a.value - b.value : words.compare(a.value, b.value);
      return turn * order || a.at - b.at;
    });
    this.order = chosen.map((one) => one.index);
    this.first = 0;
    this.draw();
  }

  sortBy(name) {
    const column = this.columns.find((one) => one.name === name);
    const again = this.sorting.name === name;
    this.sorting = { name, down: again ? !this.sorting.down : column.kind === "number" };
    this.update();
    const button = this.head.querySelector(`[data-column="${CSS.escape(name)}"] button`);
    if (button) button.focus();
  }

  draw() {
    this.head.replaceChildren(element("tr", {}, this.columns.map((column) => this.heading(column))));
    const page = this.order.slice(this.first, this.first + this.page);
    this.body.replaceChildren(...page.map((index) => this.row(index)));
    if (!page.length) {
      this.body.append(element("tr", {}, element("td", { class: "empty", colspan: this.columns.length }, "Nothing matches.")));
    }
    this.drawPages();
  }

  heading(column) {
    const sorted = this.sorting.name === column.name;
    const direction = this.sorting.down ? "descending" : "ascending";
    const button = element("button", { type: "button", title: column.hint || null, onclick: () => this.sortBy(column.name) }, visible(column.title));
    return element(
      "th",
      { scope: "col", class: column.kind === "number" ? "number" : null, "data-column": column.name, "aria-sort": sorted ? direction : "none" },
      button,
    );
  }

  row(index) {
    const cells = this.columns.map((column) => this.cell(column, index));
    return element("tr", { tabindex: "0", "data-index": index }, cells);
  }

  cell(column, index) {
    if (column.cell) return element("td", { class: column.kind, "data-column": column.name }, column.cell(index));
    const value = column.value(index);
    if (column.kind === "number") {
      const text = column.digits === undefined ? plainNumber(value) : fixed(value, column.digits());
      return element("td", { class: "number", "data-column": column.name }, text);
    }
    if (value === null || value === undefined) return element("td", { class: column.kind, "data-column": column.name }, "–");
    const short = String(value).slice(0, 300);
    return element("td", { class: column.kind, "data-column": column.name }, element("bdi", {}, visible(short)));
  }

  drawPages() {
    const n = this.order.length;
    const last = Math.min(this.first + this.page, n);
    const text = n ? `${(this.first + 1).toLocaleString("en-US")} to ${last.toLocaleString("en-US")} of ${n.toLocaleString("en-US")}` : "0";
    const back = element("button", { type: "button", "aria-label": "Previous page", onclick: () => this.turn(-1) }, "‹ Previous");
    const on = element("button", { type: "button", "aria-label": "Next page", onclick: () => this.turn(1) }, "Next ›");
    back.disabled = this.first === 0;
    on.disabled = last >= n;
    this.pages.replaceChildren(element("span", { role: "status" }, text), ...(n > this.page ? [back, on] : []));
  }

  turn(by) {
    this.first = Math.max(0, Math.min(this.first + by * this.page, (Math.ceil(this.order.length / this.page) - 1) * this.page));
    this.draw();
    const row = this.body.querySelector("tr[data-index]");
    if (row) row.focus();
  }

  clicked(event) {
    const row = event.target.closest("tr[data-index]");
    if (row) this.open(Number(row.dataset.index), this);
  }

  pressed(event) {
    const row = event.target.closest("tr[data-index]");
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = {
      ArrowDown: () => this.move(row.nextElementSibling, 1),
      ArrowUp: () => this.move(row.previousElementSibling, -1),
      Home: () => this.move(this.body.firstElementChild),
      End: () => this.move(this.body.lastElementChild),
      Enter: () => this.open(Number(row.dataset.index), this),
      " ": () => this.open(Number(row.dataset.index), this),
    };
    if (!steps[event.key]) return;
    event.preventDefault();
    steps[event.key]();
  }

  // Go to a row; beyond the last or the first of a page, to the page after or before it.
  move(row, by = 0) {
    if (row) row.focus();
    else if (by > 0 && this.first + this.page < this.order.length) this.turn(1);
    else if (by < 0 && this.first > 0) {
      this.turn(-1);
      this.body.lastElementChild.focus();
    }
  }

  // Show the page that an example is on and put the focus on its row.
  reveal(index) {
    const at = this.order.indexOf(index);
    if (at < 0) return;
    const first = Math.floor(at / this.page) * this.page;
    if (first !== this.first) {
      this.first = first;
      this.draw();
    }
    const row = this.body.querySelector(`tr[data-index="${index}"]`);
    if (row) row.focus();
  }
}
