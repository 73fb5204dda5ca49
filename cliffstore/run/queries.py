"""Asking a store: SQL, vectors, what it holds, whether it is whole. The half of `Store` that writes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.access import scheme_of
from cliffstore.run.description import describe_store
from cliffstore.run.progress import LineReporter, Reporter
from cliffstore.run.verification import verify
from cliffstore.store.activations import Activations, find_activations
from cliffstore.store.catalog import Catalog, Parameters, arrow_table
from cliffstore.store.reader import StoreReader
from cliffstore.store.results import Batches
from cliffstore.store.session import QueryLimits
from cliffstore.store.verify import VerifyReport


class StoreQueries:
    """What a store is asked; `Store` adds what is built on it.

    Parameters
    ----------
    url : path or fsspec URL
    storage_options : handed to fsspec (endpoint, credentials ...)
    reporter : told of progress and notices; log lines on standard error by default
    limits : what SQL may use: memory, seconds a statement, anything outside the store

    Raises
    ------
    StoreError
        There is no store at `url`, or it has a newer format.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        storage_options: Mapping[str, object] | None = None,
        reporter: Reporter | None = None,
        limits: QueryLimits | None = None,
    ) -> None:
        self.reader = StoreReader(os.fspath(url), storage_options)
        self._reporter = reporter or LineReporter()
        self._limits = limits
        self._catalogs: dict[str, Catalog] = {}
        self._attached: dict[str, StoreReader] = {}
        self._registered: dict[str, pa.Table] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the SQL connections that were opened."""
        for catalog in self._catalogs.values():
            catalog.close()
        self._catalogs = {}

    def refresh(self) -> None:
        """Forget what was listed, so that the next query sees what was committed meanwhile."""
        self.close()
        self.reader = _read_again(self.reader)
        self._attached = {name: _read_again(reader) for name, reader in self._attached.items()}

    @property
    def catalog(self) -> Catalog:
        """The SQL catalog, opened on first use."""
        return self._opened("asked", self._limits)

    @property
    def _own(self) -> Catalog:
        """The catalog that probes, cliffs and selections read: what SQL has made of its views is not in it."""
        limits = self._limits and replace(self._limits, seconds=None)
        return self._opened("own", limits)

    def _opened(self, use: str, limits: QueryLimits | None) -> Catalog:
        if use not in self._catalogs:
            catalog = Catalog(self.reader, limits)
            try:
                for name, reader in self._attached.items():
                    catalog.attach(name, reader)
                for name, table in self._registered.items():
                    catalog.register(name, table)
            except BaseException:
                catalog.close()
                raise
            self._catalogs[use] = catalog
        return self._catalogs[use]

    def _all_catalogs(self) -> list[Catalog]:
        """Return those that are open, and at least the one that is asked, which says what is wrong with a name."""
        asked = self.catalog
        return [asked, *(catalog for catalog in self._catalogs.values() if catalog is not asked)]

    def attach(self, name: str, store: str | StoreQueries, storage_options: Mapping[str, object] | None = None) -> None:
        """Let SQL read another store too: `<name>.tokens`, `<name>.resid_post(row, layer)` and so on.

        Parameters
        ----------
        name : of the schema that its views and functions are in
        store : a URL, or a store that is open
        storage_options : by default this store's, where both URLs have the same scheme

        Raises
        ------
        QueryError
            The name cannot be one in SQL, or is taken.
        StoreError
            There is no store at the URL.
        """
        if isinstance(store, StoreQueries):
            reader = store.reader
        else:
            options = self.storage_options_for(store) if storage_options is None else storage_options
            reader = StoreReader(store, options)
        for catalog in self._all_catalogs():
            catalog.attach(name, reader)
        self._attached[name] = reader

    def storage_options_for(self, url: str) -> Mapping[str, object]:
        """Return this store's storage options for another URL of the same scheme, none for one of another."""
        own = self.reader.objects
        return own.storage_options if scheme_of(url) == scheme_of(own.url) else {}

    def register(self, name: str, table: object) -> None:
        """Let SQL read an Arrow table, or what Arrow can read as one (pandas, polars, a dict of arrays), by a name.

        Raises
        ------
        QueryError
            The name cannot be one in SQL, or is taken by a view; or Arrow cannot read the table.
        """
        held = arrow_table(name, table)
        for catalog in self._all_catalogs():
            catalog.register(name, held)
        self._registered[name] = held

    def sql(self, statement: str, parameters: Parameters = None) -> duckdb.DuckDBPyRelation:
        """Run a statement; return a DuckDB relation: `.df()`, `.pl()`, `.arrow()`, `.fetchall()`, `.show()`.

        The result is in memory; see `batches` for one that is not.

        Parameters
        ----------
        parameters : for `?` and `$1` a sequence, for `$name` a mapping

        Raises
        ------
        UserError
            The statement is malformed, or asks for what the store does not hold.
        QueryStoppedError
            A limit was reached.
        """
        return self.catalog.relation(statement, parameters)

    def batches(self, statement: str, rows: int | None = None, parameters: Parameters = None) -> Batches:
        """Run a statement and return its result as Arrow record batches, in bounded memory.

        Read it to its end or use it as a context manager. Other statements may run meanwhile. A batch is never given
        where a function or storage has failed for it: the error is raised instead.

        Parameters
        ----------
        rows : of a batch, at most; if it is not said, 65,536, or as many as hold 64 MiB of vectors

        Raises
        ------
        UserError, QueryStoppedError
            As for `sql`; also while batches are read.
        """
        return self.catalog.batches(statement, rows, parameters)

    def vectors(
        self, site: str, layer: int, rows: npt.NDArray[np.int64], model: str | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the vectors of rows as float32 [N, d_model]. Raises `StoreError` where one is not extracted."""
        return self.reader.vectors(site, layer, np.asarray(rows, dtype=np.int64), model)

    def activations(
        self,
        site: str,
        layer: int,
        *,
        where: str | None = None,
        model: str | None = None,
        columns: Sequence[str] = ("label",),
        order: str = "example, position",
        limit: int | None = None,
    ) -> Activations:
        """Return the activations of the (example, position) pairs that satisfy a condition; no vector is read yet.

        Pairs that are not extracted are left out, with a notice that counts them.

        Parameters
        ----------
        where : SQL condition over `tokens t JOIN examples e`, such as "to_decision = 0 AND label = '1'"; all by default
        columns : of `tokens` and `examples`, beside `example`, `id`, `position`, `to_decision`, `segment` and `row`
        order : SQL, as after ORDER BY
        limit : the first lines only

        Raises
        ------
        StoreError
            The layer is not captured, or no pair is left.
        QueryError
            Condition, column or order is malformed.
        """
        return find_activations(
            self._own,
            site,
            layer,
            where=where,
            model=model,
            columns=columns,
            order=order,
            limit=limit,
            notice=self._reporter.notice,
        )

    def info(self) -> dict[str, object]:
        """Return what the store holds, as plain values."""
        return describe_store(self.reader)

    def verify(self, sample: str | None = None, seed: int | None = None) -> VerifyReport:
        """Check everything that is there, or some units (`100`, `5%`) that a seed chooses."""
        return verify(self.reader.objects, self._reporter, sample=sample, seed=seed)


def _read_again(reader: StoreReader) -> StoreReader:
    return StoreReader(reader.url, reader.objects.storage_options)
