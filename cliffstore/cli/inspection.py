"""`cliffstore info` and `cliffstore verify`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from cliffstore.cli.output import Json, OptionsFrom, StoreUrl, open_to_read, print_json, print_lines, print_table


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="info", help="Show what a store holds.")(info)
    app.command(name="verify", help="Check every vector and table against its digest; exit 1 if anything is wrong.")(
        verify
    )


def info(store: StoreUrl, config: OptionsFrom = None, json: Json = False) -> None:
    with open_to_read(store, config) as opened:
        found = opened.info()
    if json:
        print_json(found)
        return
    plans, captures = found.pop("plans"), found.pop("captures")
    print_lines(
        {name: ", ".join(value) or "none" if isinstance(value, list) else value for name, value in found.items()}
    )
    for rows in (plans, captures):
        if isinstance(rows, list) and rows:
            print()
            print_table(list(rows[0]), [list(row.values()) for row in rows])


def verify(store: StoreUrl, config: OptionsFrom = None, json: Json = False) -> None:
    with open_to_read(store, config) as opened:
        report = opened.verify()
    if json:
        print_json(asdict(report))
    else:
        missing = f", {report.units_missing} not extracted yet" if report.units_missing else ""
        print(f"checked {report.tables} tables, {report.units} units, {report.arrays} arrays of units{missing}")
        if report.findings:
            print_table(["key", "problem"], [[one.key, one.problem] for one in report.findings], full=True)
        print(f"{len(report.findings)} problems" if report.findings else "everything agrees")
    if report.findings:
        raise typer.Exit(1)
