// What stands beside what is pointed at: of a token, or of a point of a chart.

import { element, visible } from "./text.js";

const tip = document.getElementById("tip");

export function showTip(target, lines) {
  const rows = lines.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, visible(name)), element("td", {}, element("bdi", {}, visible(value)))));
  tip.replaceChildren(element("table", {}, rows));
  const dialog = target.closest("dialog");
  (dialog || document.body).append(tip); // what is modal is above all that is not in it
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left + box.width / 2 - width / 2, window.innerWidth - width - 8));
  const above = box.top - height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above >= 8 ? above : Math.min(box.bottom + 8, window.innerHeight - height - 8)}px`;
}

export function hideTip() {
  tip.hidden = true;
}

// Marks that stand for one thing; lines and areas stand for many.
const POINTS = ["symbol", "rect", "rule", "path"].map((kind) => `.mark-${kind}[role="graphics-object"] > [aria-label]`).join(", ");

// Vega says in the label of each mark what it stands for: "title: value; title: value". Its places on the axes come
// first, as they are, and again among the rest, as they are to be read.
function labelLines(label) {
  const lines = label.split("; ").map((part) => {
    const at = part.indexOf(": ");
    return at < 0 ? ["", part] : [part.slice(0, at), part.slice(at + 2).replace(/^([\u2212-]?\d+\.\d{3})\d{2,}$/, "$1")];
  });
  return lines.filter(([, value], at) => !lines.slice(at + 1).some(([, other]) => other === value && /\d/.test(value)));
}

export function watchCharts() {
  for (const drawing of document.querySelectorAll(".drawing")) {
    drawing.addEventListener("pointerover", (event) => {
      const mark = event.target.closest(POINTS);
      if (mark) showTip(mark, labelLines(mark.getAttribute("aria-label")));
      else hideTip();
    });
    drawing.addEventListener("pointerleave", hideTip);
  }
}
