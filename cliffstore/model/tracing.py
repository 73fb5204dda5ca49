"""Which modules of a block carry its sites, told by the numbers of one short sample forward.

A few random tokens go through the model while hooks copy what each module inside the traced blocks receives and
returns. Then the identities that define the sites choose the modules; names only say which of two updates is the
attention's where the order of calls would say otherwise:

    resid_pre + attn_out + mlp_out = resid_post        two modules' outputs
    resid_pre + attn_out = resid_mid                   the input of a module that is called after attention
    output projection(z) = attn_out                    a module with a matrix, up to a norm behind attention

Sums hold up to the rounding of the model's dtype, element by element, plus `TOLERANCE` of what is added. A module
that is called several times in one pass has no value of its own and is left out.

Cost: one forward of six tokens, and copies of what it computes in the traced blocks.

Legend: B sequences of the sample, T tokens of each, D width of the residual stream, W width of the attention's heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import combinations, count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

TRACING: ContextVar[bool] = ContextVar("tracing", default=False)
"""Whether a sample forward runs: hooks that change what a model computes stand aside, or its parts were not found."""
TOLERANCE = 1e-4
_SEQUENCES, _TOKENS = 2, 3
_SEARCHED = 4096
_STEPS_BACK = 4


@dataclass(frozen=True, slots=True)
class Call:
    """The one call of a module in the sample forward, its tensors copied to the CPU.

    Attributes
    ----------
    name : path of the module from where tracing began
    started, ended : when it was called and when it returned, on one clock
    received, returned : [B, T, width], None where the module takes or gives no hidden state
    alone : the hidden state is all that it was given
    flat : the module sees the tokens of all sequences in one dimension, [B·T, width]
    """

    name: str
    module: nn.Module
    started: int
    ended: int
    received: torch.Tensor | None
    returned: torch.Tensor | None
    alone: bool
    flat: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """The calls in a block that carry its sites, None where there is none.

    Attributes
    ----------
    attention, mlp : their outputs are what the block adds to the residual stream
    middle : its input is the residual stream between the two
    projection : attention's output projection; its input is z
    side_by_side : the MLP reads resid_pre too, so that there is no middle
    """

    attention: Call | None = None
    mlp: Call | None = None
    middle: Call | None = None
    projection: Call | None = None
    side_by_side: bool = False


def received_hidden(inputs: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """Return a module's hidden state among its arguments: the first one, or the one by that name."""
    return inputs[0] if inputs else kwargs.get("hidden_states")


def returned_hidden(output: object) -> object:
    """Return the hidden state in a module's output: all of it, or the first of several."""
    return output[0] if isinstance(output, tuple | list) and output else output


