"""How Newton's method finds its step: from a Hessian, or by conjugate gradients from products with one."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from cliffstore.analyze.objective import Curvature, Objective, Sums
from cliffstore.analyze.streams import Floats
from cliffstore.errors import CliffstoreError

_CONTRACTION = 0.1
"""A Hessian is kept for as long as each step makes the gradient, in its norm, at least so much smaller."""
_TOO_COARSE = 0.3
"""What float32 leaves of a gradient, from near, where it is too coarse for the data."""
_FORCING = 0.03
"""What conjugate gradients may leave of a gradient."""
_MOST_PRODUCTS = 1_000


class HessianSteps:
    """Steps by a Hessian, which is computed along with the gradient, and kept for further points where that will do.

    Attributes
    ----------
    is_free : whether a step costs no pass
    contraction : what the last step left of the gradient, in the norm of the Hessian's inverse; 1 before there was one
    """

    is_free = True

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.contraction = 1.0
        self._products = Curvature.FLOAT32
        self._wanted = self._is_fresh = self._was_fresh = True
        self._factor: tuple[Floats, bool] | None = None

    def look(self, point_E: Floats) -> Sums:
        """Return loss and gradient at a point."""
        if not self._wanted:
            self._is_fresh = False
            return self._objective.at(point_E, Curvature.NONE)
        while True:
            found = self._objective.at(point_E, self._products)
            assert found.curvature is not None
            try:
                self._factor = cho_factor(found.curvature, lower=False, overwrite_a=True)
            except LinAlgError:
                if self._products is Curvature.FLOAT64:
                    raise CliffstoreError("the curvature of the fit is singular: choose a smaller C") from None
                self._products = Curvature.FLOAT64
                continue
            self._is_fresh = True
            return Sums(found.loss, found.gradient_E, None)

    def step(self, _point_E: Floats, here: Sums) -> Floats:
        """Return the step from a point that was looked at last."""
        assert self._factor is not None
        self._was_fresh = self._is_fresh
        return -np.asarray(cho_solve(self._factor, here.gradient_E))

    def judge(self, here: Sums, there: Sums, *, is_small: bool) -> None:
        """Decide by a step that was taken whether the next point needs a Hessian of its own."""
        assert self._factor is not None
        before, after = (sums.gradient_E @ cho_solve(self._factor, sums.gradient_E) for sums in (here, there))
        self.contraction = _ratio(after, before)
        self._wanted = self.contraction > _CONTRACTION
        if self._was_fresh and is_small and self.contraction > _TOO_COARSE:
            self._products = Curvature.FLOAT64


class ProductSteps:
    """Steps by conjugate gradients, preconditioned with the Hessian's diagonal; each of their iterations is a pass.

    Attributes as for `HessianSteps`; the norm is that of the diagonal's inverse.
    """

    is_free = False

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.contraction = 1.0

    def look(self, point_E: Floats) -> Sums:
        """Return loss, gradient and the curvature's diagonal at a point."""
        return self._objective.at(point_E, Curvature.DIAGONAL)

    def step(self, point_E: Floats, here: Sums) -> Floats:
        """Return the step from a point."""
        diagonal_E = here.curvature
        assert diagonal_E is not None
        step_E, left_E = np.zeros_like(point_E), -here.gradient_E
        preconditioned_E = left_E / diagonal_E
        direction_E, size = preconditioned_E.copy(), float(left_E @ preconditioned_E)
        enough = size * _FORCING**2
        for _ in range(_MOST_PRODUCTS):
            if size <= enough:
                break
            product_E = self._objective.product(point_E, direction_E)
            share = size / float(direction_E @ product_E)
            step_E += share * direction_E
            left_E -= share * product_E
            preconditioned_E = left_E / diagonal_E
            size, before = float(left_E @ preconditioned_E), size
            direction_E = preconditioned_E + (size / before) * direction_E
        return step_E

    def judge(self, here: Sums, there: Sums, *, is_small: bool) -> None:
        """Take note of what a step has left."""
        assert here.curvature is not None
        before, after = (float(sums.gradient_E @ (sums.gradient_E / here.curvature)) for sums in (here, there))
        self.contraction = _ratio(after, before)


def _ratio(after: float, before: float) -> float:
    """Return the ratio of two norms, from their squares."""
    return float(np.sqrt(after / max(before, np.finfo(float).tiny)))
