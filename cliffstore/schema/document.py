"""What every JSON document of a store is: frozen, canonical, sealed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
)

from cliffstore.errors import DamagedStoreError

FORMAT_VERSION = 1


TRAINING_SET_VERSION = 1


SEAL = "seal"


Dtype = Literal["bfloat16", "float16", "float32"]


class Part(BaseModel):
    """Base of everything in a JSON document: frozen; what a later version has added is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Document(Part):
    """Base of every JSON document in a store. As bytes it carries a seal, by which damage is told from content."""

    def to_bytes(self) -> bytes:
        """Return canonical JSON, sealed: equal documents are equal bytes."""
        body = self.model_dump(mode="json")
        return canonical({**body, SEAL: seal_of(body)})

    @classmethod
    def from_bytes(cls, content: bytes, key: str) -> Self:
        """Read a document that lies under `key`.

        Raises
        ------
        DamagedStoreError
            It is not JSON, not such a document, or its seal does not fit.
        """
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise damaged(key, "is not JSON") from None
        if not isinstance(body, dict) or body.pop(SEAL, None) != seal_of(body):
            raise damaged(key, "has another seal than its content")
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise damaged(key, f"is no {cls.__name__} of this version: {error.errors()[0]['msg']}") from None


def canonical(body: Mapping[str, object]) -> bytes:
    """Return JSON as every document is written: sorted keys, one space of indent, ASCII, a line break at the end."""
    return (json.dumps(body, sort_keys=True, indent=1) + "\n").encode()


def seal_of(body: Mapping[str, object]) -> str:
    """Return the sha256 over a document's canonical JSON without its seal."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def damaged(key: str, problem: str) -> DamagedStoreError:
    """Return the error for an object that cannot be believed."""
    error = DamagedStoreError(f"{key} {problem}: run `cliffstore verify` on the store")
    error.problem = problem
    return error
