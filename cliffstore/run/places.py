"""Places of plans: which unit numbers and ordinals each plan of a store has.

A place is reserved by a create-only object before the plan's tables are written, so two appends never number the same
units, and a plan that is begun again after a crash finds its place, and with it equal tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from cliffstore.errors import StoreError
from cliffstore.schema import PlanPlace
from cliffstore.store import documents, layout
from cliffstore.store.objects import ObjectStore


def read_places(objects: ObjectStore) -> list[PlanPlace]:
    """Return the places of a store, in order."""
    return [documents.read(objects, PlanPlace, key) for key in objects.list(layout.places())]


def place_of(plan: str, places: Sequence[PlanPlace]) -> PlanPlace | None:
    """Return the place that a plan has already."""
    return next((place for place in places if place.plan == plan), None)


def next_numbers(places: Sequence[PlanPlace]) -> tuple[int, int, int]:
    """Return number, first unit and first ordinal of the next place."""
    if not places:
        return 0, 0, 0
    last = places[-1]
    return last.number + 1, last.first_unit + last.n_units, last.first_example + last.n_examples


def units_placed(objects: ObjectStore) -> int:
    """Return the number of units that the arrays of a store need room for."""
    return next_numbers(read_places(objects))[1]


def claim(objects: ObjectStore, place: PlanPlace) -> None:
    """Reserve a place. Raises `StoreError` where another plan has it."""
    documents.create(objects, place)
    held = documents.read(objects, PlanPlace, layout.place(place.number))
    if held != place:
        raise StoreError(
            f"store {objects.url}: another process appended to the store just now ({held.plan}); run the command again"
        )
