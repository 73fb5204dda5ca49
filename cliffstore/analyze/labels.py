"""What a probe is fitted on: the rows of examples at their decision position, their labels, and the layers to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.config import parse_ranges
from cliffstore.errors import ProbeError
from cliffstore.store.catalog import Catalog
from cliffstore.store.reader import StoreReader, compact_ranges
from cliffstore.store.writer import capture_specs

_TRUE_FALSE = ({"0", "1"}, {"false", "true"})

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What to fit. `label` is a column or SQL expression over `examples`; `where` and `test_where` are conditions."""

    name: str
    label: str = "label"
    positive: str | None = None
    site: str = "resid_post"
    layers: str = "all"
    model: str | None = None
    where: str | None = None
    test_where: str | None = None
    c: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Examples at their decision position: row int64 [N], y 0 or 1 [N], the prompt of each."""

    rows_N: npt.NDArray[np.int64]
    y_N: npt.NDArray[np.int64]
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FitInputs:
    """All that a fit depends on, vectors apart: the layers and captures to read, and which rows have which label."""

    settings: ProbeSettings
    alias: str
    layers: tuple[int, ...]
    captures: tuple[str, ...]
    positive: str
    labels: LabelledRows
    test: LabelledRows | None

    @property
    def digest(self) -> str:
        """sha256: a probe fitted on equal inputs is the same probe, whatever its name."""
        named = {**asdict(self.settings), "name": "", "alias": self.alias, "layers": self.layers}
        found = hashlib.sha256(json.dumps([named, self.captures, self.positive]).encode())
        for rows in (self.labels, self.test):
            if rows is not None:
                found.update(rows.rows_N.tobytes() + rows.y_N.tobytes())
                for prompt in rows.prompts:  # the split depends on them
                    content = prompt.encode()
                    found.update(len(content).to_bytes(8, "little") + content)
        return found.hexdigest()


def find_inputs(catalog: Catalog, settings: ProbeSettings, notice: Notice) -> FitInputs:
    """Return what a fit would use.

    Raises
    ------
    ProbeError
        One class only, an unknown label.
    StoreError
        A layer or site is not captured.
    """
    reader = catalog.reader
    alias = settings.model or reader.default_alias()
    layers = captured_layers(reader, settings.site, alias, settings.layers)
    captures = tuple(reader.find_array(settings.site, layer, alias)[0].capture for layer in layers)
    labels, positive = _read_labels(catalog, settings, settings.where, notice)
    test = _test_rows(catalog, settings, labels, positive, notice)
    return FitInputs(settings, alias, tuple(layers), captures, positive, labels, test)


def captured_layers(reader: StoreReader, site: str, alias: str, text: str) -> list[int]:
    """Return the layers that `text` (`all`, `0-29`, `8,16`) names among those captured.

    Raises
    ------
    ProbeError
        A layer is not captured, or nothing of the site is.
    """
    held = sorted(
        spec.layer
        for capture in reader.captures()
        for spec in capture_specs(capture)
        if (spec.alias, spec.site) == (alias, site)
    )
    if not held:
        reader.find_array(site, -1, alias)  # raises, and says what is captured
    if text.strip() == "all":
        return held
    ranges = parse_ranges(text)
    absent = [layer for one in ranges for layer in (one.start, one.stop - 1) if layer not in held]
    if absent:
        raise ProbeError(f"layer {absent[0]} of {site} is not in the store; it has: {compact_ranges(held)}")
    return [layer for layer in held if any(layer in one for one in ranges)]


def _read_labels(
    catalog: Catalog, settings: ProbeSettings, where: str | None, notice: Notice
) -> tuple[LabelledRows, str]:
    table = _stored_only(_select(catalog, settings, where), where, notice)
    unlabelled = table["label"].null_count
    if unlabelled:
        notice(f"{unlabelled} examples have no {settings.label} and are left out")
    values = sorted({str(value) for value in table["label"].to_pylist() if value is not None})
    positive = _positive(settings, values)
    rows_N = table["row"].to_numpy()
    stored_N = _extracted(catalog.reader, settings, rows_N)
    if not stored_N.all():
        notice(f"{int((~stored_N).sum())} examples are not extracted yet and are left out")
    keep = stored_N & np.array([value is not None for value in table["label"].to_pylist()], dtype=bool)
    y_N = np.array([int(value == positive) for value in table["label"].to_pylist()], dtype=np.int64)
    prompts = np.array(table["prompt"].to_pylist(), dtype=object)
    if len(set(y_N[keep].tolist())) < 2:
        raise ProbeError(_one_class(settings, where, values, int(keep.sum())))
    return LabelledRows(rows_N[keep], y_N[keep], tuple(prompts[keep].tolist())), positive


def _select(catalog: Catalog, settings: ProbeSettings, where: str | None) -> pa.Table:
    condition = f"WHERE ({where})" if where else ""
    return catalog.arrow(
        f"SELECT e.id, e.prompt, CAST(e._label AS VARCHAR) AS label, t.row FROM "
        f"(SELECT *, ({settings.label}) AS _label FROM examples {condition}) e "
        "JOIN tokens t USING (example) WHERE t.to_decision = 0 ORDER BY e.id"
    )


def _stored_only(table: pa.Table, where: str | None, notice: Notice) -> pa.Table:
    """Leave out examples whose decision position is not among the stored ones (`extract --positions`)."""
    unstored = table["row"].null_count
    if unstored and unstored == table.num_rows:
        chosen = f" where {where}" if where else ""
        raise ProbeError(
            f"no example{chosen} has a vector at its decision position, on which a probe is fitted: "
            "extract with `decision` among the --positions, into another --store"
        )
    if unstored:
        notice(f"{unstored} examples have no vector at their decision position and are left out")
    return table.filter(table["row"].is_valid())


def _extracted(reader: StoreReader, settings: ProbeSettings, rows_N: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    alias = settings.model or reader.default_alias()
    layer = captured_layers(reader, settings.site, alias, settings.layers)[0]
    capture, _ = reader.find_array(settings.site, layer, alias)
    return reader.extracted(capture.capture, rows_N)


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


def _one_class(settings: ProbeSettings, where: str | None, values: Sequence[str], n: int) -> str:
    chosen = f" where {where}" if where else ""
    if not n:
        return f"no extracted example{chosen} has a {settings.label}"
    return f"{settings.label} has one class only{chosen} ({_shown(values)}, {n} examples): a probe needs two"


def _test_rows(
    catalog: Catalog, settings: ProbeSettings, labels: LabelledRows, positive: str, notice: Notice
) -> LabelledRows | None:
    if settings.test_where is None:
        return None
    test, _ = _read_labels(catalog, replace(settings, positive=positive), settings.test_where, notice)
    known = set(labels.prompts)
    unseen = np.array([prompt not in known for prompt in test.prompts], dtype=bool)
    if not unseen.all():
        notice(f"{int((~unseen).sum())} test examples have a prompt that the probe was fitted with and are left out")
    kept = LabelledRows(test.rows_N[unseen], test.y_N[unseen], tuple(p for p in test.prompts if p not in known))
    if len(set(kept.y_N.tolist())) < 2:
        raise ProbeError("--test-where leaves one class only: a test needs two")
    return kept
