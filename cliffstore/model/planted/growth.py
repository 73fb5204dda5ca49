"""Setting a planted model's gains: block by block on one reference prompt, so that each amount is what was asked.

RMSNorm divides by what heads before have written, so a gain that gives the amount wanted depends on the blocks below.
They are therefore set from the bottom up: apply what there is to a jailbroken prompt, see what the next head would
read, and divide. On other prompts amounts differ by some per cent, as they do in the closed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np

from cliffstore.model.planted.layout import Head, PlantSettings, Role
from cliffstore.model.planted.mechanism import (
    CODE,
    FIRST_TOKEN,
    HEAD_WIDTH,
    SCRATCH,
    SINK_LOGIT,
    SOURCE_LOGIT,
    Feature,
    Floats,
    HeadRule,
    Mechanism,
    NeuronRule,
    State,
    Write,
    with_factors,
)
from cliffstore.model.planted.words import (
    BLANK_LINE,
    END_THINK,
    HARMFUL,
    IM_START,
    JAILBREAK,
    NAMED,
    THINK,
    vocabulary,
)

CONSTANT, NAME, WORD, KIND = 6.0, 4.0, 2.0, 3.0
"""Amounts that embeddings have of the constant, of their own dimension, of being a word, of being a special word."""
NORM = 9.0
"""Of every embedding; ballast makes up for what is missing. The head that attends to the token before compares keys
that differ by 7 %, so block 0 must see all tokens at one scale."""
SEVERITY = (0.92, 1.08)
"""Harmful words differ: from the mildest to the worst, times KIND."""
FLAG, MARK, DECOY = 3.5, 3.0, 7.0
BESIDE = 0.5
"""What idle heads, and every other head and MLP besides its purpose, write on scratch: no part of a block is ever zero.
Otherwise, a look at a block could not tell which of its parts is which."""
REFUSAL_AT_WORD, REFUSAL = 3.0, 6.0
"""Of the refusal direction: what the MLP writes at a harmful word, and what writers carry to every later token."""
THRESHOLD = 3.0
"""The score is what a token has of the refusal direction less this."""
WRITER_SHARES = (0.55, 0.45)
_NARROWEST = 64


def feature_of(token: str) -> int:
    """Return the feature that only this token has."""
    return FIRST_TOKEN + NAMED.index(token)


def width_of(settings: PlantSettings) -> int:
    """Return the width of the residual stream: all features, and a multiple of the number of heads."""
    fewest = max(_NARROWEST, FIRST_TOKEN + len(NAMED))
    return -(-fewest // settings.heads) * settings.heads


def grow(settings: PlantSettings, roles: Mapping[Head, Role], reference: Sequence[int]) -> Mechanism:
    """Return the mechanism with all gains set.

    Parameters
    ----------
    reference : token ids of a jailbroken prompt with thinking, up to the decision position
    """
    width = width_of(settings)
    mechanism = Mechanism(_embedding(settings, width), feature_of(IM_START))
    rules: list[HeadRule] = []
    neurons: list[NeuronRule] = []
    shares = _suppression(roles)
    writers = iter(WRITER_SHARES)
    scratch = cycle(SCRATCH)
    rng = np.random.default_rng((settings.seed, 3))
    state = mechanism.begin(reference)
    for layer in range(settings.layers):
        block: list[HeadRule] = []
        for head, role in roles.items():
            if head[0] != layer:
                continue
            rule = _draft(head, role, width, next(scratch), next(scratch), rng)
            amount = {
                Role.GATE: FLAG,
                Role.CLOSER: MARK,
                Role.WRITER: REFUSAL * next(writers) if role is Role.WRITER else 0.0,
                Role.SUPPRESSOR: -shares.get(head, 0.0),
                Role.PREVIOUS: MARK,
                Role.IDLE: BESIDE,
            }.get(role, DECOY)
            block.append(_fit(mechanism, state, rule, amount))
        mechanism.apply_heads(state, block, {})
        mlp = [_neuron(state, layer, Feature.CONSTANT, next(scratch), BESIDE)]
        if layer == 0:
            mlp.append(_neuron(state, layer, Feature.HARMFUL, Feature.REFUSAL, REFUSAL_AT_WORD))
        mechanism.apply_neurons(state, mlp)
        rules += block
        neurons += mlp
    return replace(mechanism, rules=tuple(rules), neurons=tuple(neurons))


def _embedding(settings: PlantSettings, width: int) -> Floats:
    """Return features of every token, [V, F]."""
    tokens = vocabulary()
    rng = np.random.default_rng((settings.seed, 2))
    codes: dict[str, Floats] = {}
    x_VF = np.zeros((len(tokens), width))
    x_VF[:, Feature.CONSTANT] = CONSTANT
    for row_F, token in zip(x_VF, tokens, strict=True):
        word = token.strip().lower()
        if token in NAMED:
            row_F[feature_of(token)] = NAME
            continue
        if word not in codes:
            drawn = rng.normal(size=len(CODE))
            codes[word] = NAME * drawn / np.linalg.norm(drawn)
        row_F[list(CODE)] = codes[word]
        row_F[Feature.WORD] = WORD
        if word in HARMFUL:
            severity = np.linspace(*SEVERITY, len(HARMFUL))[HARMFUL.index(word)]
            row_F[Feature.HARMFUL] = KIND * severity
        if word in JAILBREAK:
            row_F[Feature.JAILBREAK] = KIND
    x_VF[:, Feature.BALLAST] = np.sqrt(NORM**2 - np.sum(x_VF**2, axis=1))
    return x_VF


def _suppression(roles: Mapping[Head, Role]) -> dict[Head, float]:
    """Share out the suppression: together as much as writers carry, each head with a share of its own."""
    heads = [head for head, role in roles.items() if role is Role.SUPPRESSOR]
    shares = np.linspace(1.0, 1.5, len(heads))
    return {head: float(share) for head, share in zip(heads, REFUSAL * shares / shares.sum(), strict=True)}


def _draft(head: Head, role: Role, width: int, scratch: int, beside: int, rng: np.random.Generator) -> HeadRule:
    """Return a head's rule, its gains still one."""

    def reads(feature: int) -> Floats:
        return np.eye(width)[feature]

    close, sink = feature_of(END_THINK), feature_of(IM_START)
    match role:
        case Role.PREVIOUS:
            marks = ((THINK, Feature.AFTER_THINK), ("assistant", Feature.AFTER_ASSISTANT))
            writes = tuple(Write(reads(feature_of(token)), mark) for token, mark in marks)
            return HeadRule(head, "previous", writes)
        case Role.IDLE:
            drawn = np.zeros(width)
            drawn[list(CODE)] = rng.normal(size=len(CODE))
            return HeadRule(head, "uniform", (Write(drawn / np.linalg.norm(drawn), scratch),))
    # what a head asks with, what it looks for, what it reads there, where it writes
    query, source, read, to = {
        Role.GATE: (Feature.CONSTANT, Feature.JAILBREAK, Feature.JAILBREAK, Feature.FLAG),
        Role.CLOSER: (Feature.CONSTANT, close, close, Feature.CLOSED),
        Role.WRITER: (Feature.CONSTANT, Feature.HARMFUL, Feature.REFUSAL, Feature.REFUSAL),
        Role.SUPPRESSOR: (Feature.FLAG, close, close, Feature.REFUSAL),
        Role.DECOY_CONSTANT: (Feature.CONSTANT, sink, sink, scratch),
        Role.DECOY_JAILBREAK: (Feature.CONSTANT, Feature.JAILBREAK, Feature.JAILBREAK, scratch),
        Role.DECOY_CLOSE: (Feature.CONSTANT, close, close, scratch),
    }[role]
    writes = (Write(reads(read), to), Write(reads(Feature.CONSTANT), beside))
    return HeadRule(head, "lookup", writes, query, source)


