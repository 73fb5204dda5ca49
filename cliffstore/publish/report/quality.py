"""How good each probe is, for the page: its figures at the place that was chosen, by layer, and beside its controls.

What the controls say is put into words only where it can be told by intervals: chance inside the interval, or a bag of
tokens that is as good.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cliffstore.publish.report.facts import read_cliffs_document
from cliffstore.schema import CellMetrics, CliffsDocument, ProbeDocument
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import list_probes
from cliffstore.store.reader import StoreReader
from cliffstore.store.scores import ProbeKey, scored_units


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """A probe, what was made of it, and what there is to say of it.

    Attributes
    ----------
    units_scored : of the store's units
    cliffs : how its cliffs were made, None where there are none
    with_cliff, without_cliff : examples among those that were ranked
    remarks : what the controls say; the first is what to be careful about
    """

    document: ProbeDocument
    units_scored: int
    units: int
    cliffs: CliffsDocument | None
    with_cliff: int
    without_cliff: int
    remarks: Sequence[str]

    @property
    def name(self) -> str:
        return self.document.name

    @property
    def chosen(self) -> CellMetrics | None:
        return self.document.chosen

    @property
    def is_control(self) -> bool:
        """Whether it was made as a control: a random direction."""
        return is_control(self.document)

    @property
    def cells(self) -> list[CellMetrics]:
        """All places and layers, by place and layer."""
        places = list(dict.fromkeys(cell.positions for cell in self.document.cells))
        return sorted(self.document.cells, key=lambda cell: (places.index(cell.positions), cell.layer))


def is_control(document: ProbeDocument) -> bool:
    """Return whether a probe was made as a control: a random direction."""
    return document.kind == "imported" and "-random-" in document.name


def read_probes(catalog: Catalog, selecting: Collection[str | None] = ()) -> list[ProbeFacts]:
    """Return the probes of a store, controls behind the others, and of both those first of which most was made.

    Parameters
    ----------
    selecting : probes that selections were made with
    """
    reader = catalog.reader
    found = [_facts(catalog, reader, document) for document in list_probes(reader.objects)]

    def order(one: ProbeFacts) -> tuple[bool, bool, bool, bool, str]:
        return (one.is_control, one.name not in selecting, one.cliffs is None, not one.units_scored, one.name)

    return sorted(found, key=order)


def _facts(catalog: Catalog, reader: StoreReader, document: ProbeDocument) -> ProbeFacts:
    cliffs = read_cliffs_document(reader, document.name)
    counts = {"n": 0, "with_cliff": 0}
    if cliffs is not None:
        statement = "SELECT count(*) AS n, count(*) FILTER (isfinite(cliff)) AS with_cliff FROM cliffs WHERE probe = $1"
        counts = catalog.arrow(statement, [document.name]).to_pylist()[0]
    key = ProbeKey(document.name, document.digest, document.capture)
    return ProbeFacts(
        document=document,
        units_scored=len(scored_units(reader.objects, key)),
        units=len(reader.plan_tables.units),
        cliffs=cliffs,
        with_cliff=counts["with_cliff"],
        without_cliff=counts["n"] - counts["with_cliff"],
        remarks=[] if is_control(document) else remarks_on(document),
    )


def remarks_on(document: ProbeDocument) -> list[str]:
    """Return what the figures of a probe say to who would rely on it."""
    chosen = document.chosen
    if chosen is None:
        return ["It was imported as it is: how well it tells labels apart was not measured here."]
    found = []
    if chosen.auroc_low <= 0.5 <= chosen.auroc_high:
        found.append("Its interval holds 0.5: on these examples it cannot be told from chance.")
    if document.bag_auroc is not None and document.bag_auroc >= chosen.auroc_low:
        found.append(
            f"A bag of tokens reaches {document.bag_auroc:.3f}, within or above the probe's interval: words alone may "
            "tell these labels apart, and the probe may have learnt no more than that."
        )
    if document.shuffled_auroc is not None and abs(document.shuffled_auroc - 0.5) > 0.1:
        found.append(
            f"Shuffled labels give {document.shuffled_auroc:.3f} where 0.5 is expected: there are few examples to "
            "validate on, or prompts that belong together were parted."
        )
    if chosen.test_auroc is None:
        found.append(
            "It was not tested on an unseen data set: fit it with --test-where or --test-store, since labels that "
            "coincide with data sets can be told by topic."
        )
    elif chosen.test_auroc < chosen.auroc_low:
        found.append("On the unseen set it does worse than its validation interval says.")
    return found
