"""Stored vectors against a plain forward pass of one sequence alone, and the store's tokens against the tokenizer's.

usage: python benchmarks/faithfulness.py STORE MODEL [SAMPLES]

Prints, over a random sample of (example, position, layer): the largest relative error |stored - plain| / |plain| in
float32 norms, and the smallest cosine; then whether the token count equals the sum of what the tokenizer's own
`apply_chat_template(tokenize=True)` gives (examples without thinking and response).
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cliffstore import Store


def main(store_url: str, model_path: str, samples: int) -> None:
    with Store(store_url) as store:
        capture = store.reader.captures()[0]
        layers = [array.layer for array in capture.arrays if array.site == "resid_post"]
        tokens = store.sql(
            f"SELECT example, position, row FROM tokens ORDER BY hash(example * 100003 + position) LIMIT {samples}"
        ).fetchall()
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, capture.dtype)).eval()
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        errors, cosines = [], []
        random = np.random.default_rng(0)
        for example, position, row in tokens:
            layer = int(random.choice(layers[:-1]))  # the last hidden state that transformers returns is normed
            ids = store.sql(f"SELECT token_id FROM tokens WHERE example = {example} ORDER BY position").fetchall()
            with torch.inference_mode():
                output = model(torch.tensor([[one for (one,) in ids]]), output_hidden_states=True)
            plain_D = output.hidden_states[layer + 1][0, position].float().numpy()
            stored_D = store.vectors("resid_post", layer, np.array([row]))[0]
            errors.append(float(np.linalg.norm(stored_D - plain_D) / np.linalg.norm(plain_D)))
            cosines.append(float(stored_D @ plain_D / np.linalg.norm(stored_D) / np.linalg.norm(plain_D)))
        prompts = store.sql(
            "SELECT prompt, system FROM examples WHERE thinking IS NULL AND response IS NULL"
        ).fetchall()
        planned = store.sql(
            "SELECT coalesce(sum(n_tokens), 0) FROM examples WHERE thinking IS NULL AND response IS NULL"
        ).fetchall()[0][0]
        rows = sum(plan.counts.rows for plan in store.reader.plans())
        counted = sum(plan.counts.tokens for plan in store.reader.plans())
    expected = 0
    for prompt, system in prompts:
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": prompt})
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
        expected += len(encoded["input_ids"])
    print(f"{store_url}: {capture.dtype}, {len(tokens)} vectors over {len(layers)} layers")
    print(
        f"  relative error: median {np.median(errors):.2e}, largest {max(errors):.2e}; "
        f"smallest cosine {min(cosines):.6f}"
    )
    print(
        f"  tokens: {planned} planned, {expected} by the tokenizer over {len(prompts)} examples; "
        f"{counted} in {rows} rows"
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 50)
