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
EXPERIMENTS = "experiments"
SELECTIONS = "selections"
COPIES = "copies"
GENERATION = "generation.json"
GENERATION_RECEIPT = "complete.json"
GENERATION_WORK = "work.parquet"
GENERATION_PIECES = "pieces"
"""What a generation keeps in a folder beside its output, which is no store."""
TEMPORARY = ".tmp-"
"""Beginning of the names of files that are not whole yet, on local disks."""
_FOREIGN_TEMPORARIES = (".__lock", ".partial")
"""Ends of the names of such files of tensorstore and zarr-python."""

KINDS: dict[str, str] = {
    "shard": r"activations/[^/]+/[^/]+/\d+/c/\d+(?:/0)+",
    "receipt": r"receipts/[^/]+/unit-\d+\.json",
    "manifest": r"manifest\.json",
    "place": r"plans/order/\d+\.json",
    "plan": r"plans/[^/]+/plan\.json",
    "plan_table": r"plans/[^/]+/(?:units|skipped|(?:examples|tokens)/[^/]+)\.parquet",
    "capture": r"captures/[^/]+/[^/]+\.json",
    "metadata": r"(?:activations(?:/[^/]+){0,3}/)?zarr\.json",
    "unit_error": r"receipts/(?:scores/)?[^/]+/unit-\d+\.error\.json",
    "probe": r"probes/[^/]+/probe\.json",
    "weights": r"probes/[^/]+/probe\.safetensors",
    "score_receipt": r"scores/[^/]+/unit-\d+\.json",
    "scores": r"scores/[^/]+/unit-\d+\.parquet",
    "cliffs": r"cliffs/[^/]+\.json",
    "cliffs_table": r"cliffs/[^/]+\.parquet",
    "heads": r"heads/[^/]+\.json",
    "heads_table": r"heads/[^/]+\.parquet",
    "heads_piece": r"heads/[^/]+/[0-9a-f]+\.piece",
    "experiment": r"experiments/[^/]+\.json",
    "experiment_table": r"experiments/[^/]+\.parquet",
    "experiment_piece": r"experiments/[^/]+/[0-9a-f]+\.piece",
    "selection": r"selections/[^/]+\.json",
    "selection_table": r"selections/[^/]+\.parquet",
    "generation": r"generation\.json",
    "generation_receipt": r"complete\.json",
}
"""Every kind of object that a store holds, and its keys; those first of which there are most. JSON documents are called
as in `schema.DOCUMENTS`."""
COPIED = ("manifest", "place", "plan", "capture", "probe", "weights", "cliffs", "heads", "experiment", "selection")
"""Kinds from which nothing else could be made again: their bytes are kept a second time below `copies/`."""

_KINDS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
_SHARD = re.compile(r"(activations/[^/]+/[^/]+/\d+)/c/(\d+)(?:/0)+")
_UNIT = re.compile(r"/unit-(\d+)\.(?:json|parquet)$")
_UNIT_ERROR = re.compile(r"/unit-(\d+)\.error\.json$")


def plan_document(plan: str) -> str:
    return f"{PLANS}/{plan}/plan.json"


def units_table(plan: str) -> str:
    return f"{PLANS}/{plan}/units.parquet"


def skipped_table(plan: str) -> str:
    return f"{PLANS}/{plan}/skipped.parquet"


def examples_part(plan: str, part: int) -> str:
    return f"{PLANS}/{plan}/examples/part-{part:06d}.parquet"


def tokens_part(plan: str, part: int) -> str:
    return f"{PLANS}/{plan}/tokens/part-{part:06d}.parquet"


def places() -> str:
    return f"{PLANS}/order"


def place(number: int) -> str:
    """Return the key of the object that reserves unit numbers and ordinals for the plan of this number."""
    return f"{PLANS}/order/{number:06d}.json"


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


def score_errors(probe: str) -> str:
    """Return what errors of units without scores of a probe are recorded under, in the place of a capture."""
    return f"{SCORES}/{probe}"


def vouches_for(table: str) -> str:
    """Return the key of the document that commits a table of scores, cliffs, heads, experiments or selections."""
    return f"{table.removesuffix('.parquet')}.json"


