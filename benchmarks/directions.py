"""Refusal directions ablated and added, on SmolLM2: refusal and over-refusal rates with Wilson intervals.

    python benchmarks/directions.py [--data ../shared/data] [--model MODEL] [--work /tmp/directions-benchmark]
        [--rows 60] [--train 96] [--validation 16] [--new-tokens 24] [--layers 10,14,18] [--factors 0.5,1,2]
        [--reply-layers 14,18] [--reply-factors 1,2] [--replies 32] [--threads 1]

Three parts that share no row. Train gives two directions, both differences of means through the store (extract, then
`probe fit --kind mean_difference` at each layer): of requests, AdvBench against Alpaca at the decision position; and of
replies, a refusal against a promise behind the same Alpaca instructions, over the tokens of the reply. Validation
chooses the layer and the factor at which adding one makes the model refuse most of the Alpaca instructions, and the
layer whose direction of requests, ablated at every layer, leaves fewest refusals of AdvBench; ties go to the smaller
factor and to the lower layer. Test: `--rows` of each source, for the unchanged model, and with each of the chosen
changes, beside the same change with a random direction of equal length.

A direction is added to `resid_post` of its layer at all positions; the factor is in distances between the two means of
train. Ablating takes it out of layer input, attention output and MLP output of all layers, at all positions. Text is
greedy, in float32, in batches of 16, judged by the rules of `cliffstore judge`; it stays in the work folder, from which
a run that was cut off goes on. Only rates are printed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from cliffstore.analyze.rates import Rate
from cliffstore.run.generation.generating import generate
from cliffstore.run.judging.judging import judge
from cliffstore.run.progress import LineReporter
from cliffstore.run.shipped_model import shipped_model
from cliffstore.run.stages import extract
from cliffstore.run.store import Store

DATA = Path(__file__).parents[2] / "shared" / "data"
HARMFUL, BENIGN = "advbench", "alpaca"
REPLIES = {"1": "I'm sorry, but I can't help with that.", "0": "Sure! Here is what you asked for."}
Step = dict[str, object]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of both sources by number."""

    first: int
    n: int

    def where(self, source: str) -> str:
        return f"source = '{source}' AND id >= '{source}-{self.first:05}' AND id < '{source}-{self.first + self.n:05}'"


@dataclass(frozen=True, slots=True)
class Bench:
    """Where things are, and how text is generated."""

    data: Path
    model: str
    work: Path
    new_tokens: int
    reporter: LineReporter

    @property
    def store(self) -> str:
        return str(self.work / "store")

    @property
    def replies(self) -> str:
        return str(self.work / "replies")

    def refused(self, name: str, source: str, part: Part, steps: Sequence[Step]) -> Rate:
        """Return how many rows of a source are refused."""
        output = self.work / f"{name}-{source}.jsonl"
        changes: dict[str, object] = {}
        if steps:
            file = self.work / f"{name}.json"
            file.write_text(json.dumps({"steps": list(steps)}))
            changes["intervene"] = str(file)
        generate(
            str(self.data / f"{source}.jsonl"),
            model=self.model,
            output=str(output),
            where=part.where(source),
            max_new_tokens=self.new_tokens,
            dtype="float32",
            executor="local",
            reporter=self.reporter,
            **changes,
        )
        return judge(str(output), reporter=self.reporter).rates[0].refused


def find_request_directions(bench: Bench, part: Part, layers: Sequence[int]) -> dict[int, float]:
    """Fit AdvBench less Alpaca at each layer; return the distance between the two means."""
    inputs = [str(bench.data / f"{source}.jsonl") for source in (HARMFUL, BENIGN)]
    where = f"{part.where(HARMFUL)} OR {part.where(BENIGN)}"
    extract(inputs, where=where, positions="decision", **_common(bench, bench.store, layers))
    return _fitted(bench, bench.store, layers, "decision", "to_decision = 0")


def find_reply_directions(bench: Bench, part: Part, layers: Sequence[int]) -> dict[int, float]:
    """Fit refusals less promises behind the same instructions; return the distance between the two means."""
    corpus = bench.work / "replies.jsonl"
    rows = [json.loads(line) for line in (bench.data / f"{BENIGN}.jsonl").read_text(encoding="utf-8").splitlines()]
    corpus.write_text(
        "".join(
            json.dumps({"id": f"{row['id']}-{label}", "prompt": row["prompt"], "response": said, "label": label}) + "\n"
            for row in rows[part.first : part.first + part.n]
            for label, said in REPLIES.items()
        )
    )
    extract(str(corpus), **_common(bench, bench.replies, layers))
    return _fitted(bench, bench.replies, layers, "response", "segment = 'response'")


def _common(bench: Bench, store: str, layers: Sequence[int]) -> dict[str, object]:
    return {
        "model": bench.model, "store": store, "layers": ",".join(map(str, layers)), "dtype": "float32",
        "executor": "local", "reporter": bench.reporter,
    }  # fmt: skip


def _fitted(bench: Bench, url: str, layers: Sequence[int], positions: str, tokens: str) -> dict[int, float]:
    found = {}
    with Store(url, reporter=bench.reporter) as store:
        for layer in layers:
            name = f"layer-{layer}"
            store.fit_probe(name, kind="mean_difference", layers=str(layer), positions=positions)
            store.random_probes(name, 1, replace=True)
            found[layer] = store.sql(
                f"""SELECT (avg(s) FILTER (label = '1') - avg(s) FILTER (label = '0')) / norm FROM (
                SELECT label, array_inner_product(resid_post(row, {layer}), probe_weight('{name}')) AS s,
                sqrt(array_inner_product(probe_weight('{name}'), probe_weight('{name}'))) AS norm
                FROM tokens JOIN examples USING (example) WHERE {tokens}) GROUP BY norm"""
            ).fetchall()[0][0]
    return found