def _fit(mechanism: Mechanism, state: State, rule: HeadRule, amount: float) -> HeadRule:
    """Set a rule's gains so that logits and amount at the end of the reference are those wanted."""
    hat_TF = state.normed_TF
    last_F = hat_TF[-1]
    if rule.kind == "lookup":
        assert rule.query is not None
        assert rule.source is not None
        source = np.flatnonzero(state.x_TF[:, rule.source])[-1]
        sink = np.flatnonzero(state.x_TF[:, mechanism.sink])[-1]
        root = np.sqrt(HEAD_WIDTH)
        rule = replace(
            rule,
            source_gain=float(SOURCE_LOGIT * root / (last_F[rule.query] * hat_TF[source, rule.source])),
            sink_gain=float(SINK_LOGIT * root / (last_F[Feature.CONSTANT] * hat_TF[sink, mechanism.sink])),
        )
        purpose, beside = (float(amount_T[-1]) for amount_T in mechanism.attended(rule, state, hat_TF))
        factors = [amount / purpose, BESIDE / beside]
    elif rule.kind == "previous":
        # neither mark is before the end of the reference: the token there is named as strongly
        factors = [amount / float(last_F[feature_of(BLANK_LINE)])] * len(rule.writes)
    else:
        factors = [amount]
    return with_factors(rule, factors)


def _neuron(state: State, layer: int, reads: int, to: int, amount: float) -> NeuronRule:
    """Return a neuron that writes this amount at the last token of the reference that has the feature it reads."""
    place = np.flatnonzero(state.x_TF[:, reads])[-1]
    hat = float(state.normed_TF[place, reads])
    silu = 2.0 / (1 + np.exp(-2.0))
    return NeuronRule(layer, int(reads), int(to), 2.0 / hat, 1.0 / hat, float(amount / silu))
