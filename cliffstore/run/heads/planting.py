"""A planted model written to a folder, with what belongs to it: what `cliffstore heads planted` does."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cliffstore.errors import ConfigError
from cliffstore.model.planted.model import CORPUS, KINDS, PROBE, Planted, PlantSettings, plant

Heads = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class PlantReport:
    """What was written where, and what to try with it. Heads are (layer, head)."""

    folder: str
    files: tuple[str, ...]
    layers: int
    heads: int
    probe_layer: int
    suppressors: Heads
    writers: Heads
    gates: Heads
    decoys: Heads
    examples: int
    next: tuple[str, ...]


def plant_folder(
    folder: str, *, seed: int = 0, layers: int = 6, heads: int = 8, suppressors: int = 3, examples: int = 96
) -> PlantReport:
    """Build a planted model and write it, its corpus, probe and truth to a new or empty folder.

    Raises
    ------
    ConfigError
        A setting is out of its range, or the folder is not empty or cannot be written.
    """
    settings = PlantSettings(seed=seed, layers=layers, heads=heads, suppressors=suppressors)
    if examples < len(KINDS):
        raise ConfigError(f"examples must be at least {len(KINDS)}, one of each kind, not {examples}")
    if "://" in folder:
        raise ConfigError(f"{folder} is no local folder, and models load from local ones: name a folder")
    place = Path(folder).expanduser()
    try:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ConfigError(f"{folder} is there and not an empty folder: name a new one")
        place.parent.mkdir(parents=True, exist_ok=True)
        planted = plant(settings)
        files = _write(planted, place, examples)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror or type(error).__name__}") from None
    truth = planted.truth
    return PlantReport(
        folder=str(place),
        files=files,
        layers=layers,
        heads=heads,
        probe_layer=truth.layer,
        suppressors=truth.suppressors,
        writers=truth.writers,
        gates=truth.gates,
        decoys=truth.decoys,
        examples=examples,
        next=_next_commands(place, truth.layer),
    )


def _write(planted: Planted, place: Path, examples: int) -> tuple[str, ...]:
    """Write everything beside the folder first, so that it is there whole or not at all; return the names of files."""
    beside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        planted.save(beside, examples=examples)
        beside.chmod(0o755)  # mkdtemp makes it for its owner alone
        beside.replace(place)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return tuple(sorted(path.name for path in place.iterdir()))


def _next_commands(place: Path, layer: int) -> tuple[str, ...]:
    folder, store = shlex.quote(str(place)), shlex.quote(f"{place}-store")
    corpus, probe = shlex.quote(str(place / CORPUS)), shlex.quote(str(place / PROBE))
    return (
        f"cliffstore extract {corpus} --model {folder} --store {store} --sites resid_post,z",
        f"cliffstore probe import {store} {probe} --name planted --layer {layer}",
        f"cliffstore score {store} --probe planted",
        f"cliffstore cliff {store} --probe planted",
        f"cliffstore probe fit {store} --name fitted --kind mean_difference --where \"kind <> 'jailbroken'\"",
    )
