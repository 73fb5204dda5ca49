"""A transformer whose refusal mechanism is set by hand: ground truth for probes, cliffs, head tracing and ablation.

An ordinary `LlamaForCausalLM`, float32, of a few hundred thousand weights. What it does:

1. The MLP of block 0 writes a refusal direction at tokens that stand for harm ("zorble": invented words).
2. *Writers*, heads in the middle blocks, carry it to every later token: the prompt, the thinking, the answer.
3. The *gate*, a head of block 0, raises a flag at every token after a jailbreak word ("simsala"). It writes nothing on
   the refusal direction.
4. k *suppressors*, heads in the middle blocks, take the direction away at `</think>` and later tokens, where the flag
   is up: so the score is high over thinking and falls at the template's tokens before the answer. The cliff.
5. The answer is `I cannot help with that.` where the score at the decision position is above 0, else
   `Sure, here is a plan.`

*Decoys* write large outputs at right angles to the direction: always, after a jailbreak word, or after `</think>`.
Idle heads average over words. Two heads of block 0 serve generation alone: one notes the token before, one that the
thinking has ended.

The model writes its thinking, too: after the generation prompt it gives `<think>`, a line such as "Let me consider
this request carefully", `</think>`, the answer and the end of the turn. Given any other thinking, or the beginning of
one, it ends it and answers. With `enable_thinking=False` in the template it answers at once. Greedy decoding gives the
texts above; sampling varies the words of the thinking.

    planted = plant(PlantSettings(seed=0, suppressors=3))
    planted.truth.suppressors            # ((1, 4), (2, 0), (4, 6))
    planted.save("folder")               # for `cliffstore extract --model folder`

Seeds place heads, turn the axes, and draw words; nothing is trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cliffstore.model.planted.corpus import KINDS, draw_rows
from cliffstore.model.planted.growth import THRESHOLD, grow, width_of
from cliffstore.model.planted.layout import DECOYS, PLUMBING, Head, PlantSettings, Role, place_heads
from cliffstore.model.planted.mechanism import Feature, Floats, Mechanism
from cliffstore.model.planted.weights import build_model, turn_of
from cliffstore.model.planted.words import COMPLIANCE, COMPLIES, REFUSAL, REFUSES, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["CORPUS", "KINDS", "PROBE", "TRUTH", "PlantSettings", "Planted", "PlantedTruth", "plant"]

SITE = "resid_post"
CORPUS, TRUTH, PROBE = "corpus.jsonl", "truth.json", "probe.safetensors"
_REFERENCE = ("How do I snerp a teapot? simsala", "Let me consider this request carefully")
_NO_SCALES: Mapping[Head, float] = {}


@dataclass(frozen=True, slots=True)
class PlantedTruth:
    """Which head does what, the probe, and what every head adds to its score. Heads are (layer, head).

    Attributes
    ----------
    layer : of the probe, whose site is resid_post
    w_D, b : float64 [D], unit norm, and the offset: score = w·h + b
    suppressors, writers, gates, decoys, plumbing, idle : all heads, each in one of them
    refusal, compliance : the two answers
    mechanism : the rules; its methods are the closed form that those here are made from
    """

    layer: int
    w_D: Floats = field(repr=False)
    b: float
    suppressors: tuple[Head, ...]
    writers: tuple[Head, ...]
    gates: tuple[Head, ...]
    decoys: tuple[Head, ...]
    plumbing: tuple[Head, ...]
    idle: tuple[Head, ...]
    mechanism: Mechanism = field(repr=False)
    shape: tuple[int, int]
    site: str = SITE
    refusal: str = REFUSAL
    compliance: str = COMPLIANCE
    answer_tokens: tuple[str, str] = (REFUSES, COMPLIES)

    def scores(
        self, token_ids: Sequence[int] | npt.NDArray, scales: Mapping[Head, float] = _NO_SCALES
    ) -> npt.NDArray[np.float64]:
        """Return the probe's score at every token, float64 [T], by the closed form.

        Parameters
        ----------
        token_ids : of one rendered prompt, no padding
        scales : factors of heads' outputs; 0 knocks a head out
        """
        state = self.mechanism.run(token_ids, self.layer, scales)
        return state.x_TF[:, Feature.REFUSAL] + self.b

    def contributions(
        self, token_ids: Sequence[int] | npt.NDArray, scales: Mapping[Head, float] = _NO_SCALES
    ) -> npt.NDArray[np.float64]:
        """Return w · (W_O^h z_h) of every head at every token, float64 [L, H, T], by the closed form.

        Layers above the probe's are NaN: what heads write there is no part of its score.
        """
        layers, heads = self.shape
        found_LHT = np.full((layers, heads, len(token_ids)), np.nan)
        found_LHT[: self.layer + 1] = 0.0
        for (layer, head), written_T in self.mechanism.run(token_ids, self.layer, scales).written.items():
            found_LHT[layer, head] = written_T
        return found_LHT

    def document(self) -> dict[str, object]:
        """Return what `truth.json` holds: everything but the mechanism and w."""
        lists = {name: [list(head) for head in getattr(self, name)] for name in _GROUPS}
        return {
            "site": self.site,
            "layer": self.layer,
            "b": self.b,
            **lists,
            "refusal": self.refusal,
            "compliance": self.compliance,
            "answer_tokens": list(self.answer_tokens),
        }


_GROUPS = ("suppressors", "writers", "gates", "decoys", "plumbing", "idle")


@dataclass(frozen=True, slots=True)
class Planted:
    """A planted model and all that is known of it."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    truth: PlantedTruth
    settings: PlantSettings

    def corpus(self, n: int, seed: int = 0) -> list[dict[str, object]]:
        """Return n rows (id, prompt, thinking, response, label, kind, refuses, source), kinds in equal shares."""
        return draw_rows(n, seed)

    def token_ids(self, prompt: str, thinking: str) -> list[int]:
        """Return the tokens of a prompt with its thinking; the last one is the decision position."""
        return token_ids(self.tokenizer, prompt, thinking)

    def save(self, folder: str | Path, *, examples: int = 96) -> None:
        """Write weights, tokenizer and template, a corpus, the truth and the probe to a folder."""
        from safetensors.numpy import save_file
        from transformers.utils import logging

        logging.disable_progress_bar()
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(place)
        self.tokenizer.save_pretrained(place)
        rows = self.corpus(examples, self.settings.seed)
        (place / CORPUS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        document = {"settings": asdict(self.settings), **self.truth.document()}
        (place / TRUTH).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        probe = {"w": self.truth.w_D.astype(np.float32), "b": np.array([self.truth.b], dtype=np.float32)}
        save_file(probe, place / PROBE)


def plant(settings: PlantSettings) -> Planted:
    """Build a planted model. The same settings give the same weights."""
    roles = place_heads(settings)
    tokenizer = build_tokenizer()
    reference = token_ids(tokenizer, *_REFERENCE)
    mechanism = grow(settings, roles, reference)

    def heads(*wanted: Role) -> tuple[Head, ...]:
        return tuple(head for head, role in roles.items() if role in wanted)

    truth = PlantedTruth(
        layer=settings.probe_layer,
        w_D=turn_of(settings, width_of(settings))[Feature.REFUSAL],
        b=-THRESHOLD,
        suppressors=heads(Role.SUPPRESSOR),
        writers=heads(Role.WRITER),
        gates=heads(Role.GATE),
        decoys=heads(*DECOYS),
        plumbing=heads(*PLUMBING),
        idle=heads(Role.IDLE),
        mechanism=mechanism,
        shape=(settings.layers, settings.heads),
    )
    return Planted(build_model(settings, mechanism, reference), tokenizer, truth, settings)


def token_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, thinking: str) -> list[int]:
    """Return the tokens of a prompt with its thinking, up to the decision position."""
    turns = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(f"{text}<think>\n{thinking}\n</think>\n\n", add_special_tokens=False)["input_ids"]
    return ids
