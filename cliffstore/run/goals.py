"""What an extraction is to store, found before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from cliffstore.config import ExtractConfig
from cliffstore.errors import ConfigError
from cliffstore.model.identity import ModelSource
from cliffstore.model.sites import arrays_of, parse_layers
from cliffstore.records import RESID_POST
from cliffstore.run.captures import CaptureDraft, check_alias, draft_capture, find_held
from cliffstore.run.live_probes import FoundProbe, arrays_to_read, find_probes, units_done
from cliffstore.schema import CaptureDocument, Interventions
from cliffstore.store import receipts
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader


@dataclass(frozen=True, slots=True)
class Goal:
    """What a run is to store: the arrays of a capture, or scores of probes.

    Attributes
    ----------
    held : the capture, where it was begun before
    probes : empty where a capture is stored
    """

    draft: CaptureDraft
    held: CaptureDocument | None
    probes: tuple[FoundProbe, ...]
    bytes_per_row: int

    @property
    def name(self) -> str:
        """The capture; empty where only scores are stored."""
        return "" if self.probes else self.draft.name

    def done(self, objects: ObjectStore) -> set[int]:
        """Return the units that are stored already."""
        if self.probes:
            return units_done(objects, self.probes)
        return receipts.committed(objects, self.draft.name)


def find_goal(
    config: ExtractConfig, source: ModelSource, held: StoreReader | None, interventions: Interventions | None
) -> Goal:
    """Return what a run is to store; nothing is written.

    Raises
    ------
    UserError
        Layers, sites or probes are not there, or what the store holds is of another model or other interventions.
    """
    for name in ("layers", "sites") if config.probe else ():
        if getattr(config, name) != ExtractConfig.model_fields[name].default:
            raise ConfigError(f"{name} are those that probes read where --probe stores scores alone: leave it out")
    layers = parse_layers(config.layers, source.identity.n_layers)
    captures = held.captures() if held is not None else []
    if not config.probe:
        draft = draft_capture(config, source, arrays_of(source.identity, config.sites, layers), interventions)
        held_capture = find_held(config.store, draft, captures)
        return Goal(draft, held_capture, (), draft.bytes_per_row)
    probes = tuple(find_probes(config, source, interventions, captures))
    draft = draft_capture(config, source, arrays_to_read(probes), interventions)
    if interventions is not None:
        check_alias(config.store, draft, captures)
    # Units as for a capture of all layers, so that one can be added later without units beyond memory.
    every = arrays_of(source.identity, [RESID_POST], range(source.identity.n_layers))
    bytes_per_row = draft_capture(config, source, every).bytes_per_row
    return Goal(draft, None, probes, bytes_per_row)
