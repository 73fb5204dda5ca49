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

// Vega says in the label of each mark what it stands for: "title: value; title: value".
export function labelLines(label) {
  return label.split("; ").map((part) => {
    const at = part.indexOf(": ");
    return at < 0 ? ["", part] : [part.slice(0, at), part.slice(at + 2)];
  });
}

export function watchCharts() {
  for (const drawing of document.querySelectorAll(".drawing")) {
    drawing.addEventListener("pointerover", (event) => {
      const mark = event.target.closest("[aria-label]");
      const label = mark && mark !== drawing && mark.tagName !== "g" ? mark.getAttribute("aria-label") : null;
      if (label && label.includes(": ")) showTip(mark, labelLines(label));
      else hideTip();
    });
    drawing.addEventListener("pointerleave", hideTip);
  }
}
