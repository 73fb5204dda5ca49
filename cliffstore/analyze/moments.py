"""Sums that say all about a data set that means and covariances can: from one pass, merged from any parts of it.

The moments of a part are n, mean and sums of squared deviations from that mean; two parts are merged exactly (Chan,
Golub, LeVeque 1983), so a dimension that is large and hardly varies loses nothing. Everything is float64. What is
fitted from moments is the same, whether they come from memory (`moments_of`) or from a store (`stream_moments`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.blas import dsyrk

from cliffstore.analyze.mapping import Mapper
from cliffstore.analyze.streams import Floats, Rows, StoredArray, shares, tiles
from cliffstore.errors import ProbeError
from cliffstore.store.probes import ProbeWeights

Parts = npt.NDArray[np.integer]
"""Which part each sample is in: its class, or its class and fold."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Of n vectors.

    Attributes
    ----------
    square_D : sum of (h - mean)^2
    scatter_DD : sum of (h - mean)(h - mean)^T, None where it was not asked for
    """

    n: int
    mean_D: Floats
    square_D: Floats
    scatter_DD: Floats | None = None

    def merged(self, other: Moments) -> Moments:
        """Return the moments of both parts together."""
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        apart_D = other.mean_D - self.mean_D
        share = self.n * other.n / n
        scatter_DD = None
        if self.scatter_DD is not None and other.scatter_DD is not None:
            scatter_DD = self.scatter_DD + other.scatter_DD + share * np.outer(apart_D, apart_D)
        return Moments(
            n,
            self.mean_D + apart_D * (other.n / n),
            self.square_D + other.square_D + share * apart_D**2,
            scatter_DD,
        )

    @property
    def scale_D(self) -> Floats:
        """Standard deviation of each dimension; 1 for one that never varies, by scikit-learn's rule."""
        variance_D, eps = self.square_D / max(self.n, 1), np.finfo(np.float64).eps
        least_D = self.n * eps * variance_D + (self.n * eps * self.mean_D) ** 2
        return np.where(variance_D <= least_D, 1.0, np.sqrt(variance_D))


def nothing(width: int, *, scatter: bool) -> Moments:
    """Return the moments of no vectors."""
    return Moments(0, np.zeros(width), np.zeros(width), np.zeros((width, width)) if scatter else None)


def merge(moments: Iterable[Moments]) -> Moments:
    """Return the moments of all parts together; there is at least one."""
    first, *rest = moments
    for other in rest:
        first = first.merged(other)
    return first


def moments_of(h_ND: npt.NDArray[np.floating], part_N: Parts, n_parts: int, *, scatter: bool) -> list[Moments]:
    """Return the moments of each part of vectors [N, D] in memory."""
    found = [nothing(h_ND.shape[1], scatter=scatter)] * n_parts
    for part in np.unique(part_N):
        found[part] = _moments(h_ND if n_parts == 1 else h_ND[part_N == part], scatter)
    return found


def _moments(h_ND: npt.NDArray[np.floating], scatter: bool) -> Moments:
    x_ND = h_ND.astype(np.float64)
    mean_D = x_ND.mean(axis=0)
    x_ND -= mean_D
    if not scatter:
        return Moments(len(x_ND), mean_D, np.einsum("nd,nd->d", x_ND, x_ND))
    upper_DD = np.triu(dsyrk(1.0, x_ND.T))
    scatter_DD = upper_DD + np.triu(upper_DD, 1).T
    return Moments(len(x_ND), mean_D, np.diag(scatter_DD).copy(), scatter_DD)


@dataclass(frozen=True, slots=True)
class _MomentsTask:
    source: StoredArray
    rows_N: Rows
    part_N: Parts
    n_parts: int
    scatter: bool


def stream_moments(
    source: StoredArray, rows_N: Rows, part_N: Parts, n_parts: int, mapper: Mapper, *, scatter: bool
) -> list[Moments]:
    """Return the moments of each part of stored vectors, from one pass over them.

    Raises
    ------
    ProbeError
        A vector holds NaN or Inf.
    """
    order_N = np.argsort(rows_N, kind="stable")
    sorted_N, parts_N = rows_N[order_N], part_N[order_N]
    tasks = (
        _MomentsTask(source, sorted_N[share], parts_N[share], n_parts, scatter) for share in shares(source, sorted_N)
    )
    total = [nothing(source.width, scatter=scatter)] * n_parts
    for found in mapper.map(_share_moments, tasks):
        total = [one.merged(other) for one, other in zip(total, found, strict=True)]
    if not all(np.isfinite(one.square_D).all() for one in total):
        raise ProbeError(
            f"{source.spec.name} holds NaN or Inf among the {len(rows_N)} rows of the fit: leave those examples out "
            "with --where"
        )
    return total


def _share_moments(task: _MomentsTask) -> list[Moments]:
    total = [nothing(task.source.width, scatter=task.scatter)] * task.n_parts
    for piece, tile_TD in tiles(task.source, task.rows_N):
        found = moments_of(tile_TD, task.part_N[piece], task.n_parts, scatter=task.scatter)
        total = [one.merged(other) for one, other in zip(total, found, strict=True)]
    return total


def lda_from_moments(classes: Sequence[Moments], shrinkage: float, class_weight: str) -> ProbeWeights:
    """Return linear discriminant analysis of two classes: the exact logit of equal covariances.

    The pooled covariance is shrunk towards its diagonal by a share, in units of each dimension's own deviation, so a
    massive dimension weighs no more than another. `balanced` weights classes equally, in priors and covariance.

    Parameters
    ----------
    classes : moments with scatter of the labels 0 and 1

    Raises
    ------
    ProbeError
        A class is missing, or the covariance is singular because too little is shrunk.
    """
    zero, one = classes
    scatters = [moments.scatter_DD for moments in classes if moments.n and moments.scatter_DD is not None]
    if len(scatters) < 2:
        raise ProbeError("a probe needs examples of two classes")
    n = zero.n + one.n
    shares_C = (0.5, 0.5) if class_weight == "balanced" else (zero.n / n, one.n / n)
    covariance_DD = scatters[0] * (shares_C[0] / zero.n) + scatters[1] * (shares_C[1] / one.n)
    scale_D = np.sqrt(np.diag(covariance_DD))
    scale_D[scale_D == 0] = 1.0  # a dimension that never varies within a class
    shrunk_DD = (1 - shrinkage) * covariance_DD / np.outer(scale_D, scale_D)
    np.fill_diagonal(shrunk_DD, 1.0 + 1e-12)
    try:
        if not shrinkage and n - 2 < len(scale_D):
            raise LinAlgError
        factor = cho_factor(shrunk_DD, overwrite_a=True)
    except LinAlgError:
        raise ProbeError(
            f"LDA with a shrinkage of {shrinkage:g}: the covariance of {n} examples is singular; choose a larger one"
        ) from None
    w_D = cho_solve(factor, (one.mean_D - zero.mean_D) / scale_D) / scale_D
    b = np.log(shares_C[1] / shares_C[0]) - (zero.mean_D + one.mean_D) @ w_D / 2
    return ProbeWeights(w_D.astype(np.float32), float(b))


def difference_from_moments(classes: Sequence[Moments]) -> ProbeWeights:
    """Return w = mean1 - mean0, and b such that the middle between the means scores 0."""
    zero, one = classes
    if not (zero.n and one.n):
        raise ProbeError("a probe needs examples of two classes")
    w_D = one.mean_D - zero.mean_D
    return ProbeWeights(w_D.astype(np.float32), float(-(zero.mean_D + one.mean_D) @ w_D / 2))
