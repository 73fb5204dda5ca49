"""Running passes outside a unit: the check of tree passes against a plain forward, and timings.

The check runs a small tree of random tokens in two passes, so that masks, depths and the path between passes all
count, and each of its sequences alone through the model as it was loaded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cliffstore.extract.passes import PaddedPasses, Pass, TreePasses
from cliffstore.extract.tree import UnitExample, build_tree
from cliffstore.model.capture import PassTensors, SiteCapture
from cliffstore.model.traits import windows_of

if TYPE_CHECKING:
    import torch

_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""Largest |difference| / |plain| of a vector; a wrong mask shows as several tenths."""

_SHARED = (0, 6, 3, 7)
_LENGTHS = (11, 9, 10, 12)


def as_tensors(one: Pass) -> PassTensors:
    """Return a pass as the capture takes it."""
    import torch

    return PassTensors(
        input_ids_BT=torch.from_numpy(one.input_ids_BT),
        positions_BT=torch.from_numpy(np.array(one.positions_BT)),
        lengths_B=torch.from_numpy(one.lengths_B),
        kept_N=torch.from_numpy(one.kept_N),
        ends_S=None if one.ends_S is None else torch.from_numpy(one.ends_S),
        carry_C=None if one.carry_C is None else torch.from_numpy(one.carry_C),
        marks_BT=torch.from_numpy(one.marks_BT),
    )


def make_examples(
    lengths: Sequence[int], shared: Sequence[int], vocabulary: int, seed: int = 0, n_choices: int = 0
) -> list[UnitExample]:
    """Return examples of random tokens that share prefixes as asked, every position stored.

    Parameters
    ----------
    lengths, shared : for each example, its tokens, and how many leading ones its predecessor has too
    n_choices : choices of positions that random tokens are marked with
    """
    random, marking = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    examples: list[UnitExample] = []
    next_row = 0
    for number, (length, n_shared) in enumerate(zip(lengths, shared, strict=True)):
        token_ids = random.integers(0, vocabulary, length, dtype=np.int32)
        rows = np.arange(next_row, next_row + length, dtype=np.int64)
        marks = marking.integers(0, 1 << n_choices, length, dtype=np.int64)
        if examples:
            before = examples[-1]
            token_ids[:n_shared] = before.token_ids[:n_shared]
            if n_shared < min(length, len(before.token_ids)) and token_ids[n_shared] == before.token_ids[n_shared]:
                token_ids[n_shared] = (token_ids[n_shared] + 1) % vocabulary
            rows = np.concatenate([before.rows[:n_shared], np.arange(next_row, next_row + length - n_shared)])
            if before.marks is not None:
                marks[:n_shared] = before.marks[:n_shared]
        next_row += length - n_shared
        examples.append(UnitExample(number, token_ids, rows, marks if n_choices else None))
    return examples


def disagreement(capture: SiteCapture, dtype: str) -> str | None:
    """Return why passes over trees cannot be used with this model, None where they can."""
    if not capture.over_trees:
        return "the model does not let its attention be replaced"
    config = capture.model.config
    vocabulary = int(config.get_text_config().vocab_size)
    examples = make_examples(_LENGTHS, _SHARED, vocabulary, n_choices=len(capture.choices))
    tree = build_tree(examples)
    try:
        found = _run(capture, TreePasses(tree, -(-len(tree) // 2)), len(tree))
    except Exception as failure:  # noqa: BLE001  # whatever a model does not take, padded passes are the way out
        reason = " ".join([type(failure).__name__, *str(failure).splitlines()[:1]])
        return f"a pass over a tree fails in it ({reason[:200]})"
    expected = windows_of(config, capture.n_blocks)
    # The last block may end before its attention; every other one must have asked for the window it is said to have.
    if expected is None or any(capture.windows.get(n, -1) != expected[n] for n in range(capture.n_blocks - 1)):
        return "some of its layers are not plain attention over positions"
    plain = {name: np.zeros_like(vectors) for name, vectors in found.items()}
    with capture.as_loaded():
        for example in examples:
            alone = replace(example, rows=np.arange(len(example.token_ids)))
            for name, vectors_TD in _run(capture, PaddedPasses([alone], len(alone.token_ids)), len(alone.rows)).items():
                plain[name][example.rows] = vectors_TD
    for name in found:
        error = np.linalg.norm(found[name] - plain[name], axis=1) / (np.linalg.norm(plain[name], axis=1) + 1e-30)
        if not error.max() <= _TOLERANCE[dtype]:
            return f"{name} differs from a plain forward pass by {error.max():.1e}"
    return None


def _run(capture: SiteCapture, passes: TreePasses | PaddedPasses, n_rows: int) -> dict[str, np.ndarray]:
    """Return array name -> float32 [rows, width]."""
    vectors: dict[str, np.ndarray] = {}
    for one in passes:

        def take(name: str, vectors_ND: torch.Tensor, one: Pass = one) -> None:
            flat_ND = vectors_ND.flatten(1).float().cpu().numpy()
            vectors.setdefault(name, np.zeros((n_rows, flat_ND.shape[1]), dtype=np.float32))[one.rows_N] = flat_ND

        capture.run(as_tensors(one), take)
    return vectors


def time_passes(capture: SiteCapture, passes: Sequence[Pass]) -> float:
    """Return the seconds that passes take without storing anything."""
    import torch

    begun = time.perf_counter()
    for one in passes:
        capture.run(as_tensors(one), lambda _name, _vectors: None)
    if capture.device.type == "cuda":
        torch.cuda.synchronize(capture.device)
    return time.perf_counter() - begun
