"""Comparing stores, wherever they are: equal examples, tokens, rows and vectors; each receipt once."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from cliffstore.store import layout
from cliffstore.store.reader import StoreReader
from cliffstore.store.writer import capture_specs

VOLATILE = ("worker", "seconds", "attempt")
"""What a receipt says of how a unit came to be, not of what it is."""


def assert_equal_stores(
    one: str, other: str, options: Mapping[str, object] | None = None, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Tables are equal byte by byte, vectors value by value (or as close as is said), receipts in all that lasts.

    Parameters
    ----------
    options : storage options of the first
    """
    mine, theirs = StoreReader(one, options), StoreReader(other)
    keys = [[key for key in reader.objects.list(layout.PLANS) if key.endswith(".parquet")] for reader in (mine, theirs)]
    assert keys[0] == keys[1]
    assert keys[0]
    for key in keys[0]:
        assert mine.objects.get(key) == theirs.objects.get(key), key
    assert mine.captures() == theirs.captures()
    for capture in theirs.captures():
        receipts = [reader.receipts(capture.capture) for reader in (mine, theirs)]
        assert [receipt.unit for receipt in receipts[0]] == [receipt.unit for receipt in receipts[1]]
        skipped = set(VOLATILE) | ({"digests"} if rtol or atol else set())
        for left, right in zip(*receipts, strict=True):
            assert left.model_dump(exclude=skipped) == right.model_dump(exclude=skipped)
        errors = [key for key in mine.objects.list(layout.RECEIPTS) if layout.unit_of_error(key) is not None]
        assert not errors, json.loads(mine.objects.get(errors[0]))
        for spec in capture_specs(capture):
            for receipt in receipts[1]:
                rows = (receipt.row_start, receipt.row_start + receipt.n_rows)
                vectors = [reader.arrays.read_range(spec.key, *rows) for reader in (mine, theirs)]
                if rtol or atol:
                    np.testing.assert_allclose(*vectors, rtol=rtol, atol=atol, err_msg=spec.key)
                else:
                    np.testing.assert_array_equal(*vectors, err_msg=spec.key)
