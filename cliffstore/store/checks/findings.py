"""What is wrong with a store, and what repairing it would do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How something is wrong."""

    MISSING = "missing"
    DAMAGED = "damaged"
    DISAGREES = "disagrees"
    """Whole by itself, but not what other objects say of it: forged, swapped, or of an older state."""
    ORPHAN = "orphan"
    """Belongs to nothing, as what an interrupted run leaves, or one that is at work."""
    UNKNOWN = "unknown"
    """Nothing that cliffstore writes."""


class Action(StrEnum):
    """What repairs it."""

    RESTORE = "restore"
    METADATA = "metadata"
    PLAN = "plan"
    EXTRACT = "extract"
    SCORE = "score"
    RANK = "rank"
    SELECT = "select"
    REMOVE = "remove"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes
    ----------
    key : of the object
    problem : what is wrong with it, to be read after the key
    target : of the action: the key to copy from, or the name of a plan, capture, probe or selection
    unit : of the action, where it is about one
    """

    key: str
    kind: Kind
    problem: str
    action: Action = Action.NONE
    target: str = ""
    unit: int | None = None

    @property
    def repair(self) -> str:
        """What `--repair` would do, for the user."""
        match self.action:
            case Action.RESTORE:
                return f"copy it from {self.target}"
            case Action.METADATA:
                return "write it again"
            case Action.PLAN:
                return f"make {self.target} again from its corpus"
            case Action.EXTRACT:
                return f"extract unit {self.unit} of {self.target} again"
            case Action.SCORE:
                return f"score unit {self.unit} with {self.target} again"
            case Action.RANK:
                return f"rank the cliffs of {self.target} again"
            case Action.SELECT:
                return f"choose {self.target} again"
            case Action.REMOVE:
                return "remove it"
            case Action.NONE:
                return "nothing"
