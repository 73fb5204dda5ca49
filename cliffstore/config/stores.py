"""What every command on a store takes."""

from __future__ import annotations

from pydantic import Field

from cliffstore.config.values import StorageOptions
from cliffstore.settings import Settings, read_config, read_yaml


class StoreConfig(Settings):
    """What every stage behind extraction is told."""

    store: str = Field(description="URL or path of the store")
    storage_options: StorageOptions = Field(default_factory=dict)


def read_storage_options(path: str | None) -> StorageOptions:
    """Return the storage options that a YAML file of any stage or pipeline has. Errors as for `read_config`."""
    given = read_yaml(path).get("storage_options", {}) if path is not None else {}
    return read_config(StoreConfig, None, {"store": "", "storage_options": given}).storage_options
