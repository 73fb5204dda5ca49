"""Parts of a knock-out measurement: of one unit each, bounded, and the same whatever other units have."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.errors import StoreError
from cliffstore.model.undisturbed import fit_together
from cliffstore.run.heads import pieces
from cliffstore.run.heads.parts import Part, parts_of
from cliffstore.run.heads.prompts import Ablated, ExampleTokens
from cliffstore.store import tables
from cliffstore.store.objects import ObjectStore

N_CHOICES = 5
LENGTHS = st.lists(st.lists(st.integers(2, 30), min_size=1, max_size=6), min_size=1, max_size=4)


def _units(lengths: list[list[int]]) -> list[tuple[int, list[ExampleTokens]]]:
    units, ordinal = [], 0
    for unit, own in enumerate(lengths):
        examples = []
        for length in own:
            position_T = np.arange(length)
            examples.append(
                ExampleTokens(ordinal, position_T.astype(np.int32), position_T - length + 1, position_T,
                              position_T >= length - 2)
            )  # fmt: skip
            ordinal += 1
        units.append((unit, examples))
    return units


def _parts(units: list[tuple[int, list[ExampleTokens]]], positions: Ablated, most: int) -> list[Part]:
    return list(parts_of(units, positions, N_CHOICES, partial(fit_together, tokens=200), most))


@given(LENGTHS, st.sampled_from(["template", "all", "decision"]), st.integers(0, 500))
def test_every_example_is_in_one_part_of_its_unit(lengths: list[list[int]], positions: Ablated, most: int) -> None:
    units = _units(lengths)
    parts = _parts(units, positions, most)
    assert [(part.unit, one) for part in parts for one in part.examples] == [
        (unit, one.example) for unit, examples in units for one in examples
    ]
    prompts = {one.example: one.prompt(positions) for _, examples in units for one in examples}
    for part in parts:
        cost = sum((N_CHOICES + 1) * prompts[one].n_ablated + len(prompts[one].token_ids_T) for one in part.examples)
        assert cost <= most or len(part.batches) == 1
        assert all(fit_together([prompts[one] for one in batch], 200) for batch in part.batches)
    unit, examples = units[-1]
    without = _parts([*units[:-1], (unit, examples[1:])], positions, most)
    assert [part for part in without if part.unit != unit] == [part for part in parts if part.unit != unit]


def test_a_piece_with_other_figures_than_were_written_is_removed_and_told(tmp_path: Path) -> None:
    """Also where it is a whole Parquet file, such as one that somebody has changed."""
    objects, key = ObjectStore(str(tmp_path)), "heads/effects/0a.piece"
    figures_NX = np.arange(6, dtype=np.float64).reshape(2, 3)
    pieces.write_piece(objects, key, [4, 7], figures_NX)
    np.testing.assert_array_equal(pieces.read_piece(objects, key, [4, 7]), figures_NX)
    table = tables.read(objects, key)
    changed = table.set_column(1, table.field(1), [[[0.0, 1.0, 2.0], [3.0, 4.0, 5.5]]])
    objects.put(key, tables.encode(changed, {"digest": pieces._digest([4, 7], figures_NX)}))
    with pytest.raises(StoreError, match="is damaged and is removed"):
        pieces.read_piece(objects, key, [4, 7])
    assert not objects.exists(key)
