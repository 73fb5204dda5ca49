"""From a file of interventions to steps that a worker can take: directions looked up, layers and heads held against the
model, and what would change nothing, or cannot be stored, found before anything is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.config import ExtractConfig
from cliffstore.errors import ConfigError
from cliffstore.extract.marks import COLUMNS, MOST_CHOICES
from cliffstore.extract.unit import split_examples
from cliffstore.model.identity import ModelSource
from cliffstore.model.location import public_name
from cliffstore.model.sites import parse_layers
from cliffstore.model.steps import AnyStep, ModelShape, check_fit
from cliffstore.records import FINAL_NORM, PlannedUnit
from cliffstore.run.captures import CaptureDraft, choose_dtype
from cliffstore.run.heads.results import read_heads
from cliffstore.run.interventions.directions import is_file, read_arrays, read_direction
from cliffstore.run.interventions.files import (
    AblateConfig,
    InterventionConfig,
    ScaleChannelsConfig,
    ScaleHeadsConfig,
    SteerConfig,
    read_interventions,
)
from cliffstore.run.live_probes import read_named_probe
from cliffstore.schema import (
    DirectionAblation,
    HeadFactors,
    HeadScaling,
    HeadsDocument,
    Interventions,
    ModelIdentity,
    Steering,
    model_key,
    vector_text,
)
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore

Notice = Callable[[str], None]
_HEAD = re.compile(r"L([0-9]{1,5})H([0-9]{1,5})")


def find_interventions(config: ExtractConfig, source: ModelSource, notice: Notice) -> Interventions:
    """Return the interventions that a configuration's file asks for. Errors as for `resolve`."""
    assert config.intervene is not None
    wish = read_interventions(config.intervene)
    dtype = choose_dtype(config, source)
    return resolve(wish, source.identity, dtype, config.store, config.storage_options, notice)


def resolve(
    wish: InterventionConfig,
    model: ModelIdentity,
    dtype: str,
    store: str,
    options: Mapping[str, object],
    notice: Notice,
) -> Interventions:
    """Return what a file asks for, as steps for one model: nothing is left to look up.

    Parameters
    ----------
    store : whose probes and figures of heads may be named; empty where there is none

    Raises
    ------
    ConfigError
        A file is missing or malformed, or there are too many different positions.
    ProbeError
        There is no such probe.
    ModelError
        A step does not fit the model.
    """
    directions = _Directions(model, dtype, store, options, notice)
    steps: list[AnyStep] = []
    for step in wish.steps:
        if isinstance(step, ScaleHeadsConfig):
            steps.append(_heads(step, store, options))
        elif isinstance(step, ScaleChannelsConfig):
            steps.append(_channels(step, options))
        else:
            steps.append(_vector(step, model, directions))
    found = Interventions.of(steps)
    check_fit(found, shape_of(model))
    if len(found.choices) > MOST_CHOICES:
        raise ConfigError(f"interventions act at {len(found.choices)} choices of positions, at most {MOST_CHOICES} can")
    return found


def shape_of(model: ModelIdentity) -> ModelShape:
    """Return what steps must fit."""
    return ModelShape(model.n_layers, model.d_model, model.n_heads, model.d_head)


def tell_without_effect(draft: CaptureDraft, notice: Notice) -> None:
    """Say which interventions lie above everything that is captured."""
    if draft.interventions is None:
        return
    last = max(array.layer for array in draft.arrays)
    for number, step in enumerate(draft.interventions.steps, 1):
        layers = [one.layer for one in step.heads] if isinstance(step, HeadScaling) else step.layers
        if min(layers) > last:
            notice(f"intervention {number} ({step.kind}) acts above layer {last}, the last one captured: no effect")


def check_shared_rows(
    interventions: Interventions,
    units: Sequence[PlannedUnit],
    tokens: Callable[[PlannedUnit], pa.Table],
    notice: Notice,
) -> None:
    """Read the tokens of units, where positions matter, and see that examples that share rows agree on them.

    Positions that none of their examples has are told.

    Raises
    ------
    ConfigError
        Two do not.
    """
    if not interventions.choices or not units:
        return
    found = 0
    for unit in units:
        for example in split_examples(tokens(unit).select(COLUMNS), interventions.choices):
            assert example.marks is not None
            found |= int(np.bitwise_or.reduce(example.marks))
    nowhere = {choice for bit, choice in enumerate(interventions.choices) if not found >> bit & 1}
    for number, step in enumerate(interventions.steps, 1):
        if step.positions in nowhere:
            notice(
                f"intervention {number} ({step.kind}) acts at {step.positions!r}, and no example that is computed has "
                "such a position: no effect"
            )


