"""The arithmetic of interventions on numbers that can be followed by hand."""

from __future__ import annotations

import pytest
import torch

from cliffstore.model import changes

Z = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]], [[30.0, 0.0], [0.0, 40.0]]]])  # two tokens, two heads of two channels


def test_a_head_is_scaled_and_the_other_is_not() -> None:
    half = changes.scale(Z, torch.tensor([[0.5], [1.0]]), None, keep_norm=False)
    assert half.tolist() == [[[[1.5, 0.0], [0.0, 4.0]], [[15.0, 0.0], [0.0, 40.0]]]]


def test_channels_are_scaled_one_by_one() -> None:
    both = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    found = changes.scale(both, torch.tensor([[2.0, 0.0], [1.0, -1.0]]), None, keep_norm=False)
    assert found.tolist() == [[[[2.0, 0.0], [3.0, -4.0]]]]


def test_the_norm_that_is_kept_is_that_of_one_token() -> None:
    """Both tokens have the heads' joint norm that they had; a norm over the batch would give neither of them."""
    kept = changes.scale(Z, torch.tensor([[0.0], [1.0]]), None, keep_norm=True)
    assert kept.tolist() == [[[[0.0, 0.0], [0.0, 5.0]], [[0.0, 0.0], [0.0, 50.0]]]]
    first = changes.scale(Z[:, :1], torch.tensor([[0.0], [1.0]]), None, keep_norm=True)
    assert torch.equal(first, kept[:, :1])


def test_nothing_is_left_of_heads_that_are_all_off() -> None:
    found = changes.scale(Z, torch.zeros(2, 1), None, keep_norm=True)
    assert found.tolist() == torch.zeros_like(Z).tolist()


def test_a_direction_is_taken_out() -> None:
    h_BTD = torch.tensor([[[3.0, 4.0, 12.0]]])
    d_D = torch.tensor([0.0, 0.6, 0.8])
    # h·d = 2.4 + 9.6 = 12
    found = changes.ablate(h_BTD, d_D, None, keep_norm=False)
    torch.testing.assert_close(found, torch.tensor([[[3.0, 4 - 7.2, 12 - 9.6]]]), rtol=1e-6, atol=1e-6)
    kept = changes.ablate(h_BTD, d_D, None, keep_norm=True)
    torch.testing.assert_close(kept, found * 13 / 5, rtol=1e-6, atol=1e-6)  # |found| = |(3, -3.2, 2.4)| = 5


def test_what_is_parallel_to_the_direction_is_not_blown_up_again() -> None:
    d_D = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, 3.0, 5.0]), dim=0)
    found = changes.ablate(100 * d_D[None, None], d_D, None, keep_norm=True)
    assert float(found.abs().max()) < 1e-4


def test_a_vector_is_added() -> None:
    found = changes.steer(torch.tensor([[[3.0, 0.0]]]), torch.tensor([1.0, 3.0]), None, keep_norm=False)
    assert found.tolist() == [[[4.0, 3.0]]]
    kept = changes.steer(torch.tensor([[[3.0, 0.0]]]), torch.tensor([0.0, 4.0]), None, keep_norm=True)
    torch.testing.assert_close(kept, torch.tensor([[[1.8, 2.4]]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_are_not_chosen_keep_their_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    h_BTD = torch.randn(3, 5, 8, generator=generator).to(dtype)
    mask_BT = torch.rand(3, 5, generator=generator) < 0.5
    d_D = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)
    for keep_norm in (False, True):
        for found in (
            changes.ablate(h_BTD, d_D, mask_BT, keep_norm=keep_norm),
            changes.steer(h_BTD, d_D, mask_BT, keep_norm=keep_norm),
            changes.scale(h_BTD.unflatten(-1, (2, 4)), torch.zeros(2, 1), mask_BT, keep_norm=keep_norm).flatten(-2),
        ):
            assert found.dtype == dtype
            assert torch.equal(found[~mask_BT], h_BTD[~mask_BT])
            assert not (found[mask_BT] == h_BTD[mask_BT]).all(-1).any()


def test_bfloat16_is_rounded_once() -> None:
    h_BTD = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    d_D = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(2)), dim=0)
    exact = h_BTD.double() - (h_BTD.double() @ d_D.double())[..., None] * d_D.double()
    found = changes.ablate(h_BTD, d_D, None, keep_norm=False)
    assert torch.equal(found, exact.float().bfloat16())
