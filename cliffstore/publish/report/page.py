"""The page itself: everything that was found, put into `page.html` with its style and its script.

The file has no address in it: a policy in its head forbids every request, and lets run that one script alone whose
digest it names. The same values give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from cliffstore.publish.report import scale
from cliffstore.publish.report.bundle import bundle
from cliffstore.publish.report.choice import ShownExamples
from cliffstore.publish.report.chosen import ChosenFacts
from cliffstore.publish.report.facts import StoreFacts
from cliffstore.publish.report.heads import HeadFacts
from cliffstore.publish.report.missing import Missing
from cliffstore.publish.report.payload import to_payload
from cliffstore.publish.report.quality import ProbeFacts
from cliffstore.publish.report.rows import ExampleRows
from cliffstore.publish.report.tokens import PackedTokens
from cliffstore.text import printable

if TYPE_CHECKING:
    from jinja2 import Template

_FEW = 12


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart as it stands on the page: SVG for both themes, what is not drawn, and the figures as a table.

    Attributes
    ----------
    name : distinct on the page
    columns, rows : of the table; numbers are floats or ints
    """

    name: str
    title: str
    light: str
    dark: str
    notes: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()


@dataclass(frozen=True, slots=True)
class PageParts:
    """Everything that is on the page.

    Attributes
    ----------
    shown_probes : those whose cliffs and scores of tokens are on the page; the first is shown first
    further_probes : with scores, not on the page
    figures : by section, `probes`, `curves`, `cliffs`, `clipping` or `heads`
    missing : by section, why something is not there
    notices : what else was told while the page was made
    """

    facts: StoreFacts
    probes: Sequence[ProbeFacts]
    shown_probes: Sequence[str]
    further_probes: Sequence[str]
    shown: ShownExamples
    rows: ExampleRows
    tokens: PackedTokens
    selections: Sequence[ChosenFacts]
    heads: Sequence[HeadFacts]
    group_by: str
    figures: Mapping[str, Sequence[Figure]]
    missing: Mapping[str, Sequence[Missing]]
    version: str
    notices: Sequence[str] = field(default_factory=tuple)


def render(parts: PageParts) -> bytes:
    """Return the page."""
    from markupsafe import Markup

    page, style = _templates()
    script = bundle()
    palette = {f"{theme}_steps": Markup(scale.variables(theme)) for theme in scale.THEMES}
    text = page.render(
        parts=parts,
        facts=parts.facts,
        style=Markup(style.render(palette)),
        script=Markup(script),
        name=store_name(parts.facts.url),
        first=next((one for one in parts.probes if one.name in parts.shown_probes[:1]), None),
        digest_of_script=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        table_data=Markup(to_payload(_table(parts))),
        token_data=Markup(to_payload(parts.tokens.to_plain())),
        few=_FEW,
        svg=Markup,
    )
    return text.encode()


@cache
def _templates() -> tuple[Template, Template]:
    """Return page and style. Compiling them takes a fifth of a small report: once a process."""
    import jinja2

    folder = files("cliffstore.publish.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shown": shown, "count": count, "size": size, "number": number, "plain": plain}
    environment.tests["numeric"] = is_numeric
    page, style = ((folder / name).read_text(encoding="utf-8") for name in ("page.html", "style.css"))
    return environment.from_string(page), environment.from_string(style)


def _table(parts: PageParts) -> dict[str, Any]:
    """Return what the scripts need of everything but tokens."""
    kinds = {one.name: one for one in parts.probes}
    return {
        "store": parts.facts.url,
        "probes": [
            {
                "name": name,
                "positive": kinds[name].document.positive,
                "digest": kinds[name].document.digest,
                "capture": kinds[name].document.capture,
                "place": f"{kinds[name].document.site}, layer {kinds[name].document.layer}",
                "plateau": cliffs.plateau if (cliffs := kinds[name].cliffs) is not None else None,
                "window": cliffs.window if cliffs is not None else None,
                "limit": parts.tokens.limits[name],
                "digits": parts.tokens.digits[name],
            }
            for name in parts.shown_probes
        ],
        "steps": scale.STEPS,
        "selections": [
            {"name": one.name, "probe": one.document.probe, "strategy": one.document.strategy, "rows": dict(one.rows)}
            for one in parts.selections
        ],
        "rows": parts.rows.to_plain(),
    }


def store_name(url: str) -> str:
    """Return what a store is called: the last two parts of its URL."""
    parts = [part for part in url.partition("://")[2 if "://" in url else 0].split("/") if part not in ("", ".")]
    return "/".join(parts[-2:]) or url


def shown(value: object, most: int | None = None) -> str:
    """Return any value as one line of text in which nothing is hidden, at most so many characters of it."""
    return printable(str(value), most)


def count(value: int) -> str:
    """Return a whole number with its thousands apart."""
    return f"{value:,}"


def size(value: int) -> str:
    """Return bytes in the unit that fits."""
    amount, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals, a true minus sign before it, and a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.{digits}f}".replace("-", "\u2212").replace("inf", "∞")


def plain(value: object) -> str:
    """Return a cell of a table as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value).replace("-", "\u2212")
    return number(value, decimals(value)) if isinstance(value, float) else shown(value, 200)


def decimals(value: float) -> int:
    """Return with how many decimals a number is written: three, or so many that three figures of it are seen."""
    return 3 if value == 0 or not abs(value) < 0.1 else min(2 - math.floor(math.log10(abs(value))), 9)


def is_numeric(value: object) -> bool:
    """Return whether a cell is written as a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
