"""A chart as bytes: PNG, SVG, or its specification as JSON, which the Vega editor opens and Altair reads.

No browser and no network: vl-convert runs Vega and draws by itself, and is allowed no URL. Text in a specification must
be printable (`cliffstore.text`): its renderer ends the process at a control character. What reaches it is looked at
once more here.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cliffstore.errors import ConfigError
from cliffstore.publish.charts.theme import Spec
from cliffstore.text import printable

VEGA_LITE = "6.4"
"""Version of Vega-Lite that specifications are written for; Altair's, and one that vl-convert has."""
KINDS = ("png", "svg", "json")

_TAG = re.compile(r"<[^<>]*>")
_NAMED = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')


def kind_of(path: str) -> str:
    """Return what a file's name says that it is. Raises `ConfigError` where it is none of `KINDS`."""
    kind = path.rpartition(".")[2].lower()
    if kind not in KINDS:
        raise ConfigError(f"output {path!r}: let it end in .png, .svg or .json")
    return kind


def picture(spec: Spec, kind: str, *, scale: float = 2.0) -> bytes:
    """Return a specification that stands alone, drawn.

    Parameters
    ----------
    kind : png, svg or json
    scale : pixels of a PNG for each pixel of the specification
    """
    if kind == "json":
        return (json.dumps(spec, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()
    import vl_convert

    shown = _shown(spec)
    if kind == "svg":
        return with_names(vl_convert.vegalite_to_svg(shown, vl_version=VEGA_LITE, allowed_base_urls=[]), "own").encode()
    return vl_convert.vegalite_to_png(shown, vl_version=VEGA_LITE, scale=scale, allowed_base_urls=[])


def with_names(svg: str, prefix: str) -> str:
    """Return a drawing whose clips and gradients are called `prefix`-0, `prefix`-1 ...

    Vega numbers them through all charts that a process draws: here they begin anew, so that bytes are the same. Text is
    left alone, whatever it says.
    """
    numbers: dict[str, int] = {}

    def named(found: re.Match[str]) -> str:
        return f"{found[1]}{prefix}-{numbers.setdefault(found[2], len(numbers))}"

    return _TAG.sub(lambda tag: _NAMED.sub(named, tag[0]), svg)


def _shown(value: Any) -> Any:
    """Return a specification whose texts are printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return {printable(name): _shown(item) for name, item in value.items()} if isinstance(value, dict) else value
