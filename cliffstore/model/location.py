"""Where a model or an adapter is, and how stores and error messages speak of it."""

from __future__ import annotations

from pathlib import Path


def means_a_folder(name: str) -> bool:
    """Tell a path from a hub name (`model` or `owner/model`), whether or not anything is there."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).expanduser().exists()


def public_name(name: str) -> str:
    """Hub names stay whole; of local paths only the last part is kept, so that stores do not depend on a machine."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def first_line(error: BaseException) -> str:
    """Return what another library's error says, in one line."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
