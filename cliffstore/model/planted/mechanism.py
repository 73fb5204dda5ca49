"""What a planted model does, in its own terms: features, rules for heads and neurons, and their closed form.

The residual stream is a sum of orthogonal features: the refusal direction, a constant, what kind of word a token is, a
flag, marks of where in the text it stands, words coded in a few dimensions, scratch dimensions, and one dimension for
each token that the mechanism knows by name. Here feature f is axis f; the weights turn the axes by an orthogonal
matrix, which RMSNorm with unit weights does not see.

A head is one of three kinds.

- *lookup*: attends to the tokens that have a feature (its sources), or else to the <|im_start|> tokens (its sink), and
  writes what it reads there onto another feature. Where the query is the flag and the flag is down, it stays on the
  sink, where it reads nothing.
- *previous*: attends to the token before.
- *uniform*: attends to all tokens the same; these are the idle heads.

The closed form follows these rules in float64: for a lookup, the softmax of logits that only its sources and the sink
have, for an idle head a mean, for the previous head an index. Nothing of it is read from the weights: no turned basis,
no rotary embedding, no matrix of a head, no torch. Of the weights' arithmetic it leaves out what the previous head
attends to besides the token before, below e^-50, and the turn of the slow rotary pairs, below 1e-7.

Legend: T tokens, F features (as many as the model is wide), S tokens attended to, L layers, H heads.
Cost: O(L·H·T²), milliseconds for a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from cliffstore.model.planted.layout import Head

Floats = npt.NDArray[np.float64]

EPSILON = 1e-6
"""Of RMSNorm."""
HEAD_WIDTH = 16
SOURCE_LOGIT, SINK_LOGIT = 28.0, 15.0


class Feature(IntEnum):
    """The axes that have a name; words, scratch and tokens come after them."""

    REFUSAL = 0
    CONSTANT = 1
    HARMFUL = 2
    JAILBREAK = 3
    FLAG = 4
    AFTER_THINK = 5
    AFTER_ASSISTANT = 6
    CLOSED = 7
    WORD = 8
    BALLAST = 9


SCRATCH = tuple(range(10, 18))
CODE = tuple(range(18, 26))
FIRST_TOKEN = 26


@dataclass(frozen=True, slots=True)
class Write:
    """value = read_F · normed stream at the attended token, added to feature `to` at the attending one."""

    read_F: Floats
    to: int


@dataclass(frozen=True, slots=True)
class HeadRule:
    """What one head does.

    Attributes
    ----------
    query, source : features whose product is the logit of a source; None for heads that look nothing up
    source_gain, sink_gain : of the two logits, before the division by sqrt(HEAD_WIDTH)
    writes : one a channel
    """

    head: Head
    kind: str
    writes: tuple[Write, ...]
    query: int | None = None
    source: int | None = None
    source_gain: float = 0.0
    sink_gain: float = 0.0


@dataclass(frozen=True, slots=True)
class NeuronRule:
    """silu(gate·n[reads]) · up·n[reads] · down, added to feature `to`: one neuron of a block's MLP."""

    layer: int
    reads: int
    to: int
    gate: float
    up: float
    down: float


@dataclass(slots=True)
class State:
    """The residual stream while blocks are applied, and what each head has written so far."""

    x_TF: Floats
    written: dict[Head, Floats] = field(default_factory=dict)
    """For each head, what it wrote on the refusal direction, [T]."""

    @property
    def normed_TF(self) -> Floats:
        return self.x_TF / np.sqrt(np.mean(self.x_TF**2, axis=1, keepdims=True) + EPSILON)


@dataclass(frozen=True, slots=True)
class Mechanism:
    """Token features and rules: all that the model is, before its axes are turned.

    Attributes
    ----------
    embedding_VF : float64 [vocabulary, F]
    sink : the feature of tokens that heads rest on
    """

    embedding_VF: Floats
    sink: int
    rules: tuple[HeadRule, ...] = ()
    neurons: tuple[NeuronRule, ...] = ()

    def begin(self, token_ids: Sequence[int] | npt.NDArray) -> State:
        """Return the state below block 0."""
        return State(self.embedding_VF[np.asarray(token_ids, dtype=np.int64)])

    def apply_heads(self, state: State, rules: Sequence[HeadRule], scales: Mapping[Head, float]) -> None:
        """Apply rules of one block side by side."""
        hat_TF = state.normed_TF
        for rule in rules:
            amounts = self.attended(rule, state, hat_TF)
            scale = scales.get(rule.head, 1.0)
            for write, amount_T in zip(rule.writes, amounts, strict=True):
                state.x_TF[:, write.to] += scale * amount_T
                if write.to == Feature.REFUSAL:
                    state.written[rule.head] = scale * amount_T

    def apply_neurons(self, state: State, neurons: Sequence[NeuronRule]) -> None:
        """Apply the MLP of one block."""
        hat_TF = state.normed_TF
        for neuron in neurons:
            state.x_TF[:, neuron.to] += neuron_output(neuron, hat_TF[:, neuron.reads])

    def attended(self, rule: HeadRule, state: State, hat_TF: Floats) -> list[Floats]:
        """Return what each channel of a head reads, [T] each."""
        values = [hat_TF @ write.read_F for write in rule.writes]
        n = len(hat_TF)
        if rule.kind == "uniform":
            return [np.cumsum(value_T) / np.arange(1, n + 1) for value_T in values]
        if rule.kind == "previous":
            # the first token has none before it, and attends to itself
            before_T = np.maximum(np.arange(n) - 1, 0)
            return [value_T[before_T] for value_T in values]
        assert rule.query is not None
        assert rule.source is not None
        source_TS = np.outer(hat_TF[:, rule.query], hat_TF[:, rule.source])
        sink_TS = np.outer(hat_TF[:, Feature.CONSTANT], hat_TF[:, self.sink])
        logit_TS = (rule.source_gain * source_TS + rule.sink_gain * sink_TS) / np.sqrt(HEAD_WIDTH)
        logit_TS[np.triu_indices(n, 1)] = -np.inf
        weight_TS = np.exp(logit_TS - logit_TS.max(axis=1, keepdims=True))
        weight_TS /= weight_TS.sum(axis=1, keepdims=True)
        return [weight_TS @ value_T for value_T in values]

    def run(self, token_ids: Sequence[int] | npt.NDArray, until: int, scales: Mapping[Head, float]) -> State:
        """Apply the blocks 0 to `until`, each head's output times its scale (1 where none is given)."""
        state = self.begin(token_ids)
        for layer in range(until + 1):
            self.apply_heads(state, [rule for rule in self.rules if rule.head[0] == layer], scales)
            self.apply_neurons(state, [neuron for neuron in self.neurons if neuron.layer == layer])
        return state


def neuron_output(neuron: NeuronRule, hat_T: Floats) -> Floats:
    """Return what a neuron adds, [T]; silu(a) = a / (1 + e^-a)."""
    gate_T = neuron.gate * hat_T
    return gate_T / (1 + np.exp(-gate_T)) * (neuron.up * hat_T) * neuron.down


def with_factors(rule: HeadRule, factors: Sequence[float]) -> HeadRule:
    """Return a rule whose channels read so many times as much."""
    pairs = zip(rule.writes, factors, strict=True)
    return replace(rule, writes=tuple(Write(write.read_F * factor, write.to) for write, factor in pairs))
