"""Lines of one chart, told apart by colour and dashes: a line for each probe and group.

Names of groups are values of a corpus, whatever they are: they are made printable, cut, and kept apart where two have
become equal by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from cliffstore.errors import ConfigError
from cliffstore.publish.charts.theme import title_of
from cliffstore.text import printable

DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [14, 4])
MOST_SERIES = 40
"""Eight colours and five kinds of dashes: no two lines have both alike."""

_WIDEST_NAME = 60

_TOP_LEGEND = 60
"""Characters of all names, up to which the legend stands above: there it is seen in a narrow window too."""

Key = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Series:
    """Which lines there are, in order, and what they are called.

    Attributes
    ----------
    names : (probe, group) -> name in the legend
    title : of the legend
    """

    names: dict[Key, str]
    title: str | None

    @classmethod
    def of(cls, keys: Sequence[Key], group_title: str | None = None) -> Series:
        """Return the series of the distinct keys.

        Parameters
        ----------
        keys : probe and group of each line, or of each point; a group may be None
        group_title : what the groups are values of

        Raises
        ------
        ConfigError
            There are more than can be told apart.
        """
        distinct = list(dict.fromkeys(keys))
        if len(distinct) > MOST_SERIES:
            raise ConfigError(
                f"{len(distinct):,} lines are too many to tell apart: at most {MOST_SERIES} are drawn in a chart; "
                "choose examples with a condition, or fewer probes"
            )
        probes = {probe for probe, _ in distinct}
        is_grouped = group_title is not None or any(group is not None for _, group in distinct)
        title = title_of(group_title) if group_title else "group"
        parts = [cls._parts(key, len(probes) > 1, is_grouped) for key in distinct]
        names = labels_of([", ".join(part) for part in parts])
        title = (f"probe, {title}" if len(probes) > 1 else title) if is_grouped else "probe"
        return cls(dict(zip(distinct, names, strict=True)), title)

    @staticmethod
    def _parts(key: Key, with_probe: bool, with_group: bool) -> list[str]:
        probe, group = key
        value = "no value" if group is None else group
        return [str(probe)] * (with_probe or not with_group) + [value] * with_group

    @property
    def color(self) -> alt.Color:
        """The encoding of the field `series` as colour."""
        scale = alt.Scale(domain=self._domain, range="category")
        return alt.Color("series:N", title=self.title, sort=None, scale=scale, legend=self._legend)

    @property
    def dash(self) -> alt.StrokeDash:
        """The encoding of the field `series` as dashes."""
        dashes = [list(DASHES[number % len(DASHES)]) for number in range(len(self._domain))]
        scale = alt.Scale(domain=self._domain, range=dashes)
        return alt.StrokeDash("series:N", title=self.title, sort=None, scale=scale, legend=self._legend)

    @property
    def _legend(self) -> dict[str, Any]:
        look = {"symbolType": "stroke", "symbolFillColor": "transparent", "symbolStrokeWidth": 2.5, "symbolOpacity": 1}
        above = {"orient": "top", "direction": "horizontal", "titleOrient": "left", "titleAnchor": "middle"}
        fits_above = sum(len(name) + 5 for name in self._domain) <= _TOP_LEGEND
        return {**look, "symbolSize": 600, **(above if fits_above else {})}

    @property
    def _domain(self) -> list[str]:
        return list(self.names.values())


def labels_of(values: Sequence[str], most: int = _WIDEST_NAME) -> list[str]:
    """Return a printable name for each value, no two alike."""
    taken: dict[str, int] = {}
    labels = []
    for value in values:
        label = printable(value, most)
        taken[label] = taken.get(label, 0) + 1
        while taken[label] > 1:
            longer = f"{label} ({taken[label]})"
            if longer not in taken:
                label, taken[longer] = longer, 1
                break
            taken[label] += 1
        labels.append(label)
    return labels
