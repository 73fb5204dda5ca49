"""Where everything lies in a store. The only module that builds or parses keys."""

from __future__ import annotations

import re

MANIFEST = "manifest.json"
PLANS = "plans"
CAPTURES = "captures"
ACTIVATIONS = "activations"
RECEIPTS = "receipts"
PROBES = "probes"
SCORES = "scores"
CLIFFS = "cliffs"
HEADS = "heads"
SELECTIONS = "selections"

_PLAN_TABLE = re.compile(rf"^{PLANS}/([^/]+)/(\w+)(?:/[^/]+)?\.parquet$")
_UNIT = re.compile(r"/unit-(\d+)\.(?:json|parquet)$")
_UNIT_ERROR = re.compile(r"/unit-(\d+)\.error\.json$")


def plan_document(plan: str) -> str:
    return f"{PLANS}/{plan}/plan.json"


def units_table(plan: str) -> str:
    return f"{PLANS}/{plan}/units.parquet"


def skipped_table(plan: str) -> str:
    return f"{PLANS}/{plan}/skipped.parquet"


def examples_table(plan: str, unit: int) -> str:
    return f"{PLANS}/{plan}/examples/unit-{unit:06d}.parquet"


def tokens_table(plan: str, unit: int) -> str:
    return f"{PLANS}/{plan}/tokens/unit-{unit:06d}.parquet"


def capture_document(alias: str, capture: str) -> str:
    return f"{CAPTURES}/{alias}/{capture}.json"


def site_group(alias: str, site: str) -> str:
    return f"{ACTIVATIONS}/{alias}/{site}"


def array(alias: str, site: str, layer: int) -> str:
    return f"{ACTIVATIONS}/{alias}/{site}/{layer}"


def shard(array_key: str, unit: int, n_dimensions: int) -> str:
    """Return the key of the object that holds one unit of an array (Zarr v3's default chunk keys)."""
    return "/".join([array_key, "c", str(unit), *("0" for _ in range(n_dimensions - 1))])


def receipts_of(capture: str) -> str:
    return f"{RECEIPTS}/{capture}"


def receipt(capture: str, unit: int) -> str:
    return f"{RECEIPTS}/{capture}/unit-{unit:06d}.json"


def unit_error(capture: str, unit: int) -> str:
    return f"{RECEIPTS}/{capture}/unit-{unit:06d}.error.json"


def probe_document(name: str) -> str:
    return f"{PROBES}/{name}/probe.json"


def probe_weights(name: str) -> str:
    return f"{PROBES}/{name}/probe.safetensors"


def scores_of(probe: str) -> str:
    return f"{SCORES}/{probe}"


def scores_table(probe: str, unit: int) -> str:
    return f"{SCORES}/{probe}/unit-{unit:06d}.parquet"


def scores_receipt(probe: str, unit: int) -> str:
    return f"{SCORES}/{probe}/unit-{unit:06d}.json"


def cliffs_table(probe: str) -> str:
    return f"{CLIFFS}/{probe}.parquet"


def selection_table(name: str) -> str:
    return f"{SELECTIONS}/{name}.parquet"


def plan_table(key: str) -> tuple[str, str] | None:
    """Return plan and kind (`examples`, `units` ...) of a table of a plan; None for any other key."""
    match = _PLAN_TABLE.search(key)
    return (match.group(1), match.group(2)) if match else None


def plan_of(key: str) -> str:
    """Return the plan that the key of one of its objects names."""
    return key.split("/")[1]


def probe_of(key: str) -> str:
    """Return the probe that the key of one of its scores names."""
    return key.split("/")[1]


def unit_of(key: str) -> int | None:
    """Return the unit number of a receipt, examples, tokens or scores key; None for any other key."""
    match = _UNIT.search(key)
    return int(match.group(1)) if match else None


def unit_of_error(key: str) -> int | None:
    """Return the unit number of a unit error's key; None for any other key."""
    match = _UNIT_ERROR.search(key)
    return int(match.group(1)) if match else None


def stem(key: str) -> str:
    """Return the last part of a key without its suffix: the name of a capture, selection or cliffs table."""
    return key.rsplit("/", 1)[-1].rsplit(".", 1)[0]
