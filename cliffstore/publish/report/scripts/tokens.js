// The tokens of an example, coloured by score: one block a segment, with its name and a bar of its own kind.
//
// A score above 0, where the probe says yes, has a line below the token too, so that no meaning is in colour alone.

import { data } from "./data.js";
import { fixed, probability } from "./numbers.js";
import { element, tokenParts } from "./text.js";
import { hideTip, showTip } from "./tip.js";

// The colour of a score: 0 is the lowest step, the middle one is the threshold.
export function stepOf(score, limit) {
  const width = limit / (data.steps + 0.5);
  return data.steps + Math.max(-data.steps, Math.min(data.steps, Math.round(score / width)));
}

export function legend(probe) {
  const limit = probe.limit;
  const steps = Array.from({ length: 2 * data.steps + 1 }, (_, step) => element("span", { class: `step-${step}` }));
  const digits = Math.max(1, probe.digits - 2);
  const positive = probe.positive === null ? "" : ` (${probe.positive})`;
  return element(
    "div",
    { class: "legend" },
    element("div", { class: "ramp", role: "img", "aria-label": `Colours from ${fixed(-limit, digits)} or less to ${fixed(limit, digits)} or more` }, steps),
    element("div", { class: "ends" }, element("span", {}, `≤ ${fixed(-limit, digits)}`), element("span", {}, "0, the threshold"), element("span", {}, `≥ ${fixed(limit, digits)}`)),
    element("div", {}, "Score in logits. Underlined: above 0, where the probe says yes", element("bdi", {}, positive), ". Solid frame: the decision position; dashed: the steepest fall; dotted line: no score."),
  );
}

const TOLD = 80;

// What is told of a token: names and values.
export function linesOf(token, digits) {
  const text = tokenParts(token.text).replaceAll("\n", "");
  return [
    ["token", text.length > TOLD ? `${text.slice(0, TOLD - 1)}…` : text],
    ["token id", String(token.id)],
    ["position", String(token.position)],
    ["to decision", fixed(token.to_decision, 0)],
    ["segment", token.segment],
    ["score", token.score === null ? "none" : fixed(token.score, digits)],
    ["probability", token.score === null ? "none" : fixed(probability(token.score))],
  ];
}

function tellOf(token, digits) {
  return linesOf(token, digits).map(([name, value]) => `${name} ${value}`).join(", ");
}

function drawToken(token, probe, steepest) {
  const classes = ["token"];
  if (token.score === null) classes.push("unscored");
  else classes.push(`step-${stepOf(token.score, probe.limit)}`);
  if (token.score !== null && token.score > 0) classes.push("above");
  if (token.to_decision === 0) classes.push("decision");
  if (token.position === steepest) classes.push("steepest");
  return element("span", { class: classes.join(" "), "data-position": token.position, "data-score": token.score === null ? "" : token.score, tabindex: "-1", role: "listitem" }, tokenParts(token.text));
}

// Draw tokens; the arrow keys move between them, and what is pointed at or has the focus is told.
export function drawTokens(tokens, probe, steepest) {
  const root = element("div", { class: "tokens", role: "list", "aria-label": "Tokens, coloured by score" });
  let block = null;
  let segment = null;
  const drawn = [];
  for (const token of tokens) {
    if (token.segment !== segment) {
      segment = token.segment;
      block = element("div", { class: "text", dir: "auto" });
      root.append(element("div", { class: "segment", "data-kind": segment, role: "group", "aria-label": `segment ${segment}` }, element("div", { class: "name" }, segment), block));
    }
    const made = drawToken(token, probe, steepest);
    drawn.push(made);
    block.append(made);
    if (token.to_decision === 0) block.append(element("span", { class: "flag", "aria-hidden": "true" }, "◂ decision"));
    if (token.position === steepest) block.append(element("span", { class: "flag", "aria-hidden": "true" }, "◂ steepest"));
  }
  watchTokens(root, tokens, drawn, probe.digits);
  return { root, mark: (position) => mark(drawn, tokens, position) };
}

function mark(drawn, tokens, position) {
  const at = tokens.findIndex((token) => token.position === position);
  return at < 0 ? null : drawn[at];
}

function watchTokens(root, tokens, drawn, digits) {
  const numberOf = new Map(drawn.map((made, at) => [made, at]));
  const at = (event) => numberOf.get(event.target.closest(".token"));
  const start = Math.max(0, tokens.findIndex((token) => token.to_decision === 0));
  if (drawn.length) drawn[start].tabIndex = 0;
  const tell = (number) => {
    if (number === undefined) hideTip();
    else showTip(drawn[number], linesOf(tokens[number], digits));
  };
  root.addEventListener("pointerover", (event) => tell(at(event)));
  root.addEventListener("pointerleave", hideTip);
  root.addEventListener("focusin", (event) => {
    const number = at(event);
    if (number === undefined) return;
    drawn[number].setAttribute("aria-label", tellOf(tokens[number], digits));
    tell(number);
  });
  root.addEventListener("focusout", hideTip);
  root.addEventListener("keydown", (event) => {
    const number = at(event);
    const goal = { ArrowRight: number + 1, ArrowLeft: number - 1, Home: 0, End: drawn.length - 1 }[event.key];
    if (number === undefined || goal === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const next = drawn[Math.max(0, Math.min(goal, drawn.length - 1))];
    drawn[number].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
