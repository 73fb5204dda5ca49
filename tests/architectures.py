"""Tiny random decoder models of many architectures, and a reference for their sites that is written by hand.

`plain_sites` hooks modules by their explicit names, one table an architecture, and adds what the residual stream lacks
a module for. It shares nothing with `cliffstore.model`, so it tells where the product is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import (
    AutoModel,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY, WIDTH, HEADS, CONTEXT, WINDOW = 64, 32, 4, 128, 6

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "attn_implementation": "eager",
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2}


@dataclass(frozen=True)
class Heads:
    """What a model's configuration says about its attention heads."""

    n_heads: int
    d_head: int


def heads_of(model: PreTrainedModel) -> Heads:
    """Return the heads of a model: `head_dim` where its configuration has it, else an equal share of the width."""
    config = model.config
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Heads(config.num_attention_heads, d_head)


def build(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a random model in evaluation mode in which no norm is one, no bias zero and no update small."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name or "ln_" in name:  # norms of ones would hide a norm applied twice
            weight.add_(torch.rand_like(weight))
        elif name.endswith("bias"):
            weight.add_(torch.randn_like(weight) * 0.2)
        elif weight.dim() > 1:  # matrices as they are initialised would leave attention almost without effect
            weight.mul_(5)
    return model


def llama() -> PreTrainedModel:
    return build(LlamaConfig(**_GROUPED))


def qwen2() -> PreTrainedModel:
    return build(Qwen2Config(**_COMMON, num_key_value_heads=1))


def qwen3() -> PreTrainedModel:
    return build(Qwen3Config(**_GROUPED, head_dim=12))


def gemma2() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = _GROUPED | {"num_hidden_layers": 4, "head_dim": 12, "sliding_window": WINDOW, "layer_types": kinds}
    return build(Gemma2Config(**config, query_pre_attn_scalar=12, attn_logit_softcapping=2.0))


def gemma3() -> PreTrainedModel:
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = _GROUPED | {"num_hidden_layers": 4, "head_dim": 12, "sliding_window": WINDOW, "layer_types": kinds}
    return build(Gemma3TextConfig(**config, query_pre_attn_scalar=12))


def mistral_window() -> PreTrainedModel:
    return build(MistralConfig(**_GROUPED, sliding_window=WINDOW))


def phi3() -> PreTrainedModel:
    return build(Phi3Config(**_GROUPED))


def gpt2() -> PreTrainedModel:
    return build(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=3,
            n_head=HEADS,
            n_positions=CONTEXT,
            bos_token_id=1,
            eos_token_id=2,
            attn_implementation="eager",
        )
    )


def gpt_neox() -> PreTrainedModel:
    return build(GPTNeoXConfig(**_COMMON))


def gpt_neox_sequential() -> PreTrainedModel:
    return build(GPTNeoXConfig(**_COMMON, use_parallel_residual=False))


def olmo2() -> PreTrainedModel:
    return build(Olmo2Config(**_GROUPED))


def mixtral() -> PreTrainedModel:
    return build(MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2))


def qwen3_moe() -> PreTrainedModel:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [1]}
    return build(Qwen3MoeConfig(**_GROUPED, **experts, head_dim=12))


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    one.__name__: one
    for one in (
        llama,
        qwen2,
        qwen3,
        gemma2,
        gemma3,
        mistral_window,
        phi3,
        gpt2,
        gpt_neox,
        gpt_neox_sequential,
        olmo2,
        mixtral,
        qwen3_moe,
    )
}
PARALLEL = {"gpt_neox"}
"""Architectures without `resid_mid`."""


@dataclass(frozen=True)
class Names:
    """Names of the modules of one kind of model: what adds attention and MLP, the output projection, the ends."""

    attention: str
    mlp: str
    projection: str
    blocks: str = "layers"
    norm: str = "norm"
    parallel: bool = False


_LLAMA = Names(attention="self_attn", mlp="mlp", projection="self_attn.o_proj")
_POST_NORM = replace(_LLAMA, attention="post_attention_layernorm", mlp="post_feedforward_layernorm")
_NEOX = Names("attention", "mlp", "attention.dense", norm="final_layer_norm")
_NAMES = {
    "gpt2": Names("attn", "mlp", "attn.c_proj", blocks="h", norm="ln_f"),
    "gpt_neox": _NEOX,
    "gemma2": _POST_NORM,
    "gemma3_text": _POST_NORM,
    "olmo2": _POST_NORM,
}


def names_of(model: PreTrainedModel) -> Names:
    """Return the names of a model's modules."""
    names = _NAMES.get(model.config.model_type, _LLAMA)
    return replace(names, parallel=bool(getattr(model.config, "use_parallel_residual", False)))


def plain_sites(model: PreTrainedModel, tokens: list[int]) -> dict[str, torch.Tensor]:
    """Run one sequence by itself with eager attention. Return '<site>/<layer>' -> [T, ...]."""
    assert model.config._attn_implementation == "eager"
    names, heads = names_of(model), heads_of(model)
    found: dict[str, torch.Tensor] = {}
    handles = []

    def on_output(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output)[0].clone()

        handles.append(module.register_forward_hook(hook))

    def on_input(name: str, module: nn.Module) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, inputs: found.update({name: inputs[0][0].clone()})))

    blocks = model.get_submodule(names.blocks)
    for layer, block in enumerate(blocks):
        on_input(f"resid_pre/{layer}", block)
        on_output(f"attn_out/{layer}", block.get_submodule(names.attention))
        on_output(f"mlp_out/{layer}", block.get_submodule(names.mlp))
        on_input(f"z/{layer}", block.get_submodule(names.projection))
        on_output(f"resid_post/{layer}", block)
    on_output(f"final_norm/{len(blocks) - 1}", model.get_submodule(names.norm))
    with torch.inference_mode():
        model(input_ids=torch.tensor([tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    for layer in range(len(blocks)):
        if not names.parallel:
            found[f"resid_mid/{layer}"] = found[f"resid_pre/{layer}"] + found[f"attn_out/{layer}"]
        found[f"z/{layer}"] = found[f"z/{layer}"].view(len(tokens), heads.n_heads, heads.d_head)
    return found
