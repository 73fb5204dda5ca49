// What the page was made with. Tokens are read when an example is first opened.

function parsed(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

export const data = parsed("table-data");
export const known = data.rows.known;
export const total = known.example.length;

// What is shown: at first the first probe, and the first selection that was made with it.
const firstProbe = data.probes.length ? data.probes[0].name : null;
const ownSelection = data.selections.findIndex((one) => one.probe === firstProbe);
export const state = { probe: firstProbe, selection: data.selections.length ? Math.max(0, ownSelection) : null };

let held = null;
export function tokens() {
  held = held || parsed("token-data");
  return held;
}

export function probeOf(name) {
  return data.probes.find((one) => one.name === name) || null;
}

// The figures of an example's cliff by one probe: null where there are none.
export function cliffOf(index, probe = state.probe) {
  const columns = data.rows.cliffs[probe];
  if (!columns) return null;
  return Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[index]]));
}

const numberOf = new Map(known.example.map((example, index) => [example, index]));
export function indexOf(example) {
  return numberOf.get(example);
}

const ranks = data.selections.map((one) => new Map(one.rows.example.map((example, at) => [example, at])));

// Where an example stands in a selection; undefined where it is not in it.
export function placeIn(selection, index) {
  return ranks[selection].get(known.example[index]);
}

export function rankOf(index, selection = state.selection) {
  if (selection === null) return null;
  const place = placeIn(selection, index);
  return place === undefined ? null : data.selections[selection].rows.rank[place];
}

// An example's tokens with their scores by one probe, in logits; null where a token has none.
export function tokensOf(index, probe) {
  const packed = tokens();
  const one = packed.examples[index];
  const steps = one.scores[probe] || [];
  const perLogit = 10 ** (probe === null ? 0 : probeOf(probe).digits);
  const decision = known.decision[index];
  const found = [];
  let at = 0;
  for (let run = 0; run < one.runs.length; run += 2) {
    const segment = packed.segments[one.runs[run]];
    for (let left = one.runs[run + 1]; left > 0; left -= 1) {
      const number = one.tokens[at];
      const step = steps[at];
      const position = one.first + at;
      found.push({
        position,
        to_decision: position - decision,
        segment,
        id: packed.ids[number],
        text: packed.texts[number],
        score: step === null || step === undefined ? null : step / perLogit,
      });
      at += 1;
    }
  }
  return found;
}
