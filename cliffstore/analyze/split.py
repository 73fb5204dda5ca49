"""Which examples a probe learns from and which judge it: grouped by prompt, so that equal prompts never part.

A prompt is known by a digest of its words, so millions fit in memory. All splits are dealt at once (`deal`): one fold
of five validates, the rest is dealt again into the folds that choose hyperparameters. Folds belong to prompts, not to
rows, so they are the same at every position and layer. Small sets are dealt by scikit-learn's StratifiedGroupKFold;
large ones in one sort: groups of each class in the order of a seeded hash, cut where each fold has its share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliffstore.errors import ProbeError

FOLDS = 5
"""One fold of five validates: an 80/20 split; and as many folds choose hyperparameters."""
VALIDATION = -1
MOST_FOR_SCIKIT = 100_000
"""Groups. StratifiedGroupKFold goes over them one by one in Python."""

Labels = npt.NDArray[np.int64]
Groups = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Split:
    """Indices into the examples, int64 each."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Deal:
    """The fold of each group: `VALIDATION`, or the fold of cross-validation within the training part.

    Attributes
    ----------
    groups_G : uint64, ascending
    fold_G : int8
    n_folds : of cross-validation
    """

    groups_G: Groups
    fold_G: npt.NDArray[np.int8]
    n_folds: int

    def of(self, groups_N: Groups) -> npt.NDArray[np.int8]:
        """Return the fold of each sample by its group."""
        return self.fold_G[np.searchsorted(self.groups_G, groups_N)]


def prompt_digests(prompts: Iterable[str | None]) -> Groups:
    """Return uint64 for each prompt: equal where prompts are, whatever space is between their words."""
    digests = b"".join(
        hashlib.blake2b(" ".join((prompt or "").split()).encode(), digest_size=8).digest() for prompt in prompts
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def grouped_split(y_N: Labels, groups_N: Groups, seed: int) -> Split:
    """Split examples 80/20, stratified by label, whole groups on one side.

    Parameters
    ----------
    y_N : 0 or 1 for each example
    groups_N : the group of each example
    seed : same seed, same split

    Raises
    ------
    ProbeError
        A class has fewer distinct prompts than the split has parts.
    """
    distinct = distinct_groups(y_N, groups_N)
    if min(distinct) < FOLDS:
        raise ProbeError(
            f"a split needs at least {FOLDS} distinct prompts of each class, found {distinct[1]} positive and "
            f"{distinct[0]} negative: extract more, or widen --where"
        )
    fold_N = grouped_folds(y_N, groups_N, FOLDS, seed)
    for fold in range(FOLDS):
        train, validation = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
        if both_classes(y_N[train]) and both_classes(y_N[validation]):
            return Split(train, validation)
    raise ProbeError("no split has both classes on both sides: too many equal prompts in one class")


def deal(y_N: Labels, groups_N: Groups, seed: int) -> Deal:
    """Deal all groups: a fifth validates, the rest is dealt into up to five folds. Errors as for `grouped_split`."""
    split = grouped_split(y_N, groups_N, seed)
    groups_G, first_G = np.unique(groups_N, return_index=True)
    fold_N = np.full(len(groups_N), VALIDATION, dtype=np.int8)
    train_y, train_groups = y_N[split.train], groups_N[split.train]
    n_folds = min(FOLDS, *distinct_groups(train_y, train_groups))
    if n_folds < 2:
        raise ProbeError("the training part has one prompt of a class only: extract more, or widen --where")
    fold_N[split.train] = grouped_folds(train_y, train_groups, n_folds, seed + 1)
    return Deal(groups_G, fold_N[first_G], n_folds)


def grouped_folds(y_N: Labels, groups_N: Groups, n_folds: int, seed: int) -> npt.NDArray[np.int8]:
    """Return the fold of each example, int8 [N]: groups whole, classes in proportion as far as groups allow."""
    groups_G, code_N = np.unique(groups_N, return_inverse=True)
    if len(groups_G) > MOST_FOR_SCIKIT:
        return _dealt(y_N, groups_G, code_N, n_folds, seed)[code_N]
    from sklearn.model_selection import StratifiedGroupKFold  # takes longer to load than most commands to run

    fold_N = np.zeros(len(y_N), dtype=np.int8)
    folds = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed).split(code_N, y_N, code_N)
    for fold, (_, held_out) in enumerate(folds):
        fold_N[held_out] = fold
    return fold_N


def distinct_groups(y_N: Labels, groups_N: Groups) -> tuple[int, int]:
    """Return how many groups have negative examples, and how many positive ones."""
    return len(np.unique(groups_N[y_N == 0])), len(np.unique(groups_N[y_N == 1]))


def both_classes(y_N: Labels) -> bool:
    """Return whether there are negative and positive examples."""
    return bool((y_N == 0).any() and (y_N == 1).any())


def _dealt(
    y_N: Labels, groups_G: Groups, code_N: npt.NDArray[np.int64], n_folds: int, seed: int
) -> npt.NDArray[np.int8]:
    """Return the fold of each group: of each class, a stretch of equal size in the order of a seeded hash."""
    size_G = np.bincount(code_N, minlength=len(groups_G))
    positive_G = 2 * np.bincount(code_N, weights=y_N, minlength=len(groups_G)) > size_G
    hash_G = _mixed(groups_G, seed)
    fold_G = np.zeros(len(groups_G), dtype=np.int8)
    for label in (False, True):
        members = np.flatnonzero(positive_G == label)
        members = members[np.argsort(hash_G[members], kind="stable")]
        middle = np.cumsum(size_G[members]) - size_G[members] / 2
        fold_G[members] = np.floor(middle * n_folds / max(int(size_G[members].sum()), 1))
    return fold_G


def _mixed(groups_G: Groups, seed: int) -> Groups:
    """Return the splitmix64 hash of each group and the seed."""
    z = groups_G + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % (1 << 64))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
