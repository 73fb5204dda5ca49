"""Say whether the torch that was installed is of the variant that the image is to be; exit 1 where it cannot work.

Reads version.py of the package: importing a CUDA build needs its libraries on the path.
"""

from __future__ import annotations

import runpy
import sys
from importlib.metadata import distribution


def problem(variant: str, cuda: str | None) -> tuple[bool, str]:
    """Return whether the image cannot be, and what there is to say about it."""
    if variant == "cuda" and cuda is None:
        return True, "VARIANT=cuda, but torch has no CUDA: leave TORCH_INDEX out, or name an index of CUDA wheels"
    if variant == "cpu" and cuda is not None:
        return False, f"note: torch brings CUDA {cuda} along: give TORCH_INDEX an index of CPU wheels for a small image"
    return False, f"torch fits: variant {variant}, CUDA {cuda}"


def main(variant: str) -> int:
    """Check what is on the path."""
    version = runpy.run_path(str(distribution("torch").locate_file("torch/version.py")))
    fatal, text = problem(variant, version["cuda"])
    print(text, file=sys.stderr)
    return int(fatal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
