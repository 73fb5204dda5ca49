"""Tokens a second of `generate`, batches of 16 against one by one, in turns, on SmolLM2 in float32.

    python benchmarks/generating.py [--rounds 3] [--batch 16] [--new-tokens 32] [--model MODEL]

Prompts are the first of the demo's corpus. Loading is not counted; both sides run through the same generator.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from cliffstore.corpus.scratch import new_folder
from cliffstore.corpus.sources import read_corpus
from cliffstore.corpus.template import Renderer
from cliffstore.model.generation import Prompt, TextGenerator
from cliffstore.model.gguf import converted
from cliffstore.model.identity import find_model
from cliffstore.model.loader import load_model, load_tokenizer
from cliffstore.run.demo import corpus_path
from cliffstore.run.shipped_model import shipped_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--model")
    options = parser.parse_args()
    source = find_model(options.model or str(converted(shipped_model(), print)), None, print)
    tokenizer = load_tokenizer(source)
    model = load_model(source, "float32", "cpu", head=True)
    with new_folder() as folder:
        corpus = read_corpus([str(corpus_path())], folder, limit=options.batch)
        found, _ = Renderer(tokenizer, to_answer=True).render(list(corpus.rows()))
        corpus.close()
    prompts = [Prompt(one.row.id, np.asarray(one.token_ids), options.new_tokens) for one in found]
    generator = TextGenerator(model, tokenizer, frozenset())
    rates: dict[str, list[float]] = {"one by one": [], f"batches of {options.batch}": []}
    texts: dict[str, list[list[int]]] = {}
    for _ in range(options.rounds):
        for name, groups in zip(rates, ([[one] for one in prompts], [prompts]), strict=True):
            begun = time.perf_counter()
            made = [one for group in groups for one in generator.generate(group)]
            rates[name].append(sum(one.n_tokens for one in made) / (time.perf_counter() - begun))
            texts[name] = [one.token_ids.tolist() for one in made]
    alone, together = rates
    lengths = [len(one.token_ids) for one in prompts]
    print(f"{len(prompts)} prompts of {min(lengths)}-{max(lengths)} tokens, {options.new_tokens} new tokens each, "
          f"{torch.get_num_threads()} threads, {options.rounds} rounds in turns")  # fmt: skip
    for name, rate in rates.items():
        print(f"{name:<16} {statistics.median(rate):7.1f} tokens/s  ({min(rate):.1f}-{max(rate):.1f})")
    ratios = [big / small for small, big in zip(rates[alone], rates[together], strict=True)]
    print(f"ratio            {statistics.median(ratios):7.1f}           ({min(ratios):.1f}-{max(ratios):.1f})")
    print(f"equal texts      {sum(one == other for one, other in zip(texts[alone], texts[together], strict=True))} "
          f"of {len(prompts)}")  # fmt: skip


if __name__ == "__main__":
    main()
