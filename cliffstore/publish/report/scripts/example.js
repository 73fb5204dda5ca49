// One example, opened: tokens, curve, figures, texts, why it is selected, and where it leads back to.

import { cliffOf, data, known, placeIn, probeOf, state, tokensOf } from "./data.js";
import { drawCurve } from "./curve.js";
import { digitsFor, fixed, plainNumber } from "./numbers.js";
import { element, isolated, prose, visible } from "./text.js";
import { drawTokens, legend, linesOf } from "./tokens.js";
import { hideTip, showTip } from "./tip.js";

const dialog = document.getElementById("example");
let opened = null; // { index, table }

export function openExample(index, table) {
  opened = { index, table };
  draw();
  const body = dialog.querySelector(".dialog-body");
  if (!dialog.open) {
    dialog.showModal();
    body.focus();
  }
  body.scrollTop = 0;
}

export function watchExample() {
  dialog.addEventListener("close", () => {
    hideTip();
    if (opened) opened.table.reveal(opened.index);
    opened = null;
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    if (by === undefined) return;
    if ((event.key === "ArrowDown" || event.key === "ArrowUp") && event.target.closest(".prose, .dialog-body")) return; // these scroll
    event.preventDefault();
    step(by);
  });
}

function step(by) {
  const order = opened.table.order;
  const goal = order[order.indexOf(opened.index) + by];
  if (goal === undefined) return;
  const had = document.activeElement === null ? "" : document.activeElement.className;
  openExample(goal, opened.table);
  // The focus stays where it was: on the same button, or on the example.
  const button = ["next", "previous"].includes(had) ? dialog.querySelector(`.${had}`) : null;
  (button && !button.disabled ? button : dialog.querySelector(".dialog-body")).focus();
}

function draw() {
  const { index, table } = opened;
  const at = table.order.indexOf(index);
  const button = (name, label, text, act, disabled) => {
    const made = element("button", { type: "button", class: name, "aria-label": label, onclick: act }, text);
    made.disabled = disabled;
    return made;
  };
  const top = element(
    "div",
    { class: "dialog-top" },
    element("h2", { id: "example-title" }, isolated(known.id[index].slice(0, 200)), element("small", {}, `${at + 1} of ${table.order.length}`)),
    probeChoice(),
    button("previous", "Previous example", ["‹", element("span", { class: "word" }, " Previous")], () => step(-1), at <= 0),
    button("next", "Next example", [element("span", { class: "word" }, "Next "), "›"], () => step(1), at + 1 >= table.order.length),
    button("close", "Close", ["✕", element("span", { class: "word" }, " Close")], () => dialog.close(), false),
  );
  const [left, right] = [element("div"), element("div")];
  fill(left, right, index);
  dialog.replaceChildren(top, element("div", { class: "dialog-body", tabindex: "-1" }, left, right));
}

function probeChoice() {
  if (data.probes.length < 2) return null;
  const choice = element("select", { "aria-label": "Probe" }, data.probes.map((one) => element("option", { value: one.name }, visible(one.name))));
  choice.value = state.probe;
  choice.addEventListener("change", () => {
    state.probe = choice.value;
    document.dispatchEvent(new CustomEvent("probe"));
    draw();
    dialog.querySelector("select").focus();
  });
  return choice;
}

function fill(left, right, index) {
  const probe = probeOf(state.probe);
  const tokens = tokensOf(index, state.probe);
  const cliff = cliffOf(index);
  left.append(element("h3", {}, "Tokens"));
  if (probe) left.append(legend(probe));
  const steepest = cliff ? cliff.steepest_position : null;
  const drawn = drawTokens(tokens, probe || { limit: 1, positive: null, digits: 3 }, steepest);
  left.append(drawn.root);
  if (probe) right.append(...figuresOf(index, probe, cliff, tokens, drawn));
  right.append(...reasonsOf(index), ...lineageOf(index, probe));
  left.append(...textsOf(index));
}

