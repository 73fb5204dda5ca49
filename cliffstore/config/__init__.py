"""Settings of each command, validated where they enter: from the command line, a YAML file, or Python."""

from __future__ import annotations

from cliffstore.config.cliffs import CliffConfig, CurveConfig, PlotConfig, ReportConfig
from cliffstore.config.extraction import ExtractConfig, load_config
from cliffstore.config.pipeline import PipelineConfig
from cliffstore.config.probes import ProbeConfig, ScoreConfig
from cliffstore.config.publication import ExportConfig, SelectConfig
from cliffstore.config.stores import StoreConfig, read_storage_options
from cliffstore.config.values import (
    NAME_PATTERN,
    Chosen,
    Share,
    StorageOptions,
    TemplateDate,
    check_name,
    parse_bytes,
    parse_ranges,
    parse_share,
)

__all__ = [
    "NAME_PATTERN",
    "Chosen",
    "CliffConfig",
    "CurveConfig",
    "ExportConfig",
    "ExtractConfig",
    "PipelineConfig",
    "PlotConfig",
    "ProbeConfig",
    "ReportConfig",
    "ScoreConfig",
    "SelectConfig",
    "Share",
    "StorageOptions",
    "StoreConfig",
    "TemplateDate",
    "check_name",
    "load_config",
    "parse_bytes",
    "parse_ranges",
    "parse_share",
    "read_storage_options",
]
