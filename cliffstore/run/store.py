"""`Store`: everything the command line does with a store, as Python calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cliffstore.access import scheme_of
from cliffstore.analyze.cliff import CliffReport, rank_cliffs
from cliffstore.config import ExportConfig, check_name
from cliffstore.publish.comparison import Comparison, compare_selections
from cliffstore.publish.criteria import SelectionSettings
from cliffstore.publish.export import ExportReport, export_selection
from cliffstore.publish.refusals import read_phrases
from cliffstore.publish.selection import SelectionReport, select_examples, told
from cliffstore.run.description import describe_store
from cliffstore.run.directions import write_direction
from cliffstore.run.origins import Origins
from cliffstore.run.progress import LineReporter, Reporter
from cliffstore.run.repair import RepairReport, repair_store
from cliffstore.run.scoring import ScoringReport, score_store
from cliffstore.run.verification import verify
from cliffstore.schema import ProbeDocument
from cliffstore.settings import read_config
from cliffstore.store.activations import Activations, find_activations
from cliffstore.store.catalog import Catalog, Parameters, arrow_table
from cliffstore.store.probes import read_probe
from cliffstore.store.reader import StoreReader
from cliffstore.store.results import Batches
from cliffstore.store.session import QueryLimits
from cliffstore.store.verify import VerifyReport


class Store:
    """A store to query and to build on.

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
        url: str,
        storage_options: Mapping[str, object] | None = None,
        reporter: Reporter | None = None,
        limits: QueryLimits | None = None,
    ) -> None:
        self.reader = StoreReader(url, storage_options)
        self._reporter = reporter or LineReporter()
        self._limits = limits
        self._catalog: Catalog | None = None
        self._attached: dict[str, StoreReader] = {}
        self._registered: dict[str, pa.Table] = {}

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the SQL connection, if one was opened."""
        if self._catalog is not None:
            self._catalog.close()
        self._catalog = None

    def refresh(self) -> None:
        """Forget what was listed, so that the next query sees what was committed meanwhile."""
        self.close()
        self.reader = _read_again(self.reader)
        self._attached = {name: _read_again(reader) for name, reader in self._attached.items()}

    @property
    def catalog(self) -> Catalog:
        """The SQL catalog, opened on first use."""
        if self._catalog is None:
            catalog = Catalog(self.reader, self._limits)
            try:
                for name, reader in self._attached.items():
                    catalog.attach(name, reader)
                for name, table in self._registered.items():
                    catalog.register(name, table)
            except BaseException:
                catalog.close()
                raise
            self._catalog = catalog
        return self._catalog

    def attach(self, name: str, store: str | Store, storage_options: Mapping[str, object] | None = None) -> None:
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
        if isinstance(store, Store):
            reader = store.reader
        else:
            options = self.storage_options_for(store) if storage_options is None else storage_options
            reader = StoreReader(store, options)
        self.catalog.attach(name, reader)
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
        self.catalog.register(name, held)
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
            self.catalog,
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

    def repair(self, **origins: object) -> RepairReport:
        """Repair what `verify` finds; nothing else may write to the store meanwhile.

        A store that is too damaged to be opened is repaired by `cliffstore.run.repair.repair_store`.

        Parameters
        ----------
        origins : fields of `Origins`: where models, adapters and corpora are, as tuples; how to compute
        """
        report = repair_store(self.reader.objects, Origins(**origins), self._reporter)  # type: ignore[arg-type]
        self.refresh()
        return report

    def fit_probe(self, name: str, *, replace: bool = False, **settings: object) -> ProbeDocument:
        """Fit a probe at every position and layer, choose one on validation, and keep it under `name`.

        Where the probe of that name was fitted with the same settings on the same examples, it is not fitted again.

        Parameters
        ----------
        replace : put it in the place of another probe of that name, whose scores and cliffs are removed
        settings : other fields of `ProbeConfig`

        Raises
        ------
        ConfigError, ProbeError, StoreError, QueryError
            The probe cannot be fitted as asked.
        """
        from cliffstore.run import fitting  # scikit-learn takes its time to load

        asked = fitting.check_settings(self.reader, name, settings)
        options = self.storage_options_for(asked.test_store) if asked.test_store else None
        document = fitting.fit(self.catalog, asked, self._reporter, options, replace=replace)
        self.refresh()
        return document

    def import_probe(
        self,
        name: str,
        weights: object,
        *,
        layer: int,
        bias: float | None = None,
        calibrate: str | None = None,
        replace: bool = False,
        **settings: object,
    ) -> ProbeDocument:
        """Keep a direction that was found elsewhere as a probe.

        Parameters
        ----------
        weights : float [D]: a NumPy array, a torch tensor or a list
        bias : b of score = w·h + b; default 0
        calibrate : label on which scale and offset are fitted, so that the score is a logit, and figures are found
        settings : `site`, `model`, `positions`; with `calibrate` also what chooses examples, as for `fit_probe`

        Raises
        ------
        ConfigError, ProbeError, StoreError
            It is no vector of the site's width, or has NaN, or cannot be calibrated as asked.
        """
        from cliffstore.run import fitting

        given = fitting.GivenDirection(name, weights, layer, bias, calibrate)
        document = fitting.take_in(self.catalog, given, settings, self._reporter.notice, replace=replace)
        self.refresh()
        return document

    def export_probe(self, name: str, output: str) -> ProbeDocument:
        """Write a probe to a `.safetensors`, `.npz` or `.npy` file; path or URL.

        Raises
        ------
        ConfigError, ProbeError
            There is no such probe, or no such kind of file.
        """
        document, weights = read_probe(self.reader.objects, name)
        write_direction(output, document, weights, self.storage_options_for(output))
        if output.lower().endswith(".npy"):
            self._reporter.notice(f"a .npy file holds w alone; b is {weights.b}")
        return document

    def score(self, probe: str | Sequence[str], *, executor: str = "auto", actors: int | None = None) -> ScoringReport:
        """Score every extracted token that has no score of these probes yet; see `run.scoring.score_store`.

        Parameters
        ----------
        probe : one name or several; `all` means every probe of the store
        """
        names = [probe] if isinstance(probe, str) else list(probe)
        try:
            return score_store(self.reader, names, self._reporter, executor=executor, actors=actors)
        finally:
            self.refresh()

    def cliff(self, probe: str) -> CliffReport:
        """Rank examples by cliff; the result is the view `cliffs`."""
        report = rank_cliffs(self.catalog, probe)
        for count, what in (
            (report.without_thinking, "have no stored thinking, hence no cliff"),
            (report.without_decision, "have no stored decision position, hence no cliff"),
            (report.partial_thinking, "have a plateau over that part of their thinking which is stored"),
        ):
            if count:
                self._reporter.notice(f"{count} of {report.examples} examples {what}")
        self.refresh()
        return report

    def select(
        self,
        name: str,
        *,
        top: str,
        strategy: str = "cliff",
        ascending: bool = False,
        seed: int = 0,
        rules: str | None = None,
        probe: str | None = None,
        where: str | None = None,
        min_plateau: float | None = None,
        quota: str | Sequence[str] = (),
        dedupe: str | Sequence[str] = (),
        replace: bool = False,
    ) -> SelectionReport:
        """Choose training examples, into the view `selections`; see `publish.criteria` for what can be asked for.

        `probe` may be left out where only one has cliffs; `rules` is a file of phrases that refusals begin with.
        """
        settings = SelectionSettings(
            name=check_name(name, "selection"),
            top=top,
            strategy=strategy,
            ascending=ascending,
            seed=seed,
            probe=probe,
            where=where,
            phrases=None if rules is None else read_phrases(rules),
            min_plateau=min_plateau,
            quotas=(quota,) if isinstance(quota, str) else tuple(quota),
            dedupe=(dedupe,) if isinstance(dedupe, str) else tuple(dedupe),
        )
        report = select_examples(self.catalog, settings, replace=replace)
        self.refresh()
        if report.chosen < report.wanted:
            self._reporter.notice(f"only {report.chosen} of {report.wanted} examples could be chosen: {told(report)}")
        return report

    def compare_selections(self, first: str, second: str) -> Comparison:
        """Hold two selections against each other: overlap and rank correlation; see `publish.comparison`."""
        return compare_selections(self.catalog, first, second)

    def export(
        self, selection: str, output: str, *, output_options: Mapping[str, object] | None = None, **settings: object
    ) -> ExportReport:
        """Write a selection as a training set, with a dataset card beside it.

        Parameters
        ----------
        output : folder, or file that ends in `.parquet`; path or URL
        output_options : storage options of `output`; by default the store's, where both have the same scheme
        settings : other fields of `ExportConfig`

        Raises
        ------
        ConfigError, SelectionError, QueryError
            It cannot be written as asked.
        """
        asked = {"store": self.reader.url, "selection": selection, "output": output, **settings}
        options = self.storage_options_for(output) if output_options is None else output_options
        return export_selection(self.catalog, read_config(ExportConfig, None, asked), options, self._reporter.notice)


def _read_again(reader: StoreReader) -> StoreReader:
    return StoreReader(reader.url, reader.objects.storage_options)
