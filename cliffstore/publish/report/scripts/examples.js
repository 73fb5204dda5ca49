// The table of examples: what is searched, filtered and sorted.

import { cliffOf, data, known, probeOf, rankOf, state, total } from "./data.js";
import { openExample } from "./example.js";
import { plainNumber } from "./numbers.js";
import { element, visible } from "./text.js";
import { Table } from "./table.js";

const SHORT = 40;
const TEXTS = ["id", "prompt", "system", "thinking", "response", "label", "source"];
const indices = Array.from({ length: total }, (_, index) => index);

let haystacks = null;
function haystack(index) {
  haystacks = haystacks || new Array(total);
  if (haystacks[index] === undefined) {
    const texts = TEXTS.map((name) => known[name][index]);
    const further = data.rows.further.map((one) => one.values[index]);
    haystacks[index] = [...texts, ...further].filter((text) => text !== null).join("\n").toLocaleLowerCase();
  }
  return haystacks[index];
}

// Examples match that have each of the words somewhere.
function matcher(query) {
  const words = query.toLocaleLowerCase().split(/\s+/).filter((word) => word);
  return (index) => words.every((word) => haystack(index).includes(word));
}

function columns() {
  const figure = (name, title, hint) => ({ name, title, hint, kind: "number", digits: () => probeOf(state.probe).digits, value: (index) => (cliffOf(index) || {})[name] });
  const whole = (name, title, value, hint) => ({ name, title, hint, kind: "number", value });
  const text = (name, kind) => ({ name, title: name, kind, value: (index) => known[name][index] });
  const has = (name) => known[name].some((value) => value !== null);
  const rank = {
    ...whole("rank", "rank", (index) => rankOf(index), "Rank in the selection"),
    cell: (index) => (rankOf(index) === null ? "–" : element("span", { class: "mark", title: "selected" }, plainNumber(rankOf(index)))),
  };
  const steepest = (index) => {
    const cliff = cliffOf(index);
    return cliff && cliff.steepest_position !== null && cliff.steepest_position !== undefined ? cliff.steepest_position - known.decision[index] : null;
  };
  const further = data.rows.further
    .filter((one) => one.number || one.values.every((value) => value === null || value.length <= SHORT))
    .map((one) => ({ name: `further ${one.name}`, title: one.name, kind: one.number ? "number" : "short", value: (index) => one.values[index] }));
  const cliffs = Object.values(data.rows.cliffs).some((one) => one.n_think.some((value) => value !== null));
  return [
    ...(data.selections.length ? [rank] : []),
    text("id", "short"),
    ...(cliffs
      ? [
          figure("cliff", "cliff", "Plateau minus final, in logits"),
          figure("plateau", "plateau", "The score held over the thinking"),
          figure("final", "final", "The score at the decision position"),
          whole("n_think", "thinking", (index) => (cliffOf(index) || {}).n_think, "Tokens of thinking"),
          whole("steepest", "steepest", steepest, "Where the score falls most, from the decision"),
        ]
      : []),
    ...(has("label") ? [text("label", "short")] : []),
    text("prompt", "long"),
    ...(has("response") ? [text("response", "long")] : []),
    whole("n_tokens", "tokens", (index) => known.n_tokens[index]),
    ...(has("source") ? [text("source", "short")] : []),
    ...further,
  ];
}

export function drawExamples() {
  const root = document.getElementById("examples-table");
  const shown = columns();
  const first = data.selections.length ? { name: "rank", down: false } : shown.some((one) => one.name === "cliff") ? { name: "cliff", down: true } : { name: "id", down: false };
  const table = new Table({ columns: shown, indices, open: openExample, label: "examples", sort: first });
  const search = element("input", { type: "search", id: "search", placeholder: "words in ids, labels and all texts", autocomplete: "off", spellcheck: "false" });
  const only = element("input", { type: "checkbox", id: "selected-only" });
  const filter = () => {
    const matches = matcher(search.value);
    table.filter = (index) => matches(index) && (!only.checked || rankOf(index) !== null);
    table.update();
  };
  let waiting = null;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  only.addEventListener("change", filter);
  const bar = element("div", { class: "bar", role: "search" }, element("label", { class: "grow" }, "Search", search));
  if (data.probes.length > 1) bar.append(choice("Probe", "probe", data.probes.map((one) => [one.name, one.name]), (value) => {
    state.probe = value;
    table.update();
  }));
  if (data.selections.length) {
    if (data.selections.length > 1) bar.append(choice("Selection", "selection", data.selections.map((one, number) => [String(number), one.name]), (value) => {
      state.selection = Number(value);
      const { probe } = data.selections[state.selection];
      if (probeOf(probe)) state.probe = probe; // its ranks are by the cliffs of that probe
      showChoices();
      filter();
    }));
    bar.append(element("label", { class: "check" }, only, "selected only"));
  }
  root.replaceChildren(bar, table.root);
  const showChoices = () => {
    const choices = { "choice-probe": state.probe, "choice-selection": String(state.selection) };
    for (const [id, value] of Object.entries(choices)) {
      const select = document.getElementById(id);
      if (select) select.value = value;
    }
  };
  showChoices();
  document.addEventListener("probe", () => {
    showChoices();
    const place = table.first;
    table.update();
    table.first = place;
    table.draw();
  });
}

function choice(title, name, options, chosen) {
  const select = element("select", { id: `choice-${name}` }, options.map(([value, text]) => element("option", { value }, visible(text))));
  select.addEventListener("change", () => chosen(select.value));
  return element("label", {}, title, select);
}