def same_value(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Tell whether two tensors are one value passed on, which changes no bit."""
    import torch

    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other)


def trace(model: PreTrainedModel, modules: Mapping[str, nn.Module], *, drawn: bool = False) -> dict[str, Call]:
    """Run the sample forward. Return the calls of those named modules that are called exactly once.

    Parameters
    ----------
    drawn : give random vectors in the place of embeddings, for blocks of which a part is silent on the tokens
    """
    import torch

    clock = count()
    before: dict[str, list[tuple[int, torch.Tensor | None, bool, bool]]] = {name: [] for name in modules}
    after: dict[str, list[tuple[int, torch.Tensor | None, bool]]] = {name: [] for name in modules}

    def enter(name: str, _module: nn.Module, inputs: tuple[object, ...], kwargs: dict[str, object]) -> None:
        alone = len(inputs) == 1 and not kwargs
        before[name].append((next(clock), *_copied(received_hidden(inputs, kwargs)), alone))

    def leave(name: str, _module: nn.Module, _inputs: tuple[object, ...], output: object) -> None:
        after[name].append((next(clock), *_copied(returned_hidden(output))))

    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(leave, name)))
    token = TRACING.set(True)
    try:
        with torch.inference_mode():
            model(**_sample(model, drawn=drawn), use_cache=False)
    finally:
        TRACING.reset(token)
        for handle in handles:
            handle.remove()
    calls: dict[str, Call] = {}
    for name, module in modules.items():
        if len(before[name]) == len(after[name]) == 1:
            started, received, flat_in, alone = before[name][0]
            ended, returned, flat_out = after[name][0]
            calls[name] = Call(name, module, started, ended, received, returned, alone, flat_in or flat_out)
    return calls


def dissect(block: Call, calls: list[Call]) -> Parts:
    """Find the parts of a block among the calls inside it."""
    pre_BTD, post_BTD = block.received, block.returned
    if pre_BTD is None or post_BTD is None or pre_BTD.shape != post_BTD.shape:
        return Parts()
    updates = _updates(pre_BTD, post_BTD, calls)
    if updates is None:
        return Parts()
    attention, mlp = updates
    return Parts(
        attention,
        mlp,
        middle=_middle(pre_BTD, attention, calls),
        projection=_projection(attention, calls),
        side_by_side=any(
            same_value(call.returned, mlp.received) and same_value(call.received, pre_BTD) for call in calls
        ),
    )


def _updates(pre_BTD: torch.Tensor, post_BTD: torch.Tensor, calls: list[Call]) -> tuple[Call, Call] | None:
    """Return the two calls whose outputs a block adds to the residual stream, attention first."""
    step = max(1, pre_BTD.numel() // _SEARCHED)  # all pairs are tried on some numbers, the best one on all

    def missed(added: tuple[Call, ...], step: int = 1) -> tuple[float, float]:
        parts = (pre_BTD, *(call.returned for call in added if call.returned is not None))
        return _mismatch(post_BTD.flatten()[::step], tuple(part.flatten()[::step] for part in parts))

    # two halves of one module, such as routed and shared experts, are not attention and MLP
    pairs = (pair for pair in combinations(_distinct_outputs(pre_BTD, calls), 2) if _child(pair[0]) != _child(pair[1]))
    best = min(pairs, key=lambda pair: missed(pair, step), default=None)
    if best is None:
        return None
    allowed = TOLERANCE * _norm(post_BTD.double() - pre_BTD.double())
    if not missed(best)[0] <= allowed or any(missed((alone,))[0] <= allowed for alone in best):
        return None  # where one of the two is enough, the other only hides in the rounding
    first, second = sorted(best, key=lambda call: call.ended)
    return (second, first) if "att" in second.name and "att" not in first.name else (first, second)


def _distinct_outputs(pre_BTD: torch.Tensor, calls: list[Call]) -> list[Call]:
    """Return the calls whose outputs are as wide as the residual stream; the outermost where one value is passed on."""
    distinct: list[Call] = []
    for call in sorted(calls, key=lambda call: (call.flat, call.name.count("."), call.ended)):
        wide = call.returned is not None and call.returned.shape == pre_BTD.shape
        if wide and not any(same_value(call.returned, other.returned) for other in distinct):
            distinct.append(call)
    return distinct


def _middle(pre_BTD: torch.Tensor, attention: Call, calls: list[Call]) -> Call | None:
    """Return the first call after attention that receives the sum of both."""
    update_BTD = attention.returned
    assert update_BTD is not None
    for call in sorted(calls, key=lambda call: call.started):
        input_BTD = call.received
        if call.started < attention.ended or input_BTD is None or input_BTD.shape != pre_BTD.shape:
            continue
        beyond_rounding, _ = _mismatch(input_BTD, (pre_BTD, update_BTD))
        if beyond_rounding <= TOLERANCE * _norm(update_BTD) and not same_value(input_BTD, pre_BTD):
            return call
    return None


def _projection(attention: Call, calls: list[Call]) -> Call | None:
    """Return the innermost call with a matrix that makes what attention adds, behind norms and dropouts."""
    value = attention.returned
    for _ in range(_STEPS_BACK):
        makers = sorted((call for call in calls if same_value(call.returned, value)), key=lambda call: call.ended)
        for call in makers:
            # attention itself also has matrices and makes this value, but it is given masks and positions too
            if call.alone and call.received is not None and _has_matrix(call.module):
                return call
        plain = (call for call in makers if not _has_matrix(call.module) and not same_value(call.received, value))
        behind = next(plain, None)
        if behind is None:
            return None
        value = behind.received
    return None


def _mismatch(total_N: torch.Tensor, parts_N: tuple[torch.Tensor, ...]) -> tuple[float, float]:
    """Return by how much the sum of parts misses a total: the norm beyond what rounding explains, and the norm."""
    import torch

    rounding = torch.finfo(total_N.dtype).eps
    error_N = (total_N.double() - sum(part.double() for part in parts_N)).abs()
    bound_N = rounding * sum(part.double().abs() for part in parts_N)
    return _norm((error_N - bound_N).clamp(min=0)), _norm(error_N)


def _child(call: Call) -> str:
    """Return which child of the block a call belongs to; names are `<layer>.<child>...`."""
    return call.name.split(".")[1]


def _norm(values: torch.Tensor) -> float:
    return float(values.double().norm())


def _has_matrix(module: nn.Module) -> bool:
    return any(weight.dim() >= 2 for weight in module.parameters())


def _copied(value: object) -> tuple[torch.Tensor | None, bool]:
    """Return a copy of a hidden state as [B, T, width], and whether the sequences were joined into one."""
    import torch

    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return None, False
    if value.dim() == 3 and value.shape[:2] == (_SEQUENCES, _TOKENS):
        return value.detach().to("cpu", copy=True), False  # a module further on may write into it
    if value.dim() == 2 and value.shape[0] == _SEQUENCES * _TOKENS:
        return value.detach().to("cpu", copy=True).unflatten(0, (_SEQUENCES, _TOKENS)), True
    return None, False


def _sample(model: PreTrainedModel, *, drawn: bool) -> dict[str, torch.Tensor]:
    """Return distinct random token ids [B, T], or vectors [B, T, D] as large as embeddings; the same each time."""
    import torch

    weight = model.get_input_embeddings().weight
    random = torch.Generator().manual_seed(0)
    if drawn:
        vectors_BTD = torch.randn(_SEQUENCES, _TOKENS, weight.shape[1], generator=random) * weight.float().std().cpu()
        return {"inputs_embeds": vectors_BTD.to(weight.device, weight.dtype)}
    ids = torch.randperm(weight.shape[0], generator=random)
    return {"input_ids": ids[: _SEQUENCES * _TOKENS].view(_SEQUENCES, _TOKENS).to(weight.device)}
