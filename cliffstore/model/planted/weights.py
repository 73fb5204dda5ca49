"""A planted mechanism as the weights of an ordinary Llama: one matrix for each rule, turned by an orthogonal matrix.

- The axes of the residual stream are turned by R (seeded), those of each head's channels by a matrix of its own, so
  that neither the refusal direction nor a head's output lies along an axis. RMSNorm has unit weights and cannot tell.
- Llama's rotary embedding turns pairs of channels by angles of 1, 0.1, 0.01, ... radians a token (base 1e8, 16
  channels). Lookups use the two slowest pairs, 1e-6 and 1e-7, which do not move over a prompt. The head that attends to
  the token before uses the three fastest: the sum of their cosines has its peak at a distance of one, and is lower by
  at least 0.19 at any other up to 600 tokens. Hence the context of 512.
- The answer is a row of the LM head: `I` gains, and `Sure` loses, with the score, so the sign of the score alone
  decides between them. Every other token follows from the one before.

Everything is computed in float64 and rounded to float32 once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cliffstore.model.planted.growth import MARK, NAME, THRESHOLD, WORD, feature_of
from cliffstore.model.planted.layout import PlantSettings
from cliffstore.model.planted.mechanism import EPSILON, HEAD_WIDTH, Feature, Floats, HeadRule, Mechanism
from cliffstore.model.planted.words import (
    BLANK_LINE,
    COMPLIES,
    CONTEXT,
    FOLLOWS,
    IM_END,
    NEWLINE,
    PAD,
    REFUSES,
    THINK,
    vocabulary,
)

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

LONGEST_OUTPUT = 64
_ROPE_BASE = 1e8
_POSITION_PAIRS = (0, 1, 2)
_SOURCE_PAIR, _SINK_PAIR = 7, 6
_POSITION_LOGIT = 10.0
"""Of each position pair, times the squared constant as block 0 sees it, 28: a gap of 57 to the second best token."""
_NEXT_LOGIT = 40.0
_ANSWER_LOGIT = 2.5
"""What a score of one adds to `I` and takes from `Sure`."""
_NEURONS = 16


def build_model(settings: PlantSettings, mechanism: Mechanism, reference: Sequence[int]) -> LlamaForCausalLM:
    """Return the model, float32, in evaluation mode.

    Parameters
    ----------
    reference : token ids on whose last token the logits have the size wanted
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokens = vocabulary()
    width = mechanism.embedding_VF.shape[1]
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=_NEURONS,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_BASE},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokens.index(IM_END),
        pad_token_id=tokens.index(PAD),
        dtype="float32",
    )
    turn_FD = turn_of(settings, width)
    with torch.device("cpu"):
        model = LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        _put(model.model.embed_tokens.weight, mechanism.embedding_VF @ turn_FD)
        for rule in mechanism.rules:
            _put_head(model, rule, mechanism.sink, turn_FD, settings)
        for at, neuron in enumerate(mechanism.neurons):
            mlp = model.model.layers[neuron.layer].mlp
            _put(mlp.gate_proj.weight[at % _NEURONS], neuron.gate * turn_FD[neuron.reads])
            _put(mlp.up_proj.weight[at % _NEURONS], neuron.up * turn_FD[neuron.reads])
            _put(mlp.down_proj.weight[:, at % _NEURONS], neuron.down * turn_FD[neuron.to])
        _put(model.lm_head.weight, _readout(mechanism, reference, settings) @ turn_FD)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, max_new_tokens=LONGEST_OUTPUT
    )
    return model.eval().requires_grad_(False)


def turn_of(settings: PlantSettings, width: int) -> Floats:
    """Return R, orthogonal, [F, D]: row f is the direction of feature f."""
    return _orthogonal(np.random.default_rng((settings.seed, 4)), width)


def _orthogonal(rng: np.random.Generator, n: int) -> Floats:
    q, r = np.linalg.qr(rng.normal(size=(n, n)))
    return q * np.sign(np.diagonal(r))


def _put(place: torch.Tensor, values: Floats) -> None:
    import torch

    place.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def _put_head(model: LlamaForCausalLM, rule: HeadRule, sink: int, turn_FD: Floats, settings: PlantSettings) -> None:
    layer, head = rule.head
    width = len(turn_FD)
    query_CF, key_CF = np.zeros((HEAD_WIDTH, width)), np.zeros((HEAD_WIDTH, width))
    if rule.kind == "lookup":
        assert rule.query is not None
        assert rule.source is not None
        for pair, gain, asks, has in (
            (_SOURCE_PAIR, rule.source_gain, rule.query, rule.source),
            (_SINK_PAIR, rule.sink_gain, Feature.CONSTANT, sink),
        ):
            query_CF[pair, asks] = key_CF[pair, has] = np.sqrt(gain)
    elif rule.kind == "previous":
        gain = np.sqrt(_POSITION_LOGIT * np.sqrt(HEAD_WIDTH))
        for pair in _POSITION_PAIRS:
            angle = _ROPE_BASE ** (-2 * pair / HEAD_WIDTH)
            # a query turned back by one token's angle agrees best with the key of the token before
            query_CF[pair, Feature.CONSTANT] = gain * np.cos(angle)
            query_CF[pair + HEAD_WIDTH // 2, Feature.CONSTANT] = -gain * np.sin(angle)
            key_CF[pair, Feature.CONSTANT] = gain
    mix_CC = _orthogonal(np.random.default_rng((settings.seed, 5, layer, head)), HEAD_WIDTH)[: len(rule.writes)]
    read_NF = np.array([write.read_F for write in rule.writes])
    to_NF = np.eye(width)[[write.to for write in rule.writes]]
    attention = model.model.layers[layer].self_attn
    channels = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
    _put(attention.q_proj.weight[channels], query_CF @ turn_FD)
    _put(attention.k_proj.weight[channels], key_CF @ turn_FD)
    _put(attention.v_proj.weight[channels], mix_CC.T @ read_NF @ turn_FD)
    _put(attention.o_proj.weight[:, channels], turn_FD.T @ to_NF.T @ mix_CC)


def _readout(mechanism: Mechanism, reference: Sequence[int], settings: PlantSettings) -> Floats:
    """Return the LM head on features, [V, F]."""
    ids = {token: index for index, token in enumerate(vocabulary())}
    head_VF = np.zeros_like(mechanism.embedding_VF)
    state = mechanism.run(reference, settings.layers - 1, {})
    rms = float(np.sqrt(np.mean(state.x_TF[-1] ** 2)))
    unit = _NEXT_LOGIT * rms
    for first, after, strength in FOLLOWS:
        head_VF[ids[after], feature_of(first)] += strength * unit / NAME
    head_VF[ids[NEWLINE], Feature.WORD] += 0.8 * unit / WORD
    head_VF[ids[IM_END], Feature.CLOSED] += 0.6 * unit / MARK
    head_VF[ids["Let"], Feature.AFTER_THINK] += 1.6 * unit / MARK
    head_VF[ids[THINK], Feature.AFTER_ASSISTANT] += 1.6 * unit / MARK
    # at the decision: both answers stand above all else, the score divides them
    blank = feature_of(BLANK_LINE)
    for token, sign in ((REFUSES, 1.0), (COMPLIES, -1.0)):
        head_VF[ids[token], blank] += unit / NAME - sign * _ANSWER_LOGIT * rms * THRESHOLD / NAME
        head_VF[ids[token], Feature.REFUSAL] += sign * _ANSWER_LOGIT * rms
    return head_VF
