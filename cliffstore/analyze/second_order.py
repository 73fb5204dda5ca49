"""L2 logistic regression over a store, to scikit-learn's optimum, without a design matrix in memory.

The objective is 1/2 |v|^2 + C sum_i s_i log(1 + exp(-y_i m_i)), m = v·z + a, on standardised vectors z, with the
intercept a left free and s the class weights. It is strictly convex in v, so Newton's method with a line search ends
at the one optimum. A pass sends the current point to workers and sums what they return (`objective`); nothing else
moves.

Passes are few: Newton first runs on random chunks, an eighth of an eighth ... of the rows, whose optimum is near. On
all rows a Hessian is then kept for as long as each step makes the error ten times smaller, and the step that is known
to leave little is taken without looking again. Beyond `MOST_WIDTH` a Hessian is too large to send around: the same
loop finds its step by conjugate gradients, a pass each.

Cost of a pass over N rows: reading them, 2 N D multiplications, and N D^2 / 2 more for a Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cliffstore.analyze.curvature import HessianSteps, ProductSteps
from cliffstore.analyze.mapping import Mapper
from cliffstore.analyze.moments import merge, stream_moments
from cliffstore.analyze.objective import Labels, Objective, OnPass, Part, Standard, Sums
from cliffstore.analyze.streams import Floats, Rows, StoredArray
from cliffstore.errors import CliffstoreError, ProbeError
from cliffstore.store.probes import ProbeWeights

MOST_WIDTH = 4_096
"""Widest vectors that a Hessian is computed for: 64 MiB of float32 products a worker, and about 128 more for sums."""
_SMALLER = 8
_ROWS_PER_DIMENSION = 20
"""Rows that a smaller sample has for each dimension, at least: fewer say little about the optimum."""
_TOLERANCE, _ROUGH = 1e-6, 3e-2
"""Of the error that is left, relative to v: the last step times what the one before left of its error. On all rows, and
on a sample of them."""
_SMALL = 0.1
"""Of a step: from so near, Newton's error becomes much smaller at once."""
_ROUNDING = 1e-12
"""Of a loss: what sums over millions of rows may lose of it. Far below what a step of `_TOLERANCE` gains."""
_MOST_STEPS, _MOST_HALVINGS = 100, 40


@dataclass(frozen=True, slots=True)
class FitReport:
    """How a fit went.

    Attributes
    ----------
    passes : rows read / rows of the fit, samples of them included
    steps : of Newton, on all rows
    gradient_norm : |gradient| / (C sum s) at the point before the last step
    error : distance from the optimum over |v|, on standardised vectors, as the last two steps tell it
    """

    n_rows: int
    passes: float
    steps: int
    gradient_norm: float
    error: float


def fit_logistic(
    source: StoredArray,
    rows_N: Rows,
    y_N: Labels,
    c: float,
    class_weight: str,
    mapper: Mapper,
    *,
    most_width: int = MOST_WIDTH,
    on_pass: OnPass = lambda _text: None,
) -> tuple[ProbeWeights, FitReport]:
    """Fit L2 logistic regression on stored vectors, as `fits.fit_logistic` does in memory.

    Parameters
    ----------
    rows_N, y_N : rows in any order, also several times, and their labels 0 or 1
    class_weight : `balanced`, or `none`
    most_width : widest vectors that a Hessian is computed for; beyond, conjugate gradients
    on_pass : told before each pass over all rows what it is for

    Raises
    ------
    ProbeError
        One class only; a vector holds NaN or Inf.
    """
    counts_C = np.bincount(y_N, minlength=2)
    if not counts_C.all():
        raise ProbeError("a probe needs examples of two classes")
    weights_C = len(y_N) / (2.0 * counts_C) if class_weight == "balanced" else np.ones(2)
    on_pass("mean and deviation of each dimension")
    whole = merge(stream_moments(source, rows_N, y_N, 2, mapper, scatter=False))
    standard = Standard(whole.mean_D, whole.scale_D, (float(weights_C[0]), float(weights_C[1])))
    order_N = np.argsort(rows_N, kind="stable")
    part = Part(source, rows_N[order_N], y_N[order_N].astype(np.int8))
    point_E = np.zeros(source.width + 1)
    steps = HessianSteps if source.width <= most_width else ProductSteps
    n_read = len(y_N)
    for sample in _samples(part):
        objective = Objective(sample, standard, c * len(y_N) / len(sample.y_N), mapper)
        point_E = _Search(steps(objective), _ROUGH).run(point_E)
        n_read += objective.n_read
    objective = Objective(part, standard, c, mapper, on_pass)
    search = _Search(steps(objective), _TOLERANCE)
    point_E = search.run(point_E)
    w_D = point_E[:-1] / whole.scale_D
    weights = ProbeWeights(w_D.astype(np.float32), float(point_E[-1] - w_D @ whole.mean_D))
    total = c * float(weights_C @ counts_C)
    passes = (n_read + objective.n_read) / len(y_N)
    return weights, FitReport(len(y_N), passes, search.steps, search.gradient_norm / total, search.error)


