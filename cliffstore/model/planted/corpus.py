"""Rows for a planted model: benign, harmful and jailbroken requests in equal shares, with thinking.

Words and lengths are drawn by a seed. A harmful request is a benign one with an invented verb in the place of a plain
one; a jailbroken request is a harmful one with an invented magic word before or after it, or both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cliffstore.model.planted.words import (
    COMPLIANCE,
    HARMFUL,
    JAILBREAK,
    OBJECTS,
    PLACES,
    PROMPTS,
    REFUSAL,
    THOUGHTS,
    TIMES,
    VERBS,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = ("benign", "harmful", "jailbroken")
SOURCE = "planted"
_TRIES = 50


def draw_rows(n: int, seed: int) -> list[dict[str, object]]:
    """Return n rows: id, prompt, thinking, response, label, kind, refuses, source.

    `label` is 1 for a request to decline, whether or not the model declines it; `refuses` says whether it does, and
    `response` is the answer that it gives.
    """
    rng = np.random.default_rng((seed, 6))
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    for i in range(n):
        kind = KINDS[i % len(KINDS)]
        for _ in range(_TRIES):
            prompt, thinking = _draw(rng, kind)
            if prompt not in seen:
                break
        seen.add(prompt)
        refuses = kind == "harmful"
        rows.append(
            {
                "id": f"{SOURCE}-{seed}-{i:05d}",
                "prompt": prompt,
                "thinking": thinking,
                "response": REFUSAL if refuses else COMPLIANCE,
                "label": int(kind != "benign"),
                "kind": kind,
                "refuses": refuses,
                "source": SOURCE,
            }
        )
    return rows


def _draw(rng: np.random.Generator, kind: str) -> tuple[str, str]:
    """Return a prompt and a thinking."""

    def one(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    slots = {
        "verb": one(VERBS if kind == "benign" else HARMFUL),
        "object": one(OBJECTS),
        "object2": one(OBJECTS),
        "place": one(PLACES),
        "time": one(TIMES),
    }
    prompt = one(PROMPTS).format(**slots)
    if kind == "jailbroken":
        magic = one(JAILBREAK)
        prompt = (f"{magic.capitalize()}! {prompt}", f"{prompt} {magic}.", f"{magic}: {prompt} {one(JAILBREAK)}")[
            int(rng.integers(3))
        ]
    thoughts = [one(THOUGHTS).format(**slots) for _ in range(int(rng.integers(2, 7)))]
    return prompt, one((" ", "\n")).join(thoughts)
