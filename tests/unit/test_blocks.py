"""The memory of a unit's vectors is used again, and nothing of the unit before it is left in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cliffstore.extract.blocks import BlockPool
from cliffstore.extract.passes import Pass
from cliffstore.extract.sinks import ActivationBlocks, NonFiniteError
from cliffstore.store.arrays import ArraySpec

ROWS = 16
SPECS = (
    ArraySpec("main", "resid_post", 0, (4,), "bfloat16"),
    ArraySpec("main", "resid_post", 1, (4,), "bfloat16"),
    ArraySpec("main", "z", 0, (2, 3), "float32"),
)


def pass_over(rows: list[int]) -> Pass:
    n = len(rows)
    zeros = np.zeros((1, n), dtype=np.int64)
    rows_N = np.array(rows, dtype=np.int64)
    return Pass(zeros, zeros, np.array([n]), np.arange(n), rows_N, np.zeros(n, dtype=np.int64), None, None, zeros, 0, 1)


def vectors(spec: ArraySpec, rows: list[int], sign: int = 1) -> torch.Tensor:
    """Return vectors [rows, ...] that hold their row's number plus one."""
    numbers_N = torch.tensor(rows, dtype=torch.float32) + 1
    shape = (len(rows), *(1 for _ in spec.row_shape))
    return (sign * numbers_N.view(shape).expand(len(rows), *spec.row_shape)).to(getattr(torch, spec.dtype))


def fill(sink: ActivationBlocks, row_start: int, passes: list[list[int]], sign: int = 1) -> None:
    with torch.inference_mode():  # as a model's vectors come
        for rows in passes:
            sink.begin(pass_over([row_start + row for row in rows]))
            for spec in SPECS:
                sink.take(spec.name, vectors(spec, rows, sign))
    sink.check()


def expected(spec: ArraySpec, passes: list[list[int]], sign: int = 1) -> torch.Tensor:
    block = torch.zeros((ROWS, *spec.row_shape), dtype=getattr(torch, spec.dtype))
    for rows in passes:
        block[rows] = vectors(spec, rows, sign)
    return block


def assert_holds(found: dict[str, np.ndarray], passes: list[list[int]], sign: int = 1) -> None:
    for spec in SPECS:
        block = expected(spec, passes, sign)
        bits = block.view(torch.uint16).numpy() if spec.dtype == "bfloat16" else block.numpy()
        assert found[spec.name].dtype == bits.dtype
        assert np.array_equal(found[spec.name], bits), spec.name


@pytest.mark.parametrize("second", [[[0, 1, 2]], [[2, 0], [1]], [list(range(ROWS))], [[0], [1, 2, 3], [9, 4]]], ids=str)
def test_a_unit_after_a_full_one_holds_its_own_rows_and_zeros(second: list[list[int]]) -> None:
    pool = BlockPool(SPECS, ROWS)
    first = ActivationBlocks(SPECS, 0, pool)
    fill(first, 0, [list(range(8)), list(range(8, ROWS))])
    blocks = first.finish()
    assert_holds(blocks, [list(range(ROWS))])
    address = blocks["resid_post/0"].__array_interface__["data"]
    first.give_back()
    then = ActivationBlocks(SPECS, 32, pool)
    fill(then, 32, second, sign=-1)
    found = then.finish()
    assert_holds(found, second, sign=-1)
    assert found["resid_post/0"].__array_interface__["data"] == address


def test_units_in_hand_at_once_have_memory_of_their_own() -> None:
    pool = BlockPool(SPECS, ROWS)
    one, other = ActivationBlocks(SPECS, 0, pool), ActivationBlocks(SPECS, ROWS, pool)
    fill(one, 0, [[0, 1, 2, 3]])
    fill(other, ROWS, [[0, 1]], sign=-1)
    found = one.finish()
    assert_holds(other.finish(), [[0, 1]], sign=-1)
    assert_holds(found, [[0, 1, 2, 3]])


def test_a_unit_run_again_holds_what_the_last_run_gave() -> None:
    pool = BlockPool(SPECS, ROWS)
    sink = ActivationBlocks(SPECS, 0, pool)
    sink.begin(pass_over([0, 1]))
    for spec in SPECS:
        sink.take(spec.name, torch.full((2, *spec.row_shape), torch.nan, dtype=getattr(torch, spec.dtype)))
    with pytest.raises(NonFiniteError, match="resid_post/0, row 0"):
        sink.check()
    fill(sink, 0, [[0, 1]])
    assert_holds(sink.finish(), [[0, 1]])


def test_blocks_of_different_width_and_dtype_lie_side_by_side() -> None:
    blocks = BlockPool(SPECS, ROWS).lend(pinned=False)
    assert [(name, tuple(block.shape), block.dtype) for name, block in blocks.items()] == [
        ("resid_post/0", (ROWS, 4), torch.bfloat16),
        ("resid_post/1", (ROWS, 4), torch.bfloat16),
        ("z/0", (ROWS, 2, 3), torch.float32),
    ]
    for number, block in enumerate(blocks.values()):
        block.fill_(number + 1)
    assert [float(block.float().mean()) for block in blocks.values()] == [1, 2, 3]
