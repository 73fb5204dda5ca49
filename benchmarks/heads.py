"""Tracing and switching off heads against what a user would run instead, interleaved, as ratios of time.

usage: python benchmarks/heads.py MODEL [--prompts 64] [--tokens 150] [--layer L] [--sample 4] [--rounds 3]
           [--threads N]

MODEL is a local folder; float32. Prompts are drawn: a stem that all share (the tokens of a system prompt, 24), then
random tokens up to about `tokens` (from 80 to 120 % of it). The last five stand for the template's tokens.

What is compared, for a probe on resid_post of `layer` (by default two thirds up):
  forward    one plain forward pass a head with a hook on its output projection, LM head included, 16 prompts a batch,
             sorted by length: for `sample` heads of every layer's, on all prompts, times the number of heads
  template   all heads up to the probe's layer off at the template's tokens, on all prompts
  all        the same heads off at all positions: on every `sample`-th head, times as many
  extract    one extraction pass of resid_post of `layer`, nothing stored
  trace      the same passes with the shares of all heads

Ratios are of one round, medians over rounds, of wall-clock time and of this process's CPU time; where other work has
the cores, the latter says more. `order` is the rank correlation of effects over the heads that both have measured, and
the largest difference.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from cliffstore.analyze.attribution import read_heads
from cliffstore.extract.passes import plan_passes
from cliffstore.extract.tree import UnitExample, build_tree
from cliffstore.extract.trial import as_tensors
from cliffstore.model.capture import SiteCapture
from cliffstore.model.heads import head_outputs
from cliffstore.model.identity import find_model
from cliffstore.model.knockout import Knockouts, Prompt
from cliffstore.model.loader import load_model
from cliffstore.model.sites import arrays_of, locate
from cliffstore.ranks import spearman

STEM, TEMPLATE, BATCH, PASS_TOKENS = 24, 5, 16, 512


def draw(n: int, tokens: int, vocabulary: int) -> list[np.ndarray]:
    """Return prompts, those of like tokens side by side as a plan has them."""
    numbers = np.random.default_rng(0)
    stem, end = numbers.integers(0, vocabulary, STEM), numbers.integers(0, vocabulary, TEMPLATE)
    lengths = numbers.integers(int(tokens * 0.8), int(tokens * 1.2) + 1, n) - STEM - TEMPLATE
    prompts = [np.concatenate([stem, numbers.integers(0, vocabulary, length), end]) for length in lengths]
    return sorted(prompts, key=lambda one: tuple(one))


def timed(act: Callable[[], object]) -> tuple[float, float, object]:
    """Return wall-clock and CPU seconds of a call, and what it gave."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = act()
    return time.perf_counter() - wall, time.process_time() - cpu, found


