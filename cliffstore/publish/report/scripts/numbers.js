// Numbers as they are read: a true minus sign, a dash for none, three decimals unless more are asked for.

export function fixed(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "\u2212");
}

export function plainNumber(value) {
  if (value === null || value === undefined) return "–";
  const digits = Number.isInteger(value) ? 0 : 3;
  return fixed(value, digits);
}

// With how many decimals numbers are written in one column: three, or so many that three figures of the largest are seen.
export function digitsFor(values) {
  const most = values.reduce((largest, value) => Math.max(largest, Math.abs(value || 0)), 0);
  return most === 0 ? 3 : Math.min(9, Math.max(3, 2 - Math.floor(Math.log10(most))));
}

// The logistic function: what the probe takes a score to mean.
export function probability(score) {
  return 1 / (1 + Math.exp(-score));
}
