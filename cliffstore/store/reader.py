"""Reading a store: its documents, its committed units, and any of its vectors.

Only listings of receipts decide what is extracted. Vectors of rows without a receipt are never returned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from threading import Lock

import numpy as np
import numpy.typing as npt

from cliffstore.errors import DamagedStoreError, StorageError, StoreError
from cliffstore.schema import FORMAT_VERSION, CaptureDocument, Manifest, PlanDocument, Receipt, damaged
from cliffstore.store import documents, gather, layout, receipts
from cliffstore.store.arrays import ArraySpec, Vectors, open_arrays
from cliffstore.store.chunks import ChunkCache
from cliffstore.store.objects import ObjectStore
from cliffstore.store.plans import PlanTables
from cliffstore.store.writer import capture_specs

_FIRST_CONTACT_SECONDS = 15.0
"""A store that has never answered may not be there at all; one that did is waited for much longer."""


def read_manifest(objects: ObjectStore) -> Manifest | None:
    """Return the manifest, or None where there is no store.

    Raises
    ------
    StoreError
        What is there is not a store of a format that this version reads.
    DamagedStoreError
        There is a store, and its manifest is damaged.
    """
    try:
        content = objects.get(layout.MANIFEST, patience=_FIRST_CONTACT_SECONDS)
    except FileNotFoundError:
        if documents.copy_is_intact(objects, layout.MANIFEST):
            raise damaged(layout.MANIFEST, "is missing") from None
        return None
    except StorageError as error:
        raise StoreError(f"{error}: check the URL and the endpoint") from None
    except OSError as error:
        raise StoreError(f"store {objects.url} cannot be read: {error.strerror or error}") from None
    try:
        manifest = documents.parse(Manifest, layout.MANIFEST, content)
    except DamagedStoreError:
        if documents.copy_is_intact(objects, layout.MANIFEST):
            raise
        if _format_version(content) > FORMAT_VERSION:
            raise _too_new(objects, _format_version(content)) from None
        if objects.exists(layout.copy_of(layout.MANIFEST)):
            raise
        raise StoreError(
            f"store {objects.url}: {layout.MANIFEST} is not a cliffstore manifest; give another --store"
        ) from None
    if manifest.format_version > FORMAT_VERSION:
        raise _too_new(objects, manifest.format_version)
    return manifest


def _too_new(objects: ObjectStore, version: int) -> StoreError:
    return StoreError(
        f"store {objects.url} has format version {version}, this cliffstore reads up to {FORMAT_VERSION}: "
        "install a newer cliffstore"
    )


def _format_version(content: bytes) -> int:
    """Return what a manifest of whatever version says, 0 where it says nothing."""
    try:
        found = json.loads(content)
    except ValueError:
        return 0
    version = found.get("format_version") if isinstance(found, dict) else None
    return version if isinstance(version, int) else 0


class StoreReader:
    """What a store holds. Its documents, and which units are extracted, are listed once, when first asked for.

    Parameters
    ----------
    url : path or fsspec URL
    storage_options : handed to fsspec

    Raises
    ------
    StoreError
        There is no store at `url`, or it has a newer format.
    """

    def __init__(self, url: str, storage_options: Mapping[str, object] | None = None) -> None:
        self.objects = ObjectStore(url, storage_options)
        manifest = read_manifest(self.objects)
        if manifest is None:
            raise StoreError(f"there is no store at {url}: make one with `cliffstore extract ... --store {url}`")
        self.manifest = manifest
        self.arrays = open_arrays(self.objects)
        self._chunks = ChunkCache()
        self._committed_rows: dict[str, npt.NDArray[np.int64]] = {}
        self._counting = Lock()

    @property
    def url(self) -> str:
        return self.objects.url

    def plans(self) -> list[PlanDocument]:
        """Return the plans of the store, in the order of their places."""
        return list(self._plans)

    @cached_property
    def _plans(self) -> list[PlanDocument]:
        keys = [key for key in self._plan_files if layout.kind_of(key) == "plan"]
        return sorted(documents.read_many(self.objects, PlanDocument, keys), key=lambda plan: plan.place)

    def table_sizes(self, kind: str) -> dict[str, int]:
        """Return keys and sizes of the tables of one kind (`examples`, `units` ...) of all plans."""
        wanted = {(plan.plan, kind) for plan in self._plans}
        return {key: size for key, size in self._plan_files.items() if layout.plan_table(key) in wanted}

    @cached_property
    def _plan_files(self) -> dict[str, int]:
        return self.objects.sizes(layout.PLANS)

    @cached_property
    def plan_tables(self) -> PlanTables:
        """The tables of all plans, by unit."""
        return PlanTables(self.objects, [plan.plan for plan in self._plans])

    def captures(self) -> list[CaptureDocument]:
        """Return the captures of the store, by alias and name."""
        return list(self._captures)

    def receipts(self, capture: str) -> list[Receipt]:
        """Return the receipts of a capture."""
        return receipts.read_all(self.objects, capture)

    @cached_property
    def aliases(self) -> list[str]:
        """Aliases of the models that the store has captures of."""
        return sorted({capture.alias for capture in self._captures})

    def find_array(self, site: str, layer: int, alias: str | None = None) -> tuple[CaptureDocument, ArraySpec]:
        """Return the capture and the array of a (model, site, layer).

        Raises
        ------
        StoreError
            It is not captured; the message names what is.
        """
        alias = alias or self.default_alias()
        found = self._arrays_by_name.get((alias, site, layer))
        if found is None:
            raise StoreError(self._what_is_captured(site, layer, alias))
        return found

    @cached_property
    def _arrays_by_name(self) -> dict[tuple[str, str, int], tuple[CaptureDocument, ArraySpec]]:
        found: dict[tuple[str, str, int], tuple[CaptureDocument, ArraySpec]] = {}
        for capture in self._captures:
            for spec in capture_specs(capture):
                found.setdefault((spec.alias, spec.site, spec.layer), (capture, spec))
        return found

    @cached_property
    def _captures(self) -> list[CaptureDocument]:
        keys = [key for key in self.objects.list(layout.CAPTURES) if key.endswith(".json")]
        return list(documents.read_many(self.objects, CaptureDocument, keys))

    def default_alias(self) -> str:
        """Return `main`, or the only model there is."""
        return self.aliases[0] if len(self.aliases) == 1 else "main"

    def _what_is_captured(self, site: str, layer: int, alias: str) -> str:
        specs = [spec for capture in self._captures for spec in capture_specs(capture)]
        if alias not in {spec.alias for spec in specs}:
            return f"store {self.url} has no model {alias!r}; it has: {', '.join(self.aliases) or 'none'}"
        sites = sorted({spec.site for spec in specs if spec.alias == alias})
        if site not in sites:
            return f"store {self.url} has no site {site!r} of model {alias!r}; it has: {', '.join(sites)}"
        layers = sorted({spec.layer for spec in specs if (spec.alias, spec.site) == (alias, site)})
        return f"store {self.url} has no layer {layer} of {site}; it has: {compact_ranges(layers)}"

    def extracted(self, capture: str, rows_N: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return for each row whether a receipt of the capture covers it, from a listing made once."""
        with self._counting:
            if capture not in self._committed_rows:
                self._committed_rows[capture] = self._count_committed_rows(capture)
            counts_U = self._committed_rows[capture]
        unit_rows = self.manifest.chunking.unit_rows
        unit_N = np.clip(rows_N // unit_rows, 0, len(counts_U) - 1)
        return (rows_N >= 0) & (rows_N - unit_N * unit_rows < counts_U[unit_N])

    def _count_committed_rows(self, capture: str) -> npt.NDArray[np.int64]:
        """Return the rows of each unit that a receipt covers, int64 [highest unit + 2], zero behind the last unit."""
        units = self.plan_tables.units
        done = receipts.committed(self.objects, capture)
        counts_U = np.zeros(max(units, default=-1) + 2, dtype=np.int64)
        for number in done & units.keys():
            counts_U[number] = units[number].n_rows
        return counts_U

    def find_extracted(
        self, site: str, layer: int, rows_N: npt.NDArray[np.int64], alias: str | None = None
    ) -> ArraySpec:
        """Return the array of a (model, site, layer), of which these rows are all extracted.

        Raises
        ------
        StoreError
            The array is not captured, or one of the rows is not extracted.
        """
        capture, spec = self.find_array(site, layer, alias)
        missing = ~self.extracted(capture.capture, rows_N)
        if missing.any():
            raise StoreError(
                f"row {rows_N[missing][0]} of {spec.name} is not extracted ({int(missing.sum())} of {len(rows_N)} "
                "rows are missing): run the same `cliffstore extract` again"
            )
        return spec

    def vectors(
        self, site: str, layer: int, rows_N: npt.NDArray[np.int64], alias: str | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the vectors of rows as float32 [N, ...], in the given order; each chunk is read once.

        Raises
        ------
        StoreError
            The array is not captured, or one of the rows is not extracted.
        """
        spec = self.find_extracted(site, layer, rows_N, alias)
        return gather.read_float32(self.arrays, spec.key, spec.dtype, rows_N)

    def extracted_vectors(
        self, site: str, layer: int, rows_N: npt.NDArray[np.int64], alias: str | None = None
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        """Return which of the rows are extracted, and the vectors of those, flattened to float32 [M, width].

        For many small calls that cannot tell what comes next: chunks are kept for later calls, in bounded memory.
        """
        capture, spec = self.find_array(site, layer, alias)
        extracted_N = self.extracted(capture.capture, rows_N)
        wanted_M = rows_N if extracted_N.all() else rows_N[extracted_N]
        found = gather.read_float32(self.arrays, spec.key, spec.dtype, wanted_M, cache=self._chunks)
        return extracted_N, found.reshape(len(found), int(np.prod(spec.row_shape)))

    def stored_vectors(self, spec: ArraySpec, rows_N: npt.NDArray[np.int64]) -> Vectors:
        """Return rows as they are stored, without asking for receipts."""
        return gather.read_rows(self.arrays, spec.key, rows_N)


def compact_ranges(numbers: list[int]) -> str:
    """Return sorted numbers the way `--layers` takes them: '0-29' or '8,16,20-22'."""
    parts: list[str] = []
    start = 0
    for index, number in enumerate(numbers):
        last = index + 1 == len(numbers) or numbers[index + 1] != number + 1
        if last:
            first = numbers[start]
            parts.append(str(first) if first == number else f"{first}-{number}")
            start = index + 1
    return ",".join(parts)