class Plain:
    """A plain forward pass a head."""

    def __init__(self, model: object, prompts: list[np.ndarray], layer: int, first: Callable[[int], int]) -> None:
        self.model, self.layer, self.first = model, layer, first
        self.prompts = prompts
        self.order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))

    def scores(self, head: tuple[int, int] | None, w: torch.Tensor) -> np.ndarray:
        """Return the score of each prompt with a head off."""
        found = np.zeros(len(self.prompts))
        for begin in range(0, len(self.order), BATCH):
            batch = self.order[begin : begin + BATCH]
            width = max(len(self.prompts[number]) for number in batch)
            ids, seen = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width)
            for line, number in enumerate(batch):
                ids[line, : len(self.prompts[number])] = torch.from_numpy(self.prompts[number])
                seen[line, : len(self.prompts[number])] = 1
            read: list[torch.Tensor] = []
            blocks = self.model.model.layers
            handles = [blocks[self.layer].register_forward_hook(lambda _m, _i, out, read=read: read.append(out))]
            if head is not None:
                handles.append(blocks[head[0]].self_attn.o_proj.register_forward_pre_hook(self._off(head[1], batch)))
            with torch.inference_mode():
                self.model(input_ids=ids, attention_mask=seen.long(), use_cache=False)
            for handle in handles:
                handle.remove()
            for line, number in enumerate(batch):
                found[number] = float(read[0][line, len(self.prompts[number]) - 1] @ w)
        return found

    def _off(self, head: int, batch: list[int]) -> Callable[..., object]:
        width = self.model.config.hidden_size // self.model.config.num_attention_heads

        def hook(_module: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            z = inputs[0].clone()
            for line, number in enumerate(batch):
                z[line, self.first(len(self.prompts[number])) :, head * width : (head + 1) * width] = 0
            return (z,)

        return hook


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--sample", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    source = find_model(given.model, None, print)
    identity = source.identity
    layer = identity.n_layers * 2 // 3 if given.layer is None else given.layer
    w = np.random.default_rng(1).normal(size=identity.d_model).astype(np.float32)
    plain_model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    prompts = draw(given.prompts, given.tokens, plain_model.config.vocab_size)
    (array,) = arrays_of(identity, ["resid_post"], [layer])
    knockouts = Knockouts(load_model(source, "float32", "cpu"), identity, array, w, 0.0, tokens=2_048)
    heads = [(at, head) for at in knockouts.layers for head in range(identity.n_heads)]
    sampled = [heads[number] for number in np.linspace(0, len(heads) - 1, given.sample).astype(int)]
    some = heads[given.sample // 2 :: given.sample]
    tracing = load_model(source, "float32", "cpu")
    arrays = [*arrays_of(identity, ["z"], list(range(layer + 1))), array]
    outputs = head_outputs(tracing, locate(tracing, identity.n_layers), range(layer + 1), identity.n_heads)
    reading = read_heads(outputs, w, "resid_post")
    captures = {
        "extract": SiteCapture(load_model(source, "float32", "cpu"), [array], identity.n_layers, identity.n_heads),
        "trace": SiteCapture(tracing, arrays, identity.n_layers, identity.n_heads),
    }
    whole = [UnitExample(number, one.astype(np.int32), np.arange(len(one))) for number, one in enumerate(prompts)]
    paths = build_tree(whole).paths
    all_rows = [UnitExample(one.example, one.token_ids, path) for one, path in zip(whole, paths, strict=True)]
    last_rows = [
        UnitExample(one.example, one.token_ids, np.where(np.arange(len(path)) == len(path) - 1, path, -1))
        for one, path in zip(whole, paths, strict=True)
    ]

    def passes(name: str) -> None:
        shares: dict[str, np.ndarray] = {}

        def take(array_name: str, vectors: torch.Tensor) -> None:
            site, _, at = array_name.partition("/")
            if site == "z":
                shares[at] = reading.layers[int(at)].shares(vectors.numpy())[0]

        sink = take if name == "trace" else (lambda _name, _vectors: None)
        for group in plan_passes(last_rows if name == "trace" else all_rows, "tree", PASS_TOKENS):
            for one in group:
                captures[name].run(as_tensors(one), sink)

    def knock_out(first: Callable[[int], int], chosen: list[tuple[int, int]]) -> np.ndarray:
        found, batch = [], []
        for prompt in (Prompt(one.astype(np.int64), first(len(one))) for one in prompts):
            if batch and not knockouts.fit_together([*batch, prompt]):
                found.append(knockouts.scores(batch, [(head,) for head in chosen]))
                batch = []
            batch.append(prompt)
        found.append(knockouts.scores(batch, [(head,) for head in chosen]))
        return np.concatenate([scored - plain for scored, plain in found])

    plain = Plain(plain_model, prompts, layer, lambda n: n - TEMPLATE)
    everywhere = Plain(plain_model, prompts, layer, lambda _n: 0)
    w_torch = torch.from_numpy(w)
    plain.scores(sampled[0], w_torch)
    passes("extract"), passes("trace")
    figures: dict[str, list[tuple[float, float]]] = {}
    effects: dict[str, np.ndarray] = {}
    for number in range(given.rounds):
        head = sampled[number % len(sampled)]
        runs: dict[str, tuple[Callable[[], object], float]] = {
            "forward": (lambda head=head: plain.scores(head, w_torch), len(heads)),
            "template": (lambda: knock_out(lambda n: n - TEMPLATE, heads), 1),
            "all": (lambda: knock_out(lambda _n: 0, some), len(heads) / len(some)),
            "extract": (lambda: passes("extract"), 1),
            "trace": (lambda: passes("trace"), 1),
        }
        for name, (act, times) in runs.items():
            wall, cpu, found = timed(act)
            figures.setdefault(name, []).append((wall * times, cpu * times))
            if isinstance(found, np.ndarray):
                effects[name] = found
            print(f"round {number} {name}: {wall * times:.1f} s, {cpu * times:.1f} s of CPU", flush=True)
    title = (
        f"{len(prompts)} prompts of about {given.tokens} tokens, probe on layer {layer} of {identity.n_layers}, "
        f"{len(heads)} heads, {torch.get_num_threads()} threads"
    )
    table = Table("", "wall clock", "CPU time", "wanted", title=title)
    wanted = (
        ("forward", "template", "at least 20"),
        ("forward", "all", "at least 3"),
        ("trace", "extract", "at most 1.15"),
    )
    for one, other, limit in wanted:
        ratios = [
            [mine[kind] / theirs[kind] for mine, theirs in zip(figures[one], figures[other], strict=True)]
            for kind in range(2)
        ]
        cells = [f"{statistics.median(row):.2f} ({min(row):.2f}-{max(row):.2f})" for row in ratios]
        table.add_row(f"{one} / {other}", *cells, limit)
    Console(width=120).print(table)
    as_it_is = plain.scores(None, w_torch)
    for name, chosen, runner in (("template", heads, plain), ("all", some, everywhere)):
        both = [head for head in chosen if head in sampled] if name == "template" else some[:: max(len(some) // 4, 1)]
        by_hand = np.stack([runner.scores(head, w_torch) - as_it_is for head in both], axis=1)
        mine = effects[name][:, [chosen.index(head) for head in both]]
        agreement = spearman(by_hand.mean(axis=0), mine.mean(axis=0))
        print(
            f"order, {name}: {len(both)} heads, rank correlation of mean effects {agreement:.4f}, largest difference "
            f"{np.abs(by_hand - mine).max():.1e} of effects up to {np.abs(by_hand).max():.2f}"
        )


if __name__ == "__main__":
    main()