def _samples(part: Part) -> list[Part]:
    """Return parts of the data to begin with, smallest first: random chunks with both classes."""
    generator = np.random.default_rng(0)
    chunk_N = part.rows_N // part.source.chunk_rows
    chunks = np.unique(chunk_N)
    generator.shuffle(chunks)
    found: list[Part] = []
    size = len(chunks) // _SMALLER
    while size:
        chosen_N = np.isin(chunk_N, chunks[:size])
        sample = Part(part.source, part.rows_N[chosen_N], part.y_N[chosen_N])
        rarest = int(np.bincount(sample.y_N, minlength=2).min())
        if len(sample.y_N) < _ROWS_PER_DIMENSION * part.source.width or rarest < _ROWS_PER_DIMENSION:
            break
        found.insert(0, sample)
        size //= _SMALLER
    return found


class _Search:
    """Newton's method with a line search.

    Attributes
    ----------
    steps, gradient_norm, error : as in `FitReport`
    """

    def __init__(self, chooser: HessianSteps | ProductSteps, tolerance: float) -> None:
        self._chooser, self._tolerance = chooser, tolerance
        self._last_step = np.inf
        self.steps, self.gradient_norm = 0, np.inf

    @property
    def error(self) -> float:
        return self._last_step * self._chooser.contraction

    def run(self, point_E: Floats) -> Floats:
        """Return the optimum, from a point to begin at."""
        here = self._chooser.look(point_E)
        while self.steps < _MOST_STEPS:
            if not self._chooser.is_free and self.error <= self._tolerance:
                return point_E
            step_E = self._chooser.step(point_E, here)
            self.steps += 1
            self.gradient_norm = float(np.linalg.norm(here.gradient_E))
            length = float(np.linalg.norm(point_E[:-1] + step_E[:-1]))
            self._last_step = float(np.linalg.norm(step_E[:-1])) / max(length, np.finfo(float).tiny)
            if self.error <= self._tolerance or _is_lost_in_rounding(here, step_E):
                return point_E + step_E
            point_E, here = self._walk(point_E, here, step_E)
        raise CliffstoreError(
            f"the fit did not settle in {_MOST_STEPS} steps (the last one was {self._last_step:.1e} of the weights): "
            "choose a smaller C"
        )

    def _walk(self, point_E: Floats, here: Sums, step_E: Floats) -> tuple[Floats, Sums]:
        """Go along a step, as far as the objective falls enough."""
        slope = float(here.gradient_E @ step_E)
        rounding = _ROUNDING * abs(here.loss)
        share = 1.0
        for _ in range(_MOST_HALVINGS):
            there_E = point_E + share * step_E
            there = self._chooser.look(there_E)
            if there.loss <= here.loss + 1e-4 * share * slope + rounding:
                self._chooser.judge(here, there, is_small=self._last_step < _SMALL)
                return there_E, there
            share /= 2
        raise CliffstoreError("the fit cannot go on: the loss falls in no direction; choose a smaller C")


def _is_lost_in_rounding(here: Sums, step_E: Floats) -> bool:
    """Return whether what a step would gain is below what float64 tells of the loss."""
    return bool(-float(here.gradient_E @ step_E) <= np.finfo(float).eps * abs(here.loss))