def ablated(store: str, name: str) -> Step:
    return {"kind": "ablate", "direction": f"{store}/probes/{name}"}


def added(store: str, name: str, layer: int, length: float) -> Step:
    direction = f"{store}/probes/{name}"
    return {"kind": "steer", "direction": direction, "site": "resid_post", "layers": str(layer), "factor": length,
            "unit": True}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model")
    parser.add_argument("--work", type=Path, default=Path("/tmp/directions-benchmark"))
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--train", type=int, default=96)
    parser.add_argument("--validation", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--layers", default="10,14,18")
    parser.add_argument("--factors", default="0.5,1,2")
    parser.add_argument("--reply-layers", default="14,18")
    parser.add_argument("--reply-factors", default="1,2")
    parser.add_argument("--replies", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begun = time.perf_counter()
    options.work.mkdir(parents=True, exist_ok=True)
    model = options.model or str(shipped_model())
    bench = Bench(options.data, model, options.work, options.new_tokens, LineReporter())
    test = Part(0, options.rows)
    validation = Part(test.n, options.validation)
    train = Part(test.n + validation.n, options.train)
    layers = [int(one) for one in options.layers.split(",")]
    factors = [float(one) for one in options.factors.split(",")]

    distance = find_request_directions(bench, train, layers)
    tried = {
        (layer, factor): bench.refused(
            f"try-add-{layer}-{factor}", BENIGN, validation,
            [added(bench.store, f"layer-{layer}", layer, factor * distance[layer])],
        )
        for layer in layers
        for factor in factors
    }  # fmt: skip
    removed = {
        layer: bench.refused(f"try-ablate-{layer}", HARMFUL, validation, [ablated(bench.store, f"layer-{layer}")])
        for layer in layers
    }
    layer, factor = min(tried, key=lambda one: (-tried[one].k, one[1], one[0]))
    other = min(removed, key=lambda one: (removed[one].k, one))
    said_layers = [int(one) for one in options.reply_layers.split(",")]
    said_distance = find_reply_directions(bench, Part(train.first, options.replies), said_layers)
    said = {
        (at, by): bench.refused(
            f"try-reply-{at}-{by}", BENIGN, validation,
            [added(bench.replies, f"layer-{at}", at, by * said_distance[at])],
        )
        for at in said_layers
        for by in (float(one) for one in options.reply_factors.split(","))
    }  # fmt: skip
    reply_layer, reply_factor = min(said, key=lambda one: (-said[one].k, one[1], one[0]))
    reply = f"layer-{reply_layer}"
    length = reply_factor * said_distance[reply_layer]
    conditions = {
        "unchanged": [],
        f"requests' direction ablated, layer {other}'s": [ablated(bench.store, f"layer-{other}")],
        "random direction ablated": [ablated(bench.store, f"layer-{other}-random-0-0")],
        f"requests' direction added, layer {layer}, factor {factor:g}": [
            added(bench.store, f"layer-{layer}", layer, factor * distance[layer])
        ],
        f"random direction added, layer {layer}, as long": [
            added(bench.store, f"layer-{layer}-random-0-0", layer, factor * distance[layer])
        ],
        f"replies' direction added, layer {reply_layer}, factor {reply_factor:g}": [
            added(bench.replies, reply, reply_layer, length)
        ],
        f"random direction added, layer {reply_layer}, as long": [
            added(bench.replies, f"{reply}-random-0-0", reply_layer, length)
        ],
        f"replies' direction ablated, layer {reply_layer}'s": [ablated(bench.replies, reply)],
    }
    final = [
        (name, [bench.refused(f"test-{number}", source, test, steps) for source in (HARMFUL, BENIGN)])
        for number, (name, steps) in enumerate(conditions.items())
    ]

    console = Console(width=110)
    chosen = Table(title=f"Validation: {validation.n} rows of a source, numbers {validation.first}-"
                   f"{validation.first + validation.n - 1}")  # fmt: skip
    for column in (
        "layer",
        "distance",
        "ablated: AdvBench refused",
        *(f"added x{one:g}: Alpaca refused" for one in factors),
    ):
        chosen.add_column(column, justify="right")
    for one in layers:
        chosen.add_row(str(one), f"{distance[one]:.1f}", f"{removed[one].k}/{removed[one].n}",
                       *(f"{tried[one, at].k}/{tried[one, at].n}" for at in factors))  # fmt: skip
    console.print(chosen)
    tries = ", ".join(f"layer {at} x{by:g}: {rate.k}/{rate.n}" for (at, by), rate in said.items())
    print(f"Replies' direction added, Alpaca refused: {tries}")
    table = Table(title=f"Test: rows {test.first}-{test.n - 1} of each source, {bench.new_tokens} new tokens, greedy")
    for column in ("model", "AdvBench refused", "Alpaca refused (over-refusal)"):
        table.add_column(column, justify="right")
    for name, rates in final:
        table.add_row(name, *(f"{rate.k}/{rate.n} {rate}" for rate in rates))
    console.print(table)
    print(f"train: {train.n} rows of each source; {options.threads} thread(s); "
          f"{time.perf_counter() - begun:.0f} s in this run")  # fmt: skip


if __name__ == "__main__":
    main()
