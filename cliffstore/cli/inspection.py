"""`cliffstore info` and `cliffstore verify`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import (
    Json,
    OptionsFrom,
    StoreUrl,
    as_words,
    open_to_read,
    print_json,
    print_lines,
    print_table,
)
from cliffstore.errors import ConfigError
from cliffstore.text import printable

if TYPE_CHECKING:
    from cliffstore.run.repair import RepairReport
    from cliffstore.store.checks.findings import Finding
    from cliffstore.store.verify import VerifyReport

_VERIFY = """Check every document, table and vector of a store; exit 1 if anything is wrong.

With --repair, what is damaged is restored, extracted or computed again. Nothing else may write to the store meanwhile.
"""


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="info", help="Show what a store holds.")(info)
    app.command(name="verify", help=_VERIFY)(verify)


def info(store: StoreUrl, config: OptionsFrom = None, json: Json = False) -> None:
    with open_to_read(store, config) as opened:
        found = opened.info()
    if json:
        print_json(found)
        return
    plans, captures = found.pop("plans"), found.pop("captures")
    print_lines(found)
    for rows in (plans, captures):
        if isinstance(rows, list) and rows:
            print()
            print_table(list(rows[0]), [[as_words(value) for value in row.values()] for row in rows])


def verify(
    store: StoreUrl,
    sample: Annotated[
        str | None,
        typer.Option(help="Read the vectors of some units only: a number such as 100, or a share such as 5%."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sample. Default: drawn, and shown.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what is wrong, then check again.")] = False,
    model: Annotated[
        list[str] | None, typer.Option(help="With --repair: where a model is; repeatable. Default: as when extracted.")
    ] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="With --repair: where an adapter is; repeatable.")] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="With --repair: where a corpus is; repeatable. Default: as when planned.")
    ] = None,
    executor: Annotated[str, typer.Option(help="With --repair: auto, local, ray.")] = "auto",
    device: Annotated[str, typer.Option(help="With --repair: auto, cpu, cuda ...")] = "auto",
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="With --repair: store NaN and Inf instead of failing.")
    ] = False,
    config: OptionsFrom = None,
    json: Json = False,
) -> None:
    from cliffstore.config import read_storage_options
    from cliffstore.run.progress import choose_reporter
    from cliffstore.run.verification import verify as verify_all
    from cliffstore.store.objects import ObjectStore

    _check_options(
        repair, sample, seed, model=model, adapter=adapter, corpus=corpus, allow_nonfinite=allow_nonfinite or None
    )
    objects, reporter = ObjectStore(store, read_storage_options(config)), choose_reporter()
    if not repair:
        report = verify_all(objects, reporter, sample=sample, seed=seed)
        _print(report, json)
    else:
        from cliffstore.run.origins import Origins
        from cliffstore.run.repair import repair_store

        origins = Origins(
            tuple(model or ()), tuple(adapter or ()), tuple(corpus or ()), executor, device, allow_nonfinite
        )
        repaired = repair_store(objects, origins, reporter)
        report = repaired.after
        _print_repair(repaired, json)
    if report.findings:
        raise typer.Exit(1)


def _check_options(repair: bool, sample: str | None, seed: int | None, **of_repair: object) -> None:
    """Raise `ConfigError` where an option would have no effect."""
    if repair and sample is not None:
        raise ConfigError("--repair reads everything: leave --sample out")
    if seed is not None and sample is None:
        raise ConfigError("--seed chooses a sample: say how large it is with --sample")
    idle = [name for name, value in of_repair.items() if value and not repair]
    if idle:
        raise ConfigError(f"--{idle[0].replace('_', '-')} is for repairing: add --repair, or leave it out")


def _print(report: VerifyReport, json: bool) -> None:
    if json:
        print_json({**asdict(report), "findings": _plain(report.findings)})
        return
    print(_looked_at(report))
    _print_findings(report.findings)
    from cliffstore.store.checks.findings import Action

    n_found, n_repairable = len(report.findings), sum(one.action is not Action.NONE for one in report.findings)
    if n_found:
        print(f"{n_found} problems, of which `cliffstore verify STORE --repair` can repair {n_repairable}")
    else:
        print("everything agrees")


def _print_repair(report: RepairReport, json: bool) -> None:
    after = report.after
    if json:
        found = {"found": _plain(report.found), "done": report.done, "failed": report.failed}
        print_json({**found, **asdict(after), "findings": _plain(after.findings)})
        return
    _print_findings(report.found)
    for what, lines in (("repaired", report.done), ("not repaired", report.failed)):
        for line in lines:
            print(f"{what}: {printable(line)}")
    print(_looked_at(after))
    if after.findings:
        print(f"{len(after.findings)} problems are left:")
        _print_findings(after.findings)
    else:
        print("everything agrees")


def _looked_at(report: VerifyReport) -> str:
    parts = [
        f"checked {report.documents} documents, {report.tables} tables",
        f"{report.units} units with {report.arrays} shards",
        f"{report.scores} tables of scores",
    ]
    if report.seed is not None:
        parts.append(f"a sample: {report.units_unread} more extracted units were not read (seed {report.seed})")
    if report.units_missing:
        parts.append(f"{report.units_missing} not extracted yet")
    return ", ".join(parts)


def _print_findings(findings: Iterable[Finding]) -> None:
    rows = [[one.kind.value, one.key, one.problem, one.repair] for one in findings]
    if rows:
        print_table(["kind", "key", "problem", "repair"], rows, full=True)


def _plain(findings: Iterable[Finding]) -> list[dict[str, object]]:
    return [{**asdict(finding), "repair": finding.repair} for finding in findings]
