"""The settings of `cliffstore pipeline`: a section a stage, each inheriting what it does not say."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import model_validator

from cliffstore.config.cliffs import CliffConfig
from cliffstore.config.extraction import ExtractConfig
from cliffstore.config.probes import ProbeConfig, ScoreConfig
from cliffstore.config.publication import ExportConfig, SelectConfig
from cliffstore.config.sections import inherit, name_in
from cliffstore.config.stores import StoreConfig


class PipelineConfig(StoreConfig):
    """A run from corpus to training set. Sections take `store` and `storage_options`, and names, from one another."""

    extract: ExtractConfig
    probe: ProbeConfig
    score: ScoreConfig
    cliff: CliffConfig
    select: SelectConfig
    export: ExportConfig

    @classmethod
    def way_out(cls, option: str) -> str:
        return "add it to the configuration" if option == "store" else f"add a section `{option}`"

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        probe, selection = name_in(given, "probe"), name_in(given, "select")
        given = {"score": None, "cliff": None, **given}  # they have nothing to say but the probe's name
        return {
            **given,
            **{
                section: inherit(given, section, given, **names)
                for section, names in (
                    ("extract", {}),
                    ("probe", {}),
                    ("score", {"probe": probe}),
                    ("cliff", {"probe": probe}),
                    ("select", {"probe": probe}),
                    ("export", {"selection": selection}),
                )
                if section in given
            },
        }
