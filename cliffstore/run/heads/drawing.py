"""Figures of heads as a picture: a cell a head, of one group, at the decision or the last distance that was traced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cliffstore.errors import ConfigError
from cliffstore.run.heads.results import parse_heads
from cliffstore.schema import HeadsDocument
from cliffstore.text import printable

if TYPE_CHECKING:
    from cliffstore.publish.charts.theme import Chart

_DETAILS = ("n", "low", "high")


def draw_heads(document: HeadsDocument, table: pa.Table, group: str | None) -> tuple[Chart, str]:
    """Return the heat map of layers and heads, heads of a shortlist framed, and its title.

    Parameters
    ----------
    group : which one, where figures are of several

    Raises
    ------
    ConfigError
        There is no such group, or there are several and none is named.
    """
    from cliffstore.publish.charts.heads import head_chart

    groups = list(dict.fromkeys(table["group"].to_pylist()))
    if group is None and len(groups) > 1:
        named = ", ".join(printable(str(one), 40) for one in groups[:8])
        raise ConfigError(f"figures {document.name!r} are of {len(groups)} groups: say which with --group ({named})")
    wanted = groups[0] if group is None else group
    if wanted not in groups:
        named = ", ".join(printable(str(one), 40) for one in groups[:8] if one is not None) or "none"
        raise ConfigError(f"figures {document.name!r} have no group {group!r}; they have: {named}")
    mine = table.filter(pc.is_null(table["group"]) if wanted is None else pc.equal(table["group"], wanted))
    distance = pc.max(mine["to_decision"]).as_py()
    mine = mine.filter(pc.and_(pc.is_valid(mine["layer"]), pc.equal(mine["to_decision"], distance)))
    listed = parse_heads(",".join(document.heads)) if document.heads else []
    value, title = _said(document, distance)
    of = f", {printable(wanted, 60)}" if wanted is not None else ""
    return head_chart(mine, "mean", value, marked=listed, details=_DETAILS), f"{title}{of}"


def _said(document: HeadsDocument, distance: int) -> tuple[str, str]:
    if document.kind == "direct":
        at = "at the decision" if distance == 0 else f"{distance} from the decision"
        return "direct contribution (logits)", f"What each head adds to the score of {document.probe}, {at}"
    return (
        "change of score (logits)",
        f"Score of {document.probe} without each head ({document.ablation}, {document.positions} positions)",
    )
