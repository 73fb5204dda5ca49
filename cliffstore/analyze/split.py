"""Which examples a probe learns from and which judge it: grouped by prompt, so that equal prompts never part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from cliffstore.errors import ProbeError

FOLDS = 5
"""One fold of five validates: an 80/20 split."""


@dataclass(frozen=True, slots=True)
class Split:
    """Indices into the examples, int64 each."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


def grouped_split(y_N: npt.NDArray[np.int64], prompts: Sequence[str], seed: int) -> Split:
    """Split examples 80/20, stratified by label, whole groups of equal prompts on one side.

    Parameters
    ----------
    y_N : 0 or 1 for each example
    prompts : the group of each example
    seed : same seed, same split

    Raises
    ------
    ProbeError
        A class has fewer distinct prompts than the split has parts.
    """
    groups = [" ".join(prompt.split()) for prompt in prompts]
    distinct = {label: len({g for g, y in zip(groups, y_N, strict=True) if y == label}) for label in (0, 1)}
    if min(distinct.values()) < FOLDS:
        raise ProbeError(
            f"a split needs at least {FOLDS} distinct prompts of each class, found {distinct[1]} positive and "
            f"{distinct[0]} negative: extract more, or widen --where"
        )
    numbers = {group: number for number, group in enumerate(sorted(set(groups)))}
    codes = np.array([numbers[group] for group in groups])
    folds = StratifiedGroupKFold(n_splits=FOLDS, shuffle=True, random_state=seed).split(codes, y_N, codes)
    for train, validation in folds:
        sides = (Counter(y_N[train].tolist()), Counter(y_N[validation].tolist()))
        if all(side[label] for side in sides for label in (0, 1)):
            return Split(train, validation)
    raise ProbeError("no split has both classes on both sides: too many equal prompts in one class")
