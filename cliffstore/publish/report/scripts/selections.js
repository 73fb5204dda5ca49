// Why each example is in a selection: a row for each, by rank.

import { data, indexOf } from "./data.js";
import { openExample } from "./example.js";
import { digitsFor } from "./numbers.js";
import { element, isolated } from "./text.js";
import { Table } from "./table.js";

export function drawSelections() {
  for (const place of document.querySelectorAll(".why")) {
    const number = Number(place.dataset.selection);
    const { rows } = data.selections[number];
    const figure = (name, hint) => ({ name, title: name, hint, kind: "number", digits: () => digitsFor(rows[name]), value: (at) => rows[name][at] });
    const columns = [
      { name: "rank", title: "rank", kind: "number", value: (at) => rows.rank[at] },
      { name: "id", title: "id", kind: "short", value: (at) => rows.id[at] },
      figure("value", "What the strategy ranks by"),
      figure("cliff"),
      figure("plateau"),
      figure("final"),
      { name: "label", title: "label", kind: "short", value: (at) => rows.label[at] },
      { name: "source", title: "source", kind: "short", value: (at) => rows.source[at] },
      ...(rows.quotas.some((one) => one.length)
        ? [{ name: "quotas", title: "within quota", kind: "wrap", value: (at) => rows.quotas[at].join("; "), cell: (at) => rows.quotas[at].map((quota) => element("div", {}, isolated(quota))) }]
        : []),
      { name: "page", title: "on this page", kind: "short", value: (at) => (indexOf(rows.example[at]) === undefined ? "no" : "yes") },
    ];
    const used = columns.filter((column) => ["rank", "id"].includes(column.name) || rows.rank.some((_, at) => ![null, undefined].includes(column.value(at))));
    const table = new Table({
      columns: rows.rank.every((_, at) => indexOf(rows.example[at]) !== undefined) ? used.filter((column) => column.name !== "page") : used,
      indices: rows.rank.map((_, at) => at),
      open: (at, own) => openRow(rows, at, own),
      label: `examples of the selection ${data.selections[number].name}`,
      sort: { name: "rank", down: false },
      page: 25,
    });
    place.replaceChildren(table.root);
  }
}

// Rows of a selection are not rows of the table of examples: the dialog walks through those that are on the page.
function openRow(rows, at, own) {
  const index = indexOf(rows.example[at]);
  if (index === undefined) return;
  const order = own.order.map((one) => indexOf(rows.example[one])).filter((one) => one !== undefined);
  const back = new Map(own.order.map((one) => [indexOf(rows.example[one]), one]));
  openExample(index, { order, reveal: (one) => own.reveal(back.get(one)) });
}
