"""Direct attribution: what each head adds to a probe's score at a token, from its z alone. Pure arithmetic.

A head writes z·W_O into the residual stream; the probe reads the stream along w. So its share of the score is
z·(W_O w), and W_O w [heads, width of a head] is made once: shares of all heads of a layer are one einsum over z.
Embedding, MLPs and the biases of attention have the rest; with the probe's b they add up to the score exactly.

Two norms may lie between, and are frozen at the token's own value, which makes them linear: one behind attention
(Gemma 2 and 3, OLMo 2), and the model's final norm, where that is what the probe reads. Such shares still add up, but
say nothing of how a head changes the norm.

What of a head later blocks make is not in its share: knock-outs show that.

Cost: N·H·W multiplications a layer; with a norm behind attention N·H·W·D more, for its scale.

Legend: N tokens, H heads, W width of a head, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ProbeError
from cliffstore.records import ATTN_OUT, FINAL_NORM, MLP_OUT, RESID_PRE, HeadOutput, NormShape, Z

Floats = npt.NDArray[np.float32]


def layers_read(site: str, layer: int) -> range:
    """Return the layers whose heads add to what a probe reads, by themselves.

    Raises
    ------
    ProbeError
        What the probe reads is not a sum that heads are a part of.
    """
    if site in (MLP_OUT, Z):
        raise ProbeError(
            f"a probe on {site} reads no sum that heads are a part of, so they have no direct share: use "
            "`cliffstore heads ablate`, which measures their effect"
            if site == MLP_OUT
            else "a probe on z reads the heads themselves: its weights are their shares"
        )
    if site == ATTN_OUT:
        return range(layer, layer + 1)
    if site == RESID_PRE and layer == 0:
        raise ProbeError("a probe on resid_pre of layer 0 reads embeddings, before any head")
    return range(layer + (site != RESID_PRE))


def scale_of(norm: NormShape, x_ND: Floats) -> npt.NDArray[np.float64]:
    """Return by what a norm multiplies each vector, beside its gain, [N]."""
    centred_ND = x_ND - x_ND.mean(axis=1, keepdims=True, dtype=np.float64) if norm.centred else x_ND
    return np.asarray(1 / np.sqrt(np.mean(np.square(centred_ND, dtype=np.float64), axis=1) + norm.eps))


def through(norm: NormShape, w_D: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the direction that is read before a norm where w is read behind it, up to the token's scale."""
    found_D = w_D * norm.gain_D
    return found_D - found_D.mean() if norm.centred else found_D


@dataclass(frozen=True, slots=True)
class LayerReading:
    """What a probe reads of the heads of one layer.

    Attributes
    ----------
    vector_HW : W_O w, float32
    bias : what the projection's bias adds, before a norm's scale; `shift` what a norm's shift adds
    output : the projection itself where a norm is behind it, whose scale depends on what it makes
    """

    vector_HW: Floats
    bias: float
    shift: float
    output: HeadOutput | None

    def shares(self, z_NHW: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return each head's share [N, H], and that of the bias behind attention [N], before a final norm's scale."""
        share_NH = np.einsum("nhw,hw->nh", z_NHW, self.vector_HW, dtype=np.float64)
        bias_N = np.full(len(z_NHW), self.bias)
        if self.output is not None and self.output.norm is not None:
            weight_XD = self.output.weight_HWD.reshape(-1, self.output.weight_HWD.shape[-1])
            written_ND = z_NHW.reshape(len(z_NHW), -1) @ weight_XD + self.output.bias_D
            scale_N = scale_of(self.output.norm, written_ND)
            share_NH, bias_N = share_NH * scale_N[:, None], bias_N * scale_N
        return share_NH, bias_N + self.shift


@dataclass(frozen=True, slots=True)
class ProbeReading:
    """What a probe reads of every layer's heads.

    Attributes
    ----------
    layers : by number, ascending
    final_norm : that it reads behind; None where it reads the stream itself
    """

    layers: Mapping[int, LayerReading]
    final_norm: NormShape | None

    @property
    def frozen(self) -> tuple[str, ...]:
        """Which norms are frozen, for the user."""
        behind = any(layer.output is not None for layer in self.layers.values())
        names = ["the norm behind attention"] * behind + ["the final norm"] * (self.final_norm is not None)
        return tuple(names)

    def scale(self, last_ND: Floats) -> npt.NDArray[np.float64]:
        """Return the final norm's scale [N] from what the last block returns; it multiplies every share."""
        assert self.final_norm is not None
        return scale_of(self.final_norm, last_ND)


def read_heads(
    outputs: Mapping[int, HeadOutput], w_D: Floats, site: str, final_norm: NormShape | None = None
) -> ProbeReading:
    """Return what a probe reads of heads.

    Parameters
    ----------
    outputs : of the layers that `layers_read` names
    final_norm : needed where the probe reads behind it
    """
    direction_D = w_D.astype(np.float64)
    norm = final_norm if site == FINAL_NORM else None
    if norm is not None:
        direction_D = through(norm, direction_D)
    return ProbeReading({layer: _reading(one, direction_D) for layer, one in sorted(outputs.items())}, norm)


def _reading(output: HeadOutput, direction_D: npt.NDArray[np.float64]) -> LayerReading:
    shift, read_D = 0.0, direction_D
    if output.norm is not None:
        shift = float(output.norm.shift_D @ direction_D)
        read_D = through(output.norm, direction_D)
    vector_HW = np.einsum("hwd,d->hw", output.weight_HWD, read_D).astype(np.float32)
    return LayerReading(vector_HW, float(output.bias_D @ read_D), shift, output if output.norm is not None else None)
