"""Parts of a knock-out measurement: of one unit each, bounded, and the same whatever other units have."""

from __future__ import annotations

from functools import partial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cliffstore.model.undisturbed import fit_together
from cliffstore.run.heads.parts import Part, parts_of
from cliffstore.run.heads.prompts import Ablated, ExampleTokens

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
