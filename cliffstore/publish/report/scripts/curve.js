// The scores of one example, from its first token to its last: plateau and decision marked, segments below.

import { element } from "./text.js";
import { fixed } from "./numbers.js";

const WIDTH = 520;
const HEIGHT = 250;
const LEFT = 44;
const RIGHT = 12;
const TOP = 14;
const BOTTOM = 44;
const namespace = document.getElementById("canvas").namespaceURI;

function shape(name, attributes, text) {
  const made = document.createElementNS(namespace, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Round numbers that cut a range into some four parts.
export function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((nice) => nice * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return { found, digits: Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)) };
}

// From the lowest to the highest score, 0 and what is marked among them. Where a few scores are far from all others,
// as that of a first token may be, the others have the room; the few are marked at the edge with their value.
function extent(scores, marked) {
  const sorted = [...scores].sort((a, b) => a - b);
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const range = (low, high) => [Math.min(0, low, ...marked), Math.max(0, high, ...marked)];
  const all = range(at(0), at(1));
  const most = range(at(0.015), at(0.985));
  const [low, high] = all[1] - all[0] > 1.5 * (most[1] - most[0]) ? most : all;
  const margin = (high - low || 1) * 0.06;
  return [low - margin, high + margin];
}

function runsOf(tokens) {
  const runs = [];
  for (const token of tokens) {
    const last = runs[runs.length - 1];
    if (last && last.segment === token.segment) last.to = token.to_decision;
    else runs.push({ segment: token.segment, from: token.to_decision, to: token.to_decision });
  }
  return runs;
}

// cliff: plateau, final ...; point(position) is told which token the pointer is at, or null.
export function drawCurve(tokens, cliff, digits, point) {
  const scored = tokens.filter((token) => token.score !== null);
  if (!scored.length) return element("p", { class: "note" }, "No token of this example has a score of this probe.");
  const first = tokens[0].to_decision;
  const last = tokens[tokens.length - 1].to_decision;
  const marked = cliff ? [cliff.plateau, cliff.final].filter((value) => value !== null && value !== undefined) : [];
  const [low, high] = extent(scored.map((token) => token.score), marked);
  const x = (at) => LEFT + ((at - first + 0.5) / (last - first + 1)) * (WIDTH - LEFT - RIGHT);
  const y = (score) => TOP + ((high - Math.max(low, Math.min(high, score))) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const svg = shape("svg", { class: "curve", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  svg.append(shape("title", {}, describe(scored, cliff, digits)));
  drawSegments(svg, tokens, x);
  drawAxes(svg, low, high, first, last, x, y);
  drawLine(svg, scored, x, y);
  drawMarks(svg, tokens, cliff, x, y);
  drawBeyond(svg, scored, low, high, x, digits - 2);
  watchCurve(svg, tokens, x, point);
  return svg;
}

function describe(scored, cliff, digits) {
  const scores = scored.map((one) => one.score);
  const range = `${fixed(Math.min(...scores), digits)} to ${fixed(Math.max(...scores), digits)}`;
  const fall = cliff && cliff.cliff !== null ? `; plateau ${fixed(cliff.plateau, digits)}, final ${fixed(cliff.final, digits)}, cliff ${fixed(cliff.cliff, digits)}` : "";
  return `Scores of ${scored.length} tokens, ${range}${fall}`;
}

function drawSegments(svg, tokens, x) {
  const half = (x(1) - x(0)) / 2;
  const top = HEIGHT - BOTTOM + 20;
  for (const run of runsOf(tokens)) {
    const from = x(run.from) - half;
    const width = x(run.to) + half - from;
    const band = shape("rect", { class: "band", x: from, y: top, width, height: 18 });
    band.append(shape("title", {}, `${run.segment}: ${run.from} to ${run.to}`));
    svg.append(band);
    if (width > run.segment.length * 6.4 + 4) svg.append(shape("text", { x: from + width / 2, y: top + 13, "text-anchor": "middle", class: "inside" }, run.segment));
  }
}

function drawAxes(svg, low, high, first, last, x, y) {
  const scores = ticks(low, high);
  for (const at of scores.found) {
    const isZero = Math.abs(at) < 1e-9;
    svg.append(shape("line", { class: isZero ? "zero" : "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(at), y2: y(at) }));
    svg.append(shape("text", { x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" }, fixed(isZero ? 0 : at, scores.digits)));
  }
  const distances = ticks(first, last > first ? last : first + 1).found.filter((at) => Number.isInteger(at) && at >= first && at <= last);
  for (const at of distances) svg.append(shape("text", { x: x(at), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" }, fixed(at, 0)));
}

function drawLine(svg, scored, x, y) {
  let path = "";
  let before = null;
  for (const token of scored) {
    path += `${before !== null && token.position === before + 1 ? "L" : "M"}${x(token.to_decision).toFixed(1)},${y(token.score).toFixed(1)}`;
    before = token.position;
  }
  svg.append(shape("path", { class: "line", d: path }));
}

function drawMarks(svg, tokens, cliff, x, y) {
  if (tokens.some((token) => token.to_decision === 0)) {
    svg.append(shape("line", { class: "decision", x1: x(0), x2: x(0), y1: TOP, y2: HEIGHT - BOTTOM }));
    const toLeft = x(0) > WIDTH / 2;
    svg.append(shape("text", { class: "label", x: x(0) + (toLeft ? -5 : 5), y: HEIGHT - BOTTOM - 4, "text-anchor": toLeft ? "end" : "start" }, "decision"));
  }
  if (!cliff) return;
  const thinking = tokens.filter((token) => token.segment === "think");
  if (cliff.plateau !== null && thinking.length) {
    const height = y(cliff.plateau);
    const from = x(thinking[0].to_decision);
    svg.append(shape("line", { class: "plateau", x1: from, x2: x(thinking[thinking.length - 1].to_decision), y1: height, y2: height }));
    svg.append(shape("text", { class: "label", x: from, y: height - 6 }, "plateau"));
    if (cliff.final !== null) svg.append(shape("line", { class: "drop", x1: x(0), x2: x(0), y1: height, y2: y(cliff.final) }));
  }
  if (cliff.final !== null) svg.append(shape("circle", { class: "final", cx: x(0), cy: y(cliff.final), r: 4.5 }));
}

// Scores that have no room: a triangle at the edge, and the value.
function drawBeyond(svg, scored, low, high, x, digits) {
  for (const token of scored) {
    if (token.score >= low && token.score <= high) continue;
    const isAbove = token.score > high;
    const edge = isAbove ? TOP : HEIGHT - BOTTOM;
    const base = edge + (isAbove ? 7 : -7);
    const at = x(token.to_decision);
    const toLeft = at > WIDTH / 2;
    svg.append(shape("path", { class: "beyond", d: `M${at},${edge}L${at - 4},${base}L${at + 4},${base}Z` }));
    svg.append(shape("text", { x: at + (toLeft ? -7 : 7), y: edge + (isAbove ? 8 : -1), "text-anchor": toLeft ? "end" : "start" }, fixed(token.score, digits)));
  }
}

function watchCurve(svg, tokens, x, point) {
  const cursor = shape("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  const step = x(1) - x(0);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = Math.round((((event.clientX - box.left) / box.width) * WIDTH - x(tokens[0].to_decision)) / step);
    const token = tokens[Math.max(0, Math.min(at, tokens.length - 1))];
    cursor.setAttribute("x1", x(token.to_decision));
    cursor.setAttribute("x2", x(token.to_decision));
    cursor.setAttribute("visibility", "visible");
    point(token, event);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    point(null);
  });
}
