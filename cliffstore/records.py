"""The values that pass between stages: plain, frozen, picklable.

Shapes in comments use T for the tokens of one example. Documents that are written to the store (manifest, plan,
capture, receipt, probe) live in `schema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt


class Segment(StrEnum):
    """The role of a token within an example (DESIGN: Words)."""

    SYSTEM = "system"
    USER = "user"
    HEADER = "header"
    THINK_OPEN = "think_open"
    THINK = "think"
    THINK_CLOSE = "think_close"
    RESPONSE = "response"
    END = "end"


SEGMENTS: tuple[Segment, ...] = tuple(Segment)
"""Segments in code order: `RenderedExample.segments` holds indices into this tuple."""


RESID_PRE = "resid_pre"
RESID_MID = "resid_mid"
RESID_POST = "resid_post"
ATTN_OUT = "attn_out"
MLP_OUT = "mlp_out"
Z = "z"
FINAL_NORM = "final_norm"
SITES = (RESID_PRE, RESID_MID, RESID_POST, ATTN_OUT, MLP_OUT, Z, FINAL_NORM)
"""Sites that can be captured, with TransformerLens's meaning of each word. `attn_out` and `mlp_out` are what a block
adds to the residual stream; `z` is what the attention's output projection receives, head by head; `final_norm` has
one array, under the last block's layer."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """One corpus row, its columns mapped to the names that cliffstore knows.

    `turns` holds the conversation up to and including the last user turn; `system` and `prompt` repeat its system
    message and last user message, so that they can be queried as columns. `extra` keeps every other column.
    """

    id: str
    prompt: str
    turns: tuple[Message, ...]
    system: str | None = None
    thinking: str | None = None
    response: str | None = None
    label: str | None = None
    source: str | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A corpus row that is not in the store, and why. `location` is `file:line` or `file:row`."""

    id: str | None
    source: str | None
    location: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """One corpus row as a token sequence.

    Attributes
    ----------
    token_ids : int32 [T]
    segments : uint8 [T], indices into `SEGMENTS`
    decision : position of the last token before the answer, 0-based
    """

    row: CorpusRow
    token_ids: npt.NDArray[np.int32]
    segments: npt.NDArray[np.uint8]
    decision: int
    location: str


@dataclass(frozen=True, slots=True)
class UnitReport:
    """What became of one unit that a worker was given. `bytes` are those of its vectors before compression."""

    unit: int
    n_tokens: int
    n_rows: int
    bytes: int
    seconds: float
    worker: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """One line of the table `units`: what a run must know of a unit before it reads its tokens.

    Attributes
    ----------
    row_start, n_rows : the rows of the arrays that it fills
    n_tokens : tokens of its examples, stored or not
    n_nodes : nodes of its prefix tree, which passes over trees compute
    n_padded : tokens that padded passes compute, without padding
    longest : most tokens to compute of one example
    part, row_group : where its examples and tokens lie among the plan's tables
    """

    unit: int
    plan: str
    row_start: int
    n_rows: int
    n_examples: int
    n_tokens: int
    n_nodes: int
    n_padded: int
    longest: int
    part: int
    row_group: int


@dataclass(frozen=True, slots=True)
class NormShape:
    """A norm as arithmetic: y = gain·x·s + shift, s = 1 / sqrt(mean(x²) + eps), x less its mean where `centred`.

    With s frozen at a token's own value it is linear, which is what shares through a norm mean.

    Attributes
    ----------
    gain_D, shift_D : float32
    """

    gain_D: npt.NDArray[np.float32]
    shift_D: npt.NDArray[np.float32]
    eps: float
    centred: bool


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """How the heads of a layer write: attn_out = sum over heads of z·W_O + bias, behind a norm in some architectures.

    Attributes
    ----------
    weight_HWD : W_O by head, float32: head, width of a head, width of the residual stream
    bias_D : float32
    norm : what attention's output goes through before it is added (Gemma 2 and 3, OLMo 2); None for nothing
    """

    weight_HWD: npt.NDArray[np.float32]
    bias_D: npt.NDArray[np.float32]
    norm: NormShape | None
