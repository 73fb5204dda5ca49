"""Sections of a file with several: what one takes from outside it."""

from __future__ import annotations

from collections.abc import Mapping


def name_in(given: Mapping[str, object], section: str) -> object:
    found = given.get(section)
    return found.get("name") if isinstance(found, Mapping) else None


def inherit(given: Mapping[str, object], section: str, shared: Mapping[str, object], **names: object) -> object:
    """Return a section with what it has from outside; an empty one is a mapping too."""
    found = {} if given[section] is None else given[section]
    if not isinstance(found, Mapping):
        return found
    for name in ("store", "storage_options"):
        if name in found:
            raise ValueError(f"{section}.{name}: say it once, outside the section")
    handed = {name: shared[name] for name in ("store", "storage_options") if name in shared}
    return {**{name: value for name, value in names.items() if value is not None}, **found, **handed}
