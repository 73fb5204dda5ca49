"""The loss of logistic regression and its derivatives over rows of a store: what workers return, and their sums.

With z = (h - mean) / scale, m = v·z + a, p = sigmoid(m), and s the weight of a sample's class:

    loss       sum s log(1 + exp(-y m)),  y = -1 or 1
    gradient   sum s (p - [y = 1]) (z, 1)
    curvature  sum s p (1 - p) (z, 1)(z, 1)^T: whole, its diagonal, or times a vector

Loss and gradient are float64. Products of a whole Hessian are float32 for each tile, summed in float64, unless asked
otherwise: it steers a search and does not move its end. It is z, not h, that is multiplied, so massive dimensions lose
nothing in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dsyrk, ssyrk
from scipy.special import expit

from cliffstore.analyze.mapping import Mapper
from cliffstore.analyze.streams import Floats, Rows, StoredArray, shares, tiles

Labels = npt.NDArray[np.integer]
OnPass = Callable[[str], None]


class Curvature(Enum):
    """What is wanted of the second derivative, beside loss and gradient."""

    NONE = "none"
    DIAGONAL = "diagonal"
    FLOAT32 = "whole, float32 products"
    FLOAT64 = "whole, float64 products"


@dataclass(frozen=True, slots=True)
class Standard:
    """How vectors are standardised, and what each class weighs."""

    mean_D: Floats
    scale_D: Floats
    weights_C: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows, sorted, with their labels 0 or 1."""

    source: StoredArray
    rows_N: Rows
    y_N: Labels


@dataclass(frozen=True, slots=True)
class PointTask:
    """Loss and derivatives at a point [v, a], or with a `direction` the curvature's product with it alone."""

    part: Part
    standard: Standard
    point_E: Floats
    curvature: Curvature = Curvature.NONE
    direction_E: Floats | None = None


@dataclass(frozen=True, slots=True)
class Sums:
    """Over a part; E is D + 1, the intercept last.

    Attributes
    ----------
    curvature : [E, E] with its upper triangle alone, [E] for a diagonal or a product, None where none was asked for
    """

    loss: float
    gradient_E: Floats
    curvature: npt.NDArray[np.floating] | None

    def plus(self, other: Sums) -> Sums:
        """Return the sums of both parts; the curvature of this one, which is float64, is changed."""
        if self.curvature is not None and other.curvature is not None:
            np.add(self.curvature, other.curvature, out=self.curvature)
        return Sums(self.loss + other.loss, self.gradient_E + other.gradient_E, self.curvature)


def sums_of(task: PointTask) -> Sums:
    """Return the sums over a part, in one pass over it."""
    part, width = task.part, task.part.source.width
    v_D, a = task.point_E[:-1], float(task.point_E[-1])
    inverse_D = 1.0 / task.standard.scale_D
    weights_C = np.array(task.standard.weights_C)
    loss, gradient_E = 0.0, np.zeros(width + 1)
    curvature = _Accumulator(width, task)
    z = np.empty((part.source.tile_rows, width))
    for piece, h_TD in tiles(part.source, part.rows_N):
        z_TD = np.subtract(h_TD, task.standard.mean_D, out=z[: len(h_TD)])
        z_TD *= inverse_D
        y_T = part.y_N[piece]
        weight_T, logit_T = weights_C[y_T], z_TD @ v_D + a
        p_T = expit(logit_T)
        if task.direction_E is None:
            loss += float(weight_T @ np.logaddexp(0.0, np.where(y_T == 1, -logit_T, logit_T)))
            residual_T = weight_T * (p_T - y_T)
            gradient_E[:-1] += residual_T @ z_TD
            gradient_E[-1] += residual_T.sum()
        curvature.add(z_TD, weight_T * p_T * expit(-logit_T))
    return Sums(loss, gradient_E, curvature.result())