function figuresOf(index, probe, cliff, tokens, drawn) {
  const point = (token, event) => {
    if (!token) return hideTip();
    const made = drawn.mark(token.position);
    showTip({ closest: (query) => made.closest(query), getBoundingClientRect: () => new DOMRect(event.clientX, event.clientY - 8, 1, 16) }, linesOf(token, probe.digits));
    return null;
  };
  const figures = cliff && cliff.n_think !== null
    ? [
        ["plateau", fixed(cliff.plateau, probe.digits)],
        ["final", fixed(cliff.final, probe.digits)],
        ["cliff", fixed(cliff.cliff, probe.digits)],
        ["thinking tokens", plainNumber(cliff.n_think)],
        ["steepest at", cliff.steepest_position === null ? "–" : fixed(cliff.steepest_position - known.decision[index], 0)],
        ["tokens it takes", plainNumber(cliff.n_steep)],
      ]
    : [["cliff", "none ranked"]];
  const rule = probe.plateau ? `The plateau is the ${probe.plateau} over ${probe.window} thinking tokens; steepest: distance from the decision.` : "No cliffs of this probe are ranked.";
  return [
    element("h3", {}, "Score by distance from the decision"),
    drawCurve(tokens, cliff, probe.digits, point),
    element("dl", { class: "figures-row" }, figures.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", { "data-figure": name }, value)))),
    element("p", { class: "note" }, rule),
  ];
}

function reasonsOf(index) {
  const found = data.selections.flatMap((one, number) => {
    const place = placeIn(number, index);
    if (place === undefined) return [];
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, isolated(one.name)),
      element("td", {}, `rank ${one.rows.rank[place]} by `, isolated(one.strategy), `, value ${fixed(one.rows.value[place], digitsFor(one.rows.value))}`, ...one.rows.quotas[place].map((quota) => element("small", {}, isolated(quota)))),
    );
  });
  const body = found.length ? element("table", { class: "lines" }, found) : element("p", { class: "note" }, "It is in no selection.");
  return [element("h3", {}, "Selections"), body];
}

function textsOf(index) {
  const texts = ["system", "prompt", "thinking", "response"].flatMap((name) => {
    const value = known[name][index];
    if (value === null) return name === "system" ? [] : [element("h3", {}, name), element("p", { class: "note" }, "none")];
    return [element("h3", {}, name), prose(value)];
  });
  const further = data.rows.further.filter((one) => one.values[index] !== null);
  if (!further.length) return texts;
  const rows = further.map((one) => element("tr", {}, element("th", { scope: "row" }, isolated(one.name)), element("td", {}, one.number ? plainNumber(one.values[index]) : isolated(one.values[index]))));
  return [...texts, element("h3", {}, "further columns"), element("table", { class: "lines" }, rows)];
}

function quoted(text) {
  return `'${String(text).replaceAll("'", "''")}'`;
}

function lineageOf(index, probe) {
  const example = known.example[index];
  const scores = probe ? `, s.score\nFROM tokens t LEFT JOIN (SELECT * FROM scores WHERE probe = ${quoted(probe.name)}) s USING (example, position)` : "\nFROM tokens t";
  const statement = `SELECT t.position, t.to_decision, t.segment, t.token_id, t.token${scores}\nWHERE t.example = ${example} ORDER BY t.position`;
  const facts = [
    ["id", isolated(known.id[index])],
    ["example", String(example)],
    ["digest of its tokens", element("code", {}, visible(known.digest[index]))],
    ["unit, plan", isolated(`${known.unit[index]}, ${known.plan[index]}`)],
    ["label", known.label[index] === null ? "–" : isolated(known.label[index])],
    ["source", known.source[index] === null ? "–" : isolated(known.source[index])],
    ...(probe
      ? [
          ["probe", isolated(`${probe.name}: ${probe.place}`)],
          ["digest of the probe", element("code", {}, visible(probe.digest))],
          ["capture", isolated(probe.capture)],
        ]
      : []),
  ];
  return [
    element("h3", {}, "Lineage"),
    element("table", { class: "lines" }, facts.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)))),
    element("p", { class: "note" }, "The same tokens from the store, as a statement for ", element("code", {}, "cliffstore sql"), " ", isolated(data.store), ":"),
    element("code", { class: "statement", tabindex: "0" }, statement),
  ];
}
