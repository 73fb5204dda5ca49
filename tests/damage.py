"""Damage of every kind to the objects of a store, by chance, as a faulty disk, a careless hand or a forger does it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cliffstore.schema import Receipt
from cliffstore.store import documents, layout
from cliffstore.store.objects import ObjectStore

UNPLANNED = 77


@dataclass(frozen=True)
class Damage:
    """What became of some objects.

    Attributes
    ----------
    what : for the message of a failed test
    changes : key -> what lies there now, None for nothing
    """

    what: str
    changes: Mapping[str, bytes | None]

    @property
    def keys(self) -> set[str]:
        return set(self.changes)

    def apply(self, objects: ObjectStore) -> None:
        for key, content in self.changes.items():
            if content is None:
                objects.delete(key)
            else:
                objects.put(key, content)

    def undo(self, objects: ObjectStore, contents: Mapping[str, bytes]) -> None:
        for key in self.changes:
            if key in contents:
                objects.put(key, contents[key])
            else:
                objects.delete(key)


def contents_of(objects: ObjectStore) -> dict[str, bytes]:
    """Return key -> bytes of everything in a store."""
    keys = objects.list("", temporary=True)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(keys, pool.map(objects.get, keys), strict=True))


def kind_of(key: str) -> str:
    """Return the kind of an object; copies are kinds of their own."""
    original = layout.original_of(key)
    return f"copy of {layout.kind_of(original)}" if original else str(layout.kind_of(key))


def draw(contents: Mapping[str, bytes], numbers: random.Random) -> Damage:
    """Draw a damage; every kind of object is as likely as any other."""
    kinds: dict[str, list[str]] = {}
    for key in sorted(contents):
        kinds.setdefault(kind_of(key), []).append(key)
    kind = numbers.choice(sorted(kinds))
    key = numbers.choice(kinds[kind])
    content = contents[key]
    others = [other for other in kinds[kind] if contents[other] != content]
    ways = ["flip", "truncate", "delete", *(["swap"] if others else []), *(["forge"] if kind == "receipt" else [])]
    match numbers.choice(ways):
        case "flip":
            bit = numbers.randrange(8 * len(content))
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            return Damage(f"bit {bit} of {key} flipped", {key: bytes(flipped)})
        case "truncate":
            length = numbers.randrange(len(content))
            return Damage(f"{key} cut to {length} of {len(content)} bytes", {key: content[:length]})
        case "delete":
            return Damage(f"{key} deleted", {key: None})
        case "swap":
            other = numbers.choice(others)
            return Damage(f"{key} and {other} swapped", {key: contents[other], other: content})
    return forge(contents, key, numbers)


def forge(contents: Mapping[str, bytes], key: str, numbers: random.Random) -> Damage:
    """Return a receipt with a seal that fits, which says what is not so."""
    receipt = documents.parse(Receipt, key, contents[key])
    name = numbers.choice(sorted(receipt.digests))
    other = numbers.choice([one for one in contents if kind_of(one) == "receipt" and one != key])
    way = numbers.choice(["rows", "row start", "digest", "digests left out", "bytes", "content", "unplanned"])
    changes: dict[str, object] = {
        "rows": {"n_rows": receipt.n_rows + 1},
        "row start": {"row_start": receipt.row_start + 1},
        "digest": {"digests": {**receipt.digests, name: "0" * 64}},
        "digests left out": {"digests": {one: digest for one, digest in receipt.digests.items() if one != name}},
        "bytes": {"bytes": receipt.bytes + 1},
        "unplanned": {"unit": UNPLANNED},
    }
    if way == "content":
        return Damage(f"{key} forged: {other} in its place", {key: contents[other]})
    forged = receipt.model_copy(update=changes[way])
    return Damage(f"{key} forged: {way}", {documents.key_of(forged): forged.to_bytes()})


def group_of(key: str) -> str:
    """Return what else must be whole for an object to be repaired: its copy, or the rest of its unit."""
    whole = layout.original_of(key) or key
    kind, unit = kind_of(whole), layout.unit_of(whole)
    place = layout.array_and_unit(whole)
    if place is not None:
        return f"vectors of unit {place[1]}"
    if kind == "receipt":
        return f"vectors of unit {unit}"
    if kind in ("scores", "score_receipt"):
        return f"scores of unit {unit}"
    return whole


def draw_some(contents: Mapping[str, bytes], numbers: random.Random, count: int) -> list[Damage]:
    """Draw several damages that can be repaired together."""
    drawn: list[Damage] = []
    taken: set[str] = set()
    while len(drawn) < count:
        damage = draw(contents, numbers)
        groups = {group_of(key) for key in damage.keys}
        if not groups & taken:
            drawn.append(damage)
            taken |= groups
    return drawn
