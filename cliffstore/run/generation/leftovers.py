"""What an earlier run of `generate` left beside its output: settings, receipt, pieces; held against what is asked now.

A run of the same settings and corpus goes on from there, any other is refused before anything is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cliffstore import __version__
from cliffstore.access import filesystem
from cliffstore.config import StorageOptions
from cliffstore.errors import DamagedStoreError, QueryError, StorageError, StoreError
from cliffstore.run.generation.backend import Backend
from cliffstore.run.generation.config import GenerateConfig
from cliffstore.run.generation.plan import GenerationPlan
from cliffstore.run.progress import Reporter
from cliffstore.run.saving import saving
from cliffstore.schema import Document, GenerationDocument, GenerationReceipt
from cliffstore.store import documents, layout
from cliffstore.store.objects import ObjectStore

D = TypeVar("D", bound=Document)


@dataclass(frozen=True, slots=True)
class Leftovers:
    """The folder of a run, and what the run is asked to do."""

    config: GenerateConfig
    reporter: Reporter
    backend: Backend
    plan: GenerationPlan
    folder: ObjectStore

    def held(self) -> GenerationDocument | None:
        """Return what an earlier run began, None where there is none.

        Raises
        ------
        StoreError
            It was another run, or the output is none of a generation.
        """
        held = self._read(GenerationDocument, layout.GENERATION)
        if held is None:
            if _exists(self.config.output, self.config.storage_options):
                raise StoreError(
                    f"{self.config.output} is there, and no generation has written it: give another -o, or remove it"
                )
            return None
        asked = self._document()
        names = [*dict.fromkeys([*asked.settings, *held.settings])]
        other = [name for name in names if asked.settings.get(name) != held.settings.get(name)]
        if other:
            changed = ", ".join(
                f"{name.replace('_', '-')} {_short(held.settings.get(name))}, not {_short(asked.settings.get(name))}"
                for name in other
            )
            raise StoreError(
                f"{self.config.output} was begun with other settings ({changed}): give the same, or another -o, or "
                f"remove {self.folder.url}"
            )
        if asked.work != held.work:
            raise StoreError(
                f"{self.config.output} was begun with another corpus ({held.examples} examples, not {asked.examples}, "
                f"or other prompts or columns): give the same, or another -o, or remove {self.folder.url}"
            )
        return held

    def complete(self) -> GenerationReceipt | None:
        """Return the receipt of an output that is there, None where it is to be written."""
        receipt = self._read(GenerationReceipt, layout.GENERATION_RECEIPT)
        if receipt is None:
            return None
        if not _exists(self.config.output, self.config.storage_options):
            self.reporter.notice(f"{self.config.output} is no longer there: it is generated again")
        elif _digest_of(self.config.output, self.config.storage_options) == receipt.digest:
            return receipt
        else:
            raise StoreError(
                f"{self.config.output} is not what was generated: give another -o, or remove it and {self.folder.url}"
            )
        self.folder.delete(layout.GENERATION_RECEIPT)
        return None

    def begin(self) -> None:
        """Keep settings and work."""
        self._send_work()
        documents.create(self.folder, self._document())

    def send_work_if_gone(self) -> None:
        """Lay the work out again, where a run that was killed while it tidied up has removed it."""
        if not self.folder.exists(layout.GENERATION_WORK):
            self._send_work()

    def _send_work(self) -> None:
        if self.folder.is_local:
            try:
                Path(self.folder.root).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise QueryError(f"cannot write {self.folder.url}: {error.strerror or error}") from None
        with (
            self.plan.path.open("rb") as work,
            saving(f"{self.folder.url}/{layout.GENERATION_WORK}", self.config.storage_options) as sink,
        ):
            while block := work.read(1 << 20):
                sink.write(block)

    def tidy(self) -> None:
        """Remove what a complete output needs no longer; settings and receipt stay."""
        self.folder.delete(layout.GENERATION_PIECES)
        self.folder.delete(layout.GENERATION_WORK)

    def _read(self, kind: type[D], key: str) -> D | None:
        """Return a document, None where there is none. Raises `StoreError` where it is damaged."""
        try:
            return documents.read(self.folder, kind, key)
        except FileNotFoundError:
            return None
        except DamagedStoreError as error:
            raise StoreError(
                f"{self.folder.path(key)} {error.problem}: remove {self.folder.url} and run again"
            ) from None

    def _document(self) -> GenerationDocument:
        return GenerationDocument(
            output=self._name,
            settings=self.backend.settings(self.config),
            work=self.plan.digest,
            inputs=list(self.config.corpus),
            model=self.backend.source.identity if self.backend.source is not None else None,
            examples=self.plan.rows,
            units=self.plan.units,
            cliffstore_version=__version__,
        )

    @property
    def _name(self) -> str:
        return self.config.output.rstrip("/").rsplit("/", 1)[-1]


def _exists(url: str, options: StorageOptions) -> bool:
    fs, path = filesystem(url, options)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def _digest_of(url: str, options: Mapping[str, object]) -> str:
    """Return the sha256 of a file. Raises `StorageError` where it cannot be read."""
    fs, path = filesystem(url, options)
    digest = hashlib.sha256()
    try:
        with fs.open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise StorageError(f"cannot read {url}: {error}") from None
    return digest.hexdigest()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
