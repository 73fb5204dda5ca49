"""What a probe is told, and which examples have which label. Read batch by batch: of a prompt only a digest is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.analyze.split import Groups, Labels, prompt_digests
from cliffstore.errors import ProbeError
from cliffstore.store.catalog import Catalog

_TRUE_FALSE = ({"0", "1"}, {"false", "true"})

Notice = Callable[[str], None]
Ordinals = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What to fit.

    Attributes
    ----------
    label : a column or SQL expression over `examples`; `where` and `test_where` are conditions
    positions : places as `places.parse_places` reads them
    test_store : URL of a store of the same model, whose examples are a test set
    c, shrinkage : None where cross-validation chooses
    memory_budget : bytes of vectors in memory at once, None for what this machine has
    out_of_core : fit over units, whatever the budget
    """

    name: str
    kind: Literal["logistic", "mean_difference", "lda"] = "logistic"
    label: str = "label"
    positive: str | None = None
    site: str = "resid_post"
    layers: str = "all"
    positions: str = "decision"
    model: str | None = None
    where: str | None = None
    test_where: str | None = None
    test_store: str | None = None
    c: float | None = None
    shrinkage: float | None = None
    class_weight: Literal["balanced", "none"] = "balanced"
    seed: int = 0
    memory_budget: int | None = None
    out_of_core: bool = False


@dataclass(frozen=True, slots=True)
class LabelledExamples:
    """Examples that have a label.

    Attributes
    ----------
    examples_E : ordinals int64, ascending
    y_E : 0 or 1
    groups_E : digests of their prompts, uint64
    """

    examples_E: Ordinals
    y_E: Labels
    groups_E: Groups

    def find(self, examples_N: Ordinals) -> npt.NDArray[np.int64]:
        """Return the index of each example, -1 where it is not among these."""
        index_N = np.minimum(np.searchsorted(self.examples_E, examples_N), len(self.examples_E) - 1)
        return np.where(self.examples_E[index_N] == examples_N, index_N, -1)

    def chosen(self, keep_E: npt.NDArray[np.bool_]) -> LabelledExamples:
        """Return some of them."""
        return LabelledExamples(self.examples_E[keep_E], self.y_E[keep_E], self.groups_E[keep_E])


def read_labels(
    catalog: Catalog, settings: ProbeSettings, where: str | None, notice: Notice
) -> tuple[LabelledExamples, str]:
    """Return the labelled examples, and which value of the label is the positive class.

    Raises
    ------
    ProbeError
        There are none, the positive class is not said, or only one class is there.
    """
    # On lines of their own, so that a comment ends where they do. NaN is what a table of numbers has for no label.
    condition = f"WHERE (\n{where}\n)" if where else ""
    statement = (
        "SELECT e.example, e.prompt, CASE WHEN typeof(e._label) IN ('FLOAT', 'DOUBLE') "
        "AND CAST(e._label AS VARCHAR) = 'nan' THEN NULL ELSE CAST(e._label AS VARCHAR) END AS label "
        f"FROM (SELECT *, (\n{settings.label}\n) AS _label FROM examples {condition}) e"
    )
    codes: dict[str, int] = {}
    parts: list[tuple[Ordinals, npt.NDArray[np.int64], Groups]] = []
    unlabelled = 0
    for batch in catalog.batches(statement):
        labelled = batch.filter(batch.column("label").is_valid())
        unlabelled += batch.num_rows - labelled.num_rows
        parts.append(
            (
                labelled.column("example").to_numpy().astype(np.int64),
                _coded(labelled.column("label"), codes),
                prompt_digests(labelled.column("prompt").to_pylist()),
            )
        )
    if unlabelled:
        notice(f"{unlabelled} examples have no {settings.label} and are left out")
    if not codes:
        raise ProbeError(one_class(settings, where, [], 0))
    positive = _positive(settings, sorted(codes))
    examples_E, code_E, groups_E = (np.concatenate(one) for one in zip(*parts, strict=True))
    order = np.argsort(examples_E)
    y_E = (code_E == codes.get(positive, -1)).astype(np.int64)
    found = LabelledExamples(examples_E[order], y_E[order], groups_E[order])
    if len(np.unique(y_E)) < 2:
        raise ProbeError(one_class(settings, where, sorted(codes), len(y_E)))
    return found, positive


def one_class(settings: ProbeSettings, where: str | None, values: Sequence[str], n: int) -> str:
    """Return what to tell where only one class is there, or none."""
    chosen = f" where {where}" if where else ""
    if not n:
        return f"no extracted example{chosen} has a {settings.label}"
    return f"{settings.label} has one class only{chosen} ({_shown(values)}, {n} examples): a probe needs two"


def _coded(labels: pa.Array, codes: dict[str, int]) -> npt.NDArray[np.int64]:
    """Return the number of each label; labels that are new get the next numbers."""
    encoded = labels.dictionary_encode()
    table = np.array([codes.setdefault(value, len(codes)) for value in encoded.dictionary.to_pylist()], dtype=np.int64)
    return table[encoded.indices.to_numpy()] if len(table) else np.zeros(0, dtype=np.int64)


def _positive(settings: ProbeSettings, values: Sequence[str]) -> str:
    if settings.positive is not None:
        if settings.positive not in values:
            raise ProbeError(f"--positive {settings.positive!r} is not a value of {settings.label}: {_shown(values)}")
        return settings.positive
    for pair in _TRUE_FALSE:
        if set(values) <= pair:
            return max(pair)
    raise ProbeError(f"{settings.label} has the values {_shown(values)}: say which one is the class with --positive")


def _shown(values: Sequence[str]) -> str:
    listed = ", ".join(repr(value) for value in values[:8])
    return f"{listed}, ... ({len(values)} in all)" if len(values) > 8 else listed or "none"
