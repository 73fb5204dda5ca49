"""Plots as files: what is asked of a store, drawn, and written in one piece.

`publish.charts` says how things look; here is which numbers they are of. What is not in a picture stands in it, below
its title, and is told besides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cliffstore.analyze.aligned import Distances
from cliffstore.config import PlotConfig
from cliffstore.errors import ConfigError, ProbeError, SelectionError
from cliffstore.run.progress import Reporter
from cliffstore.run.queries import StoreQueries
from cliffstore.run.ranking import draw_curves
from cliffstore.run.saving import saving
from cliffstore.settings import read_config
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import read_probe
from cliffstore.text import printable

if TYPE_CHECKING:
    from cliffstore.publish.charts.theme import Chart, Size, Spec

_CLIFFS = """
WITH chosen AS (SELECT e.example, e.id, {group} AS "group" FROM examples e {condition})
SELECT c.probe, o."group", o.id, c.cliff{selected}
FROM cliffs c JOIN chosen o USING (example) WHERE list_contains($1, c.probe) ORDER BY c.probe, o.id
"""
_SELECTED = ", c.example IN (SELECT s.example FROM selections s WHERE s.selection = $2) AS selected"
_NAMED = "SELECT example, id FROM examples WHERE id = $1 OR example = $2 ORDER BY id <> $1, example LIMIT 3"
_TOKENS = """
SELECT t.position, t.to_decision, t.segment, t.token, s.score
FROM (SELECT * FROM tokens WHERE example = $1) t
LEFT JOIN (SELECT example, position, score FROM scores WHERE probe = $2 AND example = $1) s USING (example, position)
WHERE t.to_decision BETWEEN $3 AND $4 ORDER BY t.position
"""
_FAR = 2**30
_ORDINAL = re.compile(r"#([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Plot:
    """What was drawn.

    Attributes
    ----------
    spec : Vega-Lite with its data and configuration; Altair and the Vega editor read it
    notes : what is not drawn, and why; a sentence each
    output, size : where it was written, and how many bytes that are; None where it was not
    """

    kind: str
    spec: Spec
    notes: tuple[str, ...]
    output: str | None = None
    size: int | None = None

    def picture(self, kind: str = "svg", *, scale: float = 2.0) -> bytes:
        """Return the plot as png, svg or json."""
        from cliffstore.publish.charts.pictures import picture

        return picture(self.spec, kind, scale=scale)

    def _repr_svg_(self) -> str:
        """What notebooks show."""
        return self.picture("svg").decode()


class StorePlots(StoreQueries):
    """What a store is drawn as; a part of `Store`."""

    def plot(self, kind: str, output: str | None = None, *, probe: str | Sequence[str], **settings: object) -> Plot:
        """Draw `curve`, `cliffs`, `layers` or `tokens`, and write it where `output` says: .png, .svg or .json.

        Parameters
        ----------
        probe : one name, or several for curves and cliffs
        settings : other fields of `PlotConfig`: `group_by`, `where`, `positions`, `selection`, `example`, `theme` ...

        Raises
        ------
        ConfigError, ProbeError, SelectionError, QueryError
            It cannot be drawn as asked, or there is nothing to draw.
        """
        given = {"store": "", "kind": kind, "output": output, "probe": probe, **settings}
        asked = read_config(PlotConfig, None, given)
        return self._plot(asked)

    def _plot(self, asked: PlotConfig) -> Plot:
        from cliffstore.publish.charts.pictures import kind_of, picture
        from cliffstore.publish.charts.theme import check_theme, themed

        wanted = None if asked.output is None else kind_of(asked.output)
        chart, title = _DRAWN[asked.kind](self._own, asked, self._reporter)
        for note in chart.notes:
            self._reporter.notice(note)
        shown = title if asked.title is None else printable(asked.title)
        spec = themed(chart, check_theme(asked.theme), ground=not asked.transparent, title=shown)
        if asked.output is None or wanted is None:
            return Plot(asked.kind, spec, chart.notes)
        content = picture(spec, wanted, scale=asked.scale)
        with saving(asked.output, self.storage_options_for(asked.output)) as sink:
            sink.write(content)
        return Plot(asked.kind, spec, chart.notes, asked.output, len(content))


def _size(asked: PlotConfig, usual: Size) -> Size:
    from cliffstore.publish.charts.theme import Size

    return Size(asked.width or usual.width, asked.height or usual.height)


def _curve(catalog: Catalog, asked: PlotConfig, reporter: Reporter) -> tuple[Chart, str]:
    from cliffstore.publish.charts.curves import curve_chart
    from cliffstore.publish.charts.theme import USUAL_SIZE

    settings = asked.model_dump(include={"group_by", "where", "resamples", "level", "seed", "all_tokens"})
    curves = draw_curves(catalog, asked.probe, asked.positions or "-64..0", settings, reporter)
    chart = curve_chart(curves, size=_size(asked, USUAL_SIZE), group_title=asked.group_by)
    band = f", {100 * asked.level:g}% bootstrap bands" if asked.resamples else ""
    return chart, f"Mean score before the answer: {_names(asked)}{band}"


def _cliffs(catalog: Catalog, asked: PlotConfig, reporter: Reporter) -> tuple[Chart, str]:
    from cliffstore.publish.charts.cliffs import cliff_chart
    from cliffstore.publish.charts.theme import USUAL_SIZE

    parameters: list[object] = [list(asked.probe)]
    if asked.selection is not None:
        parameters.append(asked.selection)
        if not catalog.arrow("SELECT 1 FROM selections WHERE selection = $1 LIMIT 1", [asked.selection]).num_rows:
            raise SelectionError(f"there is no selection {asked.selection!r}: make one with `cliffstore select`")
    statement = _CLIFFS.format(
        group=f"CAST(({asked.group_by}\n) AS VARCHAR)" if asked.group_by else "CAST(NULL AS VARCHAR)",
        condition=f"WHERE ({asked.where}\n)" if asked.where else "",
        selected=_SELECTED if asked.selection is not None else "",
    )
    table = catalog.arrow(statement, parameters)
    for probe in asked.probe:
        read_probe(catalog.reader.objects, probe)
        if probe not in set(table["probe"].to_pylist()):
            raise ProbeError(
                f"probe {probe!r} has no cliffs of such examples: run `cliffstore cliff "
                f"{catalog.reader.url} --probe {probe}`, or choose others with --where"
            )
    chart = cliff_chart(table, size=_size(asked, USUAL_SIZE), group_title=asked.group_by)
    return chart, f"Cliffs: {_names(asked)}"


def _layers(catalog: Catalog, asked: PlotConfig, reporter: Reporter) -> tuple[Chart, str]:
    from cliffstore.publish.charts.layers import layer_chart
    from cliffstore.publish.charts.theme import USUAL_SIZE

    document, _ = read_probe(catalog.reader.objects, asked.probe[0])
    chart = layer_chart(document, size=_size(asked, USUAL_SIZE), positions=asked.positions)
    return chart, f"Probe {_names(asked)} ({document.kind}) by layer"


def _tokens(catalog: Catalog, asked: PlotConfig, reporter: Reporter) -> tuple[Chart, str]:
    from cliffstore.publish.charts.theme import LOW_SIZE
    from cliffstore.publish.charts.tokens import token_chart, tokens_of

    probe = asked.probe[0]
    read_probe(catalog.reader.objects, probe)
    example, name = _example(catalog, str(asked.example))
    distances = Distances(-_FAR, _FAR) if asked.positions is None else Distances.parse(asked.positions)
    table = catalog.arrow(_TOKENS, [example, probe, distances.first, distances.last])
    if table.num_rows == table["score"].null_count:
        raise ProbeError(
            f"example {name!r} has no scores of probe {probe!r}"
            + (f" at distances {asked.positions}" if asked.positions else "")
            + f": run `cliffstore score {catalog.reader.url} --probe {probe}`, or choose another example"
        )
    chart = token_chart(tokens_of(table), size=_size(asked, LOW_SIZE), with_text=True)
    return chart, f"{printable(name, 60)}: score of {_names(asked)} at each token"


def _example(catalog: Catalog, wanted: str) -> tuple[int, str]:
    """Return number and id of the example that is meant. Raises `ConfigError` where there is not one."""
    ordinal = _ORDINAL.fullmatch(wanted)
    rows = catalog.arrow(_NAMED, [wanted, int(ordinal[1]) if ordinal else None]).to_pylist()
    by_id = [row for row in rows if row["id"] == wanted]
    if len(by_id) > 1:
        choice = " or ".join(f"#{row['example']}" for row in by_id)
        raise ConfigError(f"example {wanted!r}: several examples have that id; say one by its number, {choice}")
    if not rows:
        raise ConfigError(f"example {wanted!r} is not in the store: say an id, or # and a number, such as #0")
    return int(rows[0]["example"]), str(rows[0]["id"])


def _names(asked: PlotConfig) -> str:
    return ", ".join(asked.probe)


_DRAWN = {"curve": _curve, "cliffs": _cliffs, "layers": _layers, "tokens": _tokens}