class _Accumulator:
    """Sums q (z, 1)(z, 1)^T over tiles, in the form that is wanted."""

    def __init__(self, width: int, task: PointTask) -> None:
        self._kind, self._direction_E = task.curvature, task.direction_E
        self._is_whole = task.direction_E is None and self._kind in (Curvature.FLOAT32, Curvature.FLOAT64)
        self.total: npt.NDArray[np.floating] | None = None
        if self._is_whole:
            self.total = np.zeros((width + 1, width + 1), order="F")
            dtype = np.float32 if self._kind is Curvature.FLOAT32 else np.float64
            self._scaled = np.empty((task.part.source.tile_rows, width), dtype=dtype)
            self._products_DD = np.zeros((width, width), dtype=dtype, order="F")
        elif task.direction_E is not None or self._kind is Curvature.DIAGONAL:
            self.total = np.zeros(width + 1)

    def result(self) -> npt.NDArray[np.floating] | None:
        """Return the sum, in the precision that it has: that is what travels."""
        if self._is_whole and self.total is not None:
            return self.total.astype(self._products_DD.dtype, copy=False)
        return self.total

    def add(self, z_TD: Floats, q_T: Floats) -> None:
        """Take a tile in."""
        if self.total is None:
            return
        if self._direction_E is not None:
            along_T = q_T * (z_TD @ self._direction_E[:-1] + self._direction_E[-1])
            self.total[:-1] += along_T @ z_TD
            self.total[-1] += along_T.sum()
        elif self._is_whole:
            scaled_TD = np.multiply(z_TD, np.sqrt(q_T)[:, None], out=self._scaled[: len(z_TD)], casting="same_kind")
            syrk = ssyrk if self._kind is Curvature.FLOAT32 else dsyrk
            # Fortran's order: the transpose of a tile is what lies there, and nothing is copied.
            self.total[:-1, :-1] += syrk(1.0, scaled_TD.T, c=self._products_DD, overwrite_c=True)
            self.total[:-1, -1] += q_T @ z_TD
            self.total[-1, -1] += q_T.sum()
        else:
            self.total[:-1] += np.einsum("t,td,td->d", q_T, z_TD, z_TD)
            self.total[-1] += q_T.sum()


class Objective:
    """The objective over a part of the data, evaluated by workers.

    Attributes
    ----------
    n_read : rows read so far, however often
    """

    def __init__(
        self, part: Part, standard: Standard, c: float, mapper: Mapper, on_pass: OnPass = lambda _text: None
    ) -> None:
        self._part, self._standard, self._c, self._mapper, self._on_pass = part, standard, c, mapper, on_pass
        self._shares = shares(part.source, part.rows_N)
        self.n_read = 0

    def at(self, point_E: Floats, curvature: Curvature) -> Sums:
        """Return the objective and its derivatives at a point; of a whole Hessian the upper triangle alone."""
        self._on_pass("gradient" if curvature is Curvature.NONE else "gradient and Hessian")
        v_D = point_E[:-1]
        found = self._sum(point_E, curvature, None)
        gradient_E = self._c * found.gradient_E
        gradient_E[:-1] += v_D
        second = found.curvature
        if second is not None:
            second *= self._c
            diagonal_E = second if second.ndim == 1 else np.einsum("ii->i", second)
            diagonal_E[:-1] += 1.0
        return Sums(self._c * found.loss + 0.5 * float(v_D @ v_D), gradient_E, second)

    def product(self, point_E: Floats, direction_E: Floats) -> Floats:
        """Return the Hessian at a point times a direction."""
        self._on_pass("curvature product")
        found = self._sum(point_E, Curvature.NONE, direction_E)
        assert found.curvature is not None
        product_E: Floats = np.multiply(found.curvature, self._c, dtype=np.float64)
        product_E[:-1] += direction_E[:-1]
        return product_E

    def _sum(self, point_E: Floats, curvature: Curvature, direction_E: Floats | None) -> Sums:
        part = self._part
        tasks = (
            PointTask(
                Part(part.source, part.rows_N[share], part.y_N[share]), self._standard, point_E, curvature, direction_E
            )
            for share in self._shares
        )
        found = self._mapper.map(sums_of, tasks)
        first = next(found)
        curvature_sum = None if first.curvature is None else first.curvature.astype(np.float64)
        total = Sums(first.loss, first.gradient_E, curvature_sum)
        for sums in found:
            total = total.plus(sums)
        self.n_read += len(part.y_N)
        return total