def cliffs_table(probe: str) -> str:
    return f"{CLIFFS}/{probe}.parquet"


def cliffs_document(probe: str) -> str:
    return f"{CLIFFS}/{probe}.json"


def heads_table(name: str) -> str:
    return f"{HEADS}/{name}.parquet"


def heads_document(name: str) -> str:
    return f"{HEADS}/{name}.json"


def heads_pieces(name: str) -> str:
    return f"{HEADS}/{name}"


def heads_piece(name: str, digest: str) -> str:
    """Return the key of a part of what is measured of heads, as Parquet; the suffix keeps it out of the view."""
    return f"{HEADS}/{name}/{digest}.piece"


def experiment_table(name: str) -> str:
    return f"{EXPERIMENTS}/{name}.parquet"


def experiment_document(name: str) -> str:
    return f"{EXPERIMENTS}/{name}.json"


def experiment_pieces(name: str) -> str:
    return f"{EXPERIMENTS}/{name}"


def experiment_piece(name: str, digest: str) -> str:
    """Return the key of the figures of one condition, as Parquet; the suffix keeps it out of the view."""
    return f"{EXPERIMENTS}/{name}/{digest}.piece"


def selection_table(name: str) -> str:
    return f"{SELECTIONS}/{name}.parquet"


def selection_document(name: str) -> str:
    return f"{SELECTIONS}/{name}.json"


def generation_piece(unit: int) -> str:
    return f"{GENERATION_PIECES}/unit-{unit:06d}.parquet"


def in_plan(plan: str, path: str) -> str:
    """Return the key of a table by its path below the plan's folder, as `plan.json` names it."""
    return f"{PLANS}/{plan}/{path}"


def path_in_plan(key: str) -> str:
    """Return what `in_plan` was given."""
    return key.split("/", 2)[2]


def copy_of(key: str) -> str:
    return f"{COPIES}/{key}"


def original_of(copy: str) -> str | None:
    """Return the key that a copy is of; None for a key that is no copy."""
    return copy.removeprefix(f"{COPIES}/") if copy.startswith(f"{COPIES}/") else None


def kind_of(key: str) -> str | None:
    """Return which of `KINDS` an object is by its key; None where cliffstore writes no such key."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(key)), None)


def is_temporary(key: str) -> bool:
    """Return whether an object is a file that somebody was still writing."""
    name = key.rsplit("/", 1)[-1]
    return name.startswith(TEMPORARY) or name.endswith(_FOREIGN_TEMPORARIES)


def array_and_unit(shard_key: str) -> tuple[str, int] | None:
    """Return the array's key and the unit of a shard; None for any other key."""
    match = _SHARD.fullmatch(shard_key)
    return (match.group(1), int(match.group(2))) if match else None


def metadata(folder: str) -> str:
    """Return the key of the Zarr metadata of an array or group; the store's own group is ''."""
    return f"{folder}/zarr.json".lstrip("/")


def plan_table(key: str) -> tuple[str, str] | None:
    """Return plan and kind (`examples`, `units` ...) of a table of a plan; None for any other key."""
    if kind_of(key) != "plan_table":
        return None
    _, plan, kind, *_ = key.split("/")
    return plan, kind.removesuffix(".parquet")


def plan_of(key: str) -> str:
    """Return the plan that the key of one of its objects names."""
    return key.split("/")[1]


def probe_of(key: str) -> str:
    """Return the probe that the key of one of its scores names."""
    return key.split("/")[1]


def unit_of(key: str) -> int | None:
    """Return the unit number of a receipt or scores key; None for any other key."""
    match = _UNIT.search(key)
    return int(match.group(1)) if match else None


def unit_of_error(key: str) -> int | None:
    """Return the unit number of a unit error's key; None for any other key."""
    match = _UNIT_ERROR.search(key)
    return int(match.group(1)) if match else None


def stem(key: str) -> str:
    """Return the last part of a key without its suffix: the name of a capture, selection or cliffs table."""
    return key.rsplit("/", 1)[-1].rsplit(".", 1)[0]
