"""`cliffstore report`: one HTML page of what a store holds, its probes, curves, cliffs, examples and selections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cliffstore.access import scheme_of
from cliffstore.config import ReportConfig
from cliffstore.errors import ConfigError
from cliffstore.publish.report.page import PageParts, render
from cliffstore.run.queries import StoreQueries
from cliffstore.run.report.parts import find_parts
from cliffstore.run.saving import saving
from cliffstore.settings import read_config
from cliffstore.store.catalog import Catalog

_LARGE = 30_000_000
"""Bytes, above which a browser takes its time."""


@dataclass(frozen=True, slots=True)
class ReportSummary:
    """What was written.

    Attributes
    ----------
    bytes : of the file
    examples : that are shown one by one, of `total`: `selected` ones, the `largest` cliffs beyond them, and `sampled`
        ones; `left_out` are not, of which `selected_left_out` are in a selection
    tokens : of the examples that are shown
    probes : on the page; `further_probes` have scores and are not
    missing : what the store does not have, by section of the page
    """

    path: str
    bytes: int
    examples: int
    total: int
    selected: int
    selected_left_out: int
    largest: int
    sampled: int
    left_out: int
    tokens: int
    probes: tuple[str, ...]
    further_probes: tuple[str, ...]
    selections: tuple[str, ...]
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)


class StoreReports(StoreQueries):
    """The part of `Store` that shows it."""

    def report(self, output: str = "report.html", **settings: object) -> ReportSummary:
        """Write what the store holds as one HTML file, which needs nothing else and no network.

        Parameters
        ----------
        output : path or URL; the file takes its place once it is whole
        settings : other fields of `ReportConfig`: `probe`, `group_by`, `positions`, `examples`, `seed`

        Raises
        ------
        ConfigError, ProbeError, QueryError
            It cannot be made, or written, as asked.
        DamagedStoreError
            A table or a document cannot be read.
        """
        if isinstance(settings.get("probe"), list):
            settings["probe"] = tuple(settings["probe"])  # type: ignore[arg-type]
        asked = read_config(ReportConfig, None, {"store": self.reader.url, "output": output, **settings})
        return write_report(self._own, asked, self.storage_options_for(output), self._reporter.notice)


def write_report(
    catalog: Catalog, asked: ReportConfig, options: Mapping[str, object], notice: Callable[[str], object]
) -> ReportSummary:
    """Make the page and write it. Errors as for `StoreReports.report`."""
    _check_output(asked.output)
    page = find_parts(catalog, asked)
    content = render(page)
    with saving(asked.output, options) as sink:
        sink.write(content)
    summary = _summary(asked.output, len(content), page)
    for text in _told(summary):
        notice(text)
    return summary


def _check_output(output: str) -> None:
    """Find what is wrong with the name of the file before the page is made."""
    path = Path(output.removeprefix("file://"))
    if scheme_of(output) != "file":
        return
    if path.is_dir():
        raise ConfigError(f"output {output!r} is a folder: name a file in it, such as {path / 'report.html'}")
    if not path.parent.is_dir():
        raise ConfigError(f"output {output!r}: there is no folder {str(path.parent)!r}")


def _summary(output: str, n_bytes: int, page: PageParts) -> ReportSummary:
    shown = page.shown
    return ReportSummary(
        path=output,
        bytes=n_bytes,
        examples=shown.shown,
        total=shown.total,
        selected=shown.selected,
        selected_left_out=shown.selected_left_out,
        largest=shown.largest,
        sampled=shown.sampled,
        left_out=shown.left_out,
        tokens=page.tokens.n_tokens,
        probes=tuple(page.shown_probes),
        further_probes=tuple(page.further_probes),
        selections=tuple(one.name for one in page.selections),
        missing={section: [one.what for one in found] for section, found in page.missing.items()},
    )


def _told(summary: ReportSummary) -> list[str]:
    """Return what is not on the page, for people."""
    told = []
    if summary.left_out:
        told.append(describe_shown(summary))
    if summary.further_probes:
        told.append(f"probes with scores that are not on the page: {', '.join(summary.further_probes)} (--probe NAME)")
    if summary.bytes > _LARGE:
        told.append(f"{summary.path} has {summary.bytes / 1e6:,.0f} MB: fewer --examples make a quicker page")
    return told


def describe_shown(summary: ReportSummary) -> str:
    """Return which examples are shown one by one, and how many are not."""
    counts = {
        "selected": summary.selected,
        "with the largest cliffs": summary.largest,
        "drawn by chance": summary.sampled,
    }
    shown = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    more = f", {summary.selected_left_out:,} of them selected" if summary.selected_left_out else ""
    left_out = f"{summary.left_out:,} of {summary.total:,} are left out{more}"
    return f"examples one by one: {shown}; {left_out} (--examples N shows more)"
