"""A planted model written to a folder, with what belongs to it: what `cliffstore heads planted` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cliffstore.errors import ConfigError
from cliffstore.model.planted import PlantSettings, plant


@dataclass(frozen=True, slots=True)
class PlantReport:
    """What was written where, and what to try with it."""

    folder: str
    layers: int
    heads: int
    probe_layer: int
    suppressors: tuple[tuple[int, int], ...]
    gates: tuple[tuple[int, int], ...]
    examples: int
    next: tuple[str, ...]


def plant_folder(
    folder: str, *, seed: int = 0, layers: int = 6, heads: int = 8, suppressors: int = 3, examples: int = 96
) -> PlantReport:
    """Build a planted model and write it, its corpus, probe and truth to a new or empty folder.

    Raises
    ------
    ConfigError
        A setting is out of its range, or the folder is not empty.
    """
    settings = PlantSettings(seed=seed, layers=layers, heads=heads, suppressors=suppressors)
    if examples < 3:
        raise ConfigError(f"--examples must be at least 3, one of each kind, not {examples}")
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"{folder} is there and not empty: name a new folder")
    planted = plant(settings)
    planted.save(place, examples=examples)
    truth = planted.truth
    return PlantReport(
        folder=folder,
        layers=layers,
        heads=heads,
        probe_layer=truth.layer,
        suppressors=truth.suppressors,
        gates=truth.gates,
        examples=examples,
        next=(
            f"cliffstore extract {folder}/corpus.jsonl --model {folder} --store {folder}-store",
            f"cliffstore probe import {folder}-store {folder}/probe.safetensors --name planted --layer {truth.layer}",
            f"cliffstore score {folder}-store --probe planted",
            f"cliffstore cliff {folder}-store --probe planted",
        ),
    )
