"""Files that take their place, at a path or URL, once they are whole."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cliffstore.access import filesystem, scheme_of
from cliffstore.errors import QueryError, StorageError


@contextmanager
def saving(output: str, options: Mapping[str, object]) -> Iterator[BinaryIO]:
    """Give a file to write, which takes its place at a path or URL once it is whole.

    Raises
    ------
    QueryError
        It cannot be written there.
    StorageError
        It cannot be sent to a URL.
    """
    remote = scheme_of(output) != "file"
    target = Path(output.removeprefix("file://"))
    if not remote and target.exists() and not target.is_file() and not target.is_dir():
        # A pipe or a device cannot be replaced, and root would replace it for everyone.
        with _told(output), target.open("wb") as file:
            yield file
        return
    folder = Path(tempfile.gettempdir()) if remote else target.parent
    part = folder / f".{target.name}.{uuid.uuid4().hex}.part"
    try:
        with _told(output):
            with part.open("xb") as file:
                yield file
            if remote:
                _send(part, output, options)
            else:
                part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _told(output: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise QueryError(f"cannot write {output}: {error.strerror or error}") from None


def _send(part: Path, output: str, options: Mapping[str, object]) -> None:
    fs, path = filesystem(output, options)
    try:
        fs.put_file(str(part), path)
    except Exception as error:  # noqa: BLE001  # file systems have errors of their own
        raise StorageError(f"cannot write {output}: {' '.join(str(error).split())[:300]}") from None
