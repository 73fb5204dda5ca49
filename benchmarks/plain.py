"""What a user would run instead of cliffstore: padded batches of 16 through the whole model.

usage: python benchmarks/plain.py MODEL TEXTS.jsonl forward|naive DTYPE [N]

`forward` captures nothing and stores nothing; `naive` takes all hidden states and writes them with torch.save. TEXTS
has a rendered text a line, as `prompt`. Prints JSON: logical tokens, and the least wall seconds of two goes; loading
the model does not count.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

_BATCH = 16


@torch.inference_mode()
def run(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], folder: Path | None) -> None:
    """Run all texts; write hidden states into `folder` where there is one."""
    for first in range(0, len(texts), _BATCH):
        batch = tokenizer(
            texts[first : first + _BATCH], return_tensors="pt", padding=True, padding_side="right",
            add_special_tokens=False,
        )  # fmt: skip
        output = model(**batch, output_hidden_states=folder is not None)
        if folder is not None:
            hidden_BTLD = torch.stack(output.hidden_states[1:], dim=2)
            kept_NLD = hidden_BTLD[batch["attention_mask"].bool()]
            torch.save({"acts": kept_NLD, "ids": batch["input_ids"]}, folder / f"{first}.pt")


def main(model_path: str, texts_path: str, which: str, dtype: str, limit: int | None) -> None:
    """Time two goes over the texts."""
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    lines = Path(texts_path).read_text(encoding="utf-8").splitlines()[:limit]
    texts = [json.loads(line)["prompt"] for line in lines]
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype)).eval()
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            begun = time.perf_counter()
            run(model, tokenizer, texts, Path(folder) if which == "naive" else None)
            seconds.append(time.perf_counter() - begun)
    print(json.dumps({"tokens": tokens, "seconds": min(seconds)}))


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]) if len(sys.argv) > 5 else None)  # type: ignore[arg-type]
