"""A plan with its units, in the store already or with its tables in a local folder, and how it comes into the store."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from cliffstore.records import PlannedUnit
from cliffstore.run.places import claim
from cliffstore.schema import Manifest, PlanDocument, PlanPlace
from cliffstore.store.objects import ObjectStore
from cliffstore.store.plans import PlanTables, put_tables
from cliffstore.store.reader import StoreReader
from cliffstore.store.writer import commit_plan, create_manifest


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and its tables where they are not in the store yet.

    Attributes
    ----------
    document : as it is, or will be, in the store
    units : all its units, in order
    manifest : of the store, or with which it begins
    folder : local folder with the tables below it, which goes at the end of `with`; None where the store has the plan
    """

    document: PlanDocument
    units: tuple[PlannedUnit, ...]
    manifest: Manifest
    place: PlanPlace | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def tables(self) -> Path | None:
        """Where the tables are, None where they are in the store."""
        return Path(self.folder.name) / "plan" if self.folder is not None else None

    def __enter__(self) -> Planned:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the local folder."""
        if self.folder is not None:
            self.folder.cleanup()


def find_plan(held: StoreReader, name: str) -> Planned | None:
    """Return a plan of a store by its name, None where it has none."""
    document = next((plan for plan in held.plans() if plan.plan == name), None)
    return held_plan(held, document) if document is not None else None


def held_plan(held: StoreReader, document: PlanDocument) -> Planned:
    """Return a plan of a store with its units."""
    units = PlanTables(held.objects, [document.plan]).units
    return Planned(document, tuple(units.values()), held.manifest)


def write_plan(objects: ObjectStore, planned: Planned) -> None:
    """Begin the store where there is none, and write the plan unless it is there already."""
    if planned.place is None:
        return
    create_manifest(objects, planned.manifest)
    claim(objects, planned.place)
    assert planned.tables is not None
    put_tables(objects, planned.document.plan, planned.tables, planned.document.tables)
    commit_plan(objects, planned.document)
