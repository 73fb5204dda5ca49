// Text of others is drawn as text: no markup is ever made of it. What would not be seen, or would turn what follows,
// is written as its escape, as `cliffstore.text` does for the rest of the page.

const HIDDEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Cs}\p{Zl}\p{Zp}]/u;
const PARTS = /([\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Cs}\p{Zl}\p{Zp}])/u;

const NAMED = new Map([["\n", "\\n"], ["\r", "\\r"], ["\t", "\\t"]]);

function signOf(char) {
  if (NAMED.has(char)) return NAMED.get(char);
  const code = char.codePointAt(0);
  const digits = code.toString(16);
  if (code <= 0xff) return `\\x${digits.padStart(2, "0")}`;
  return code > 0xffff ? `\\U${digits.padStart(8, "0")}` : `\\u${digits.padStart(4, "0")}`;
}

// One line of text in which nothing is hidden.
export function visible(text) {
  const whole = String(text);
  return HIDDEN.test(whole) ? whole.split(PARTS).map((part) => (HIDDEN.test(part) ? signOf(part) : part)).join("") : whole;
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

// Text whose direction does not reach beyond it.
export function isolated(text) {
  return element("bdi", {}, visible(text));
}

// Text of several lines: line ends and tabs stay, other signs are set apart.
export function prose(text) {
  const block = element("div", { class: "prose", dir: "auto", tabindex: "0" });
  for (const part of String(text).split(PARTS)) {
    if (part === "\n" || part === "\t" || !HIDDEN.test(part)) block.append(part);
    else block.append(element("span", { class: "sign" }, signOf(part)));
  }
  return block;
}

// A token: a line end is shown and then made, a space alone is shown.
export function tokenParts(text) {
  const parts = [];
  for (const part of text.split(PARTS)) {
    if (part === "\n") parts.push("\u23ce\n");
    else if (part === "\t") parts.push("\u21e5\t");
    else if (HIDDEN.test(part)) parts.push(signOf(part));
    else parts.push(part);
  }
  return parts.join("") || "\u2205";
}