def suppressors(document: HeadsDocument, table: pa.Table, top: int) -> list[tuple[int, int]]:
    """Return the heads that hold a score down most: the most negative shares, or the largest gains when knocked out.

    Raises
    ------
    ConfigError
        The table has not so many heads.
    """
    sign = -1.0 if document.kind == "direct" else 1.0
    held: dict[tuple[int, int], float] = {}
    for row in table.select(["layer", "head", "n", "mean"]).to_pylist():
        if row["layer"] is not None and row["head"] is not None:
            head = (row["layer"], row["head"])
            held[head] = held.get(head, 0.0) + sign * row["n"] * row["mean"]
    if len(held) < top:
        raise ConfigError(f"heads {document.name!r} has figures of {len(held)} heads, not of {top}")
    return sorted(held, key=lambda head: (-held[head], head))[:top]


class _Directions:
    """Looks directions up and says what is odd about them."""

    def __init__(
        self, model: ModelIdentity, dtype: str, store: str, options: Mapping[str, object], notice: Notice
    ) -> None:
        self._model, self._dtype, self._store, self._options, self._notice = model, dtype, store, options, notice

    def find(self, given: str) -> tuple[npt.NDArray[np.float32], str]:
        """Return a vector, and where it is from in words."""
        if is_file(given):
            return read_direction(given, self._options)[0], f"file {public_name(given)}"
        if not self._store and "/" not in given:
            raise ConfigError(
                f"direction {given!r}: say of which store the probe is, STORE/probes/{given}, or give a file"
            )
        document, weights, _ = read_named_probe(given, self._store, self._options)
        if document.site == FINAL_NORM:
            self._notice(
                f"probe {document.name!r} reads what comes behind the final norm: as a direction of the residual "
                "stream it is another one; one that was fitted at resid_post is meant, as a rule"
            )
        if model_key(document.model, self._dtype) != model_key(self._model, self._dtype):
            self._notice(f"probe {document.name!r} was fitted on another model ({document.model.name})")
        return weights.w_D, f"probe {document.name}"


def _heads(step: ScaleHeadsConfig, store: str, options: Mapping[str, object]) -> HeadScaling:
    chosen: Sequence[tuple[int, int] | tuple[int, int, float]] = step.heads
    if step.table is not None and step.top is not None:
        store, name = _table(step.table, store)
        chosen = suppressors(*read_heads(ObjectStore(store, options), name), step.top)
    heads = [
        HeadFactors(layer=one[0], head=one[1], factors=[one[2] if len(one) == 3 else step.factor])
        for one in sorted(chosen)
    ]
    return HeadScaling(heads=heads, positions=step.positions, keep_norm=step.keep_norm)


def _table(given: str, store: str) -> tuple[str, str]:
    """Return the store and the name of figures of heads."""
    head, slash, name = given.rstrip("/").rpartition("/")
    if not slash and store:
        return store, given
    if not head.endswith(layout.HEADS):
        raise ConfigError(f"table {given!r}: say of which store the figures are, STORE/{layout.HEADS}/{name}")
    return head.removesuffix(layout.HEADS).rstrip("/") or ".", name


def _channels(step: ScaleChannelsConfig, options: Mapping[str, object]) -> HeadScaling:
    heads = []
    for name, factors in read_arrays(step.file, options).items():
        matched = _HEAD.fullmatch(name)
        if matched is None:
            raise ConfigError(f"{step.file}: array {name!r} is of no head: call them such as L12H3")
        found = [float(one) for one in np.ravel(factors)]
        heads.append(HeadFactors(layer=int(matched[1]), head=int(matched[2]), factors=found))
    heads.sort(key=lambda one: (one.layer, one.head))
    return HeadScaling(heads=heads, positions=step.positions, keep_norm=step.keep_norm)


def _vector(
    step: AblateConfig | SteerConfig, model: ModelIdentity, directions: _Directions
) -> DirectionAblation | Steering:
    vector_D, origin = directions.find(step.direction)
    layers = parse_layers(step.layers, model.n_layers)
    if isinstance(step, AblateConfig):
        return DirectionAblation(
            vector=vector_text(vector_D),
            sites=list(dict.fromkeys(step.sites)),
            layers=layers,
            positions=step.positions,
            keep_norm=step.keep_norm,
            origin=origin,
        )
    if step.unit:
        vector_D = vector_D / np.float32(np.linalg.norm(vector_D.astype(np.float64)) or 1.0)
    return Steering(
        vector=vector_text(vector_D),
        sites=[step.site],
        layers=layers,
        factor=step.factor,
        positions=step.positions,
        keep_norm=step.keep_norm,
        origin=origin,
    )
