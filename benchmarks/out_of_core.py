"""Logistic regression out of core: against scikit-learn in memory, and its memory and time on millions of rows.

usage: python benchmarks/out_of_core.py [--rows 200000] [--many-rows 2000000] [--width 576] [--workers N] [--folder DIR]

Stores are made up (tests/vector_store.py): bfloat16, one token an example, labels drawn by a planted direction. Both
parts use the same class weights, C = 1 and standardised vectors.

1. `--rows`: coefficients and AUROC against scikit-learn's LogisticRegression (lbfgs, tolerance 1e-9) on the same
   vectors in memory, and the seconds of both; those of scikit-learn include no reading.
2. `--many-rows`: the fit in a process of its own. Memory is what this process, its workers and every other child hold
   at the same moment, sampled 20 times a second: RSS counts shared libraries in each process, PSS shares them out.
   One plain pass is raw tensorstore reading the same array with as many processes, nothing kept. `--many-rows 0`
   leaves this part out; it needs 2.3 GB of disk for 2,000,000 rows.

Set PYTHONPATH to the checkout where another one is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from cliffstore.analyze.labels import ProbeSettings  # noqa: E402
from cliffstore.analyze.second_order import fit_logistic  # noqa: E402
from cliffstore.analyze.streams import scores, stored_array  # noqa: E402
from cliffstore.run.store import Store  # noqa: E402
from cliffstore.run.tasks import open_tasks  # noqa: E402

UNIT_ROWS = 16_384
SITE, LAYER, C = "resid_post", 0, 1.0
BUDGET = 200_000_000
"""Bytes for the sample that cross-validation and shuffled labels are computed on."""
LABELS = (
    "SELECT t.row, CAST(e.label AS TINYINT) AS y FROM tokens t JOIN examples e USING (example) WHERE t.to_decision = 0"
)
HAS_OPTION = "out_of_core" in {field.name for field in fields(ProbeSettings)}


def make(folder: Path, rows: int, width: int) -> str:
    """Make a store of at least so many rows, in whole units."""
    from vector_store import VectorStore

    from cliffstore.store.objects import ObjectStore

    begin = time.perf_counter()
    made = VectorStore(
        n_units=-(-rows // UNIT_ROWS), unit_rows=UNIT_ROWS, width=width, n_layers=1, tokens=1, dtype="bfloat16"
    )
    made.make(ObjectStore(str(folder)))
    print(f"made {made.n_examples:,} x {width} in {time.perf_counter() - begin:.0f} s", flush=True)
    return str(folder)


def labelled(store: Store, rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return rows and labels of the first examples, by SQL."""
    table = store.catalog.arrow(f"{LABELS} AND t.example < {rows}")
    return table["row"].to_numpy(), table["y"].to_numpy().astype(np.int64)


def against_scikit_learn(url: str, rows: int, workers: int) -> None:
    """Print how far from scikit-learn's optimum the fit is, and the seconds of both."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    with Store(url) as store:
        rows_N, y_N = labelled(store, rows)
    with open_tasks("local", workers) as tasks:
        list(tasks.map(abs, range(workers)))  # processes are there before the clock starts
        begin = time.perf_counter()
        source = stored_array(store.reader, SITE, LAYER, None, rows_N)
        weights, report = fit_logistic(source, rows_N, y_N, C, "balanced", tasks)
        ours = time.perf_counter() - begin
        scores_N = scores(source, rows_N, weights, tasks)
    h_ND = store.vectors(SITE, LAYER, rows_N).astype(np.float64)
    begin = time.perf_counter()
    scaler = StandardScaler().fit(h_ND)
    model = LogisticRegression(C=C, class_weight="balanced", tol=1e-9, max_iter=10_000)
    model.fit(scaler.transform(h_ND), y_N)
    theirs = time.perf_counter() - begin
    w_D = model.coef_[0] / scaler.scale_
    b = float(model.intercept_[0] - w_D @ scaler.mean_)
    apart = np.linalg.norm(weights.w_D - w_D) / np.linalg.norm(w_D)
    worst = np.abs(weights.w_D / w_D - 1).max()
    auroc, ours_auroc = roc_auc_score(y_N, h_ND @ w_D + b), roc_auc_score(y_N, scores_N)
    print(
        f"{len(rows_N):,} x {len(w_D)}: coefficients differ by {apart:.1e} of their norm (the worst by {worst:.1e} of "
        f"itself), intercept by {abs(weights.b - b):.1e}, AUROC {auroc:.6f} by {abs(ours_auroc - auroc):.1e}\n"
        f"  out of core {ours:.1f} s with {workers} processes, {report.passes:.1f} passes; "
        f"scikit-learn {theirs:.1f} s, vectors in memory",
        flush=True,
    )


def fit(url: str, rows: int, workers: int) -> dict[str, object]:
    """Fit as a user would. Return what is known of it."""
    begin = time.perf_counter()
    if HAS_OPTION:
        with Store(url) as store:
            document = store.fit_probe(
                f"fit-{int(time.time())}", layers=str(LAYER), positions="decision", where=f"example < {rows}", c=C,
                out_of_core=True, memory_budget=BUDGET, executor="local", workers=workers,
            )  # fmt: skip
        cell = document.cells[0]
        return {
            "seconds": time.perf_counter() - begin, "how": "Store.fit_probe, out_of_core", "n_train": cell.n_train,
            "n_validation": cell.n_validation, "auroc": cell.auroc, "auroc_low": cell.auroc_low,
        }  # fmt: skip
    with Store(url) as store:
        rows_N, y_N = labelled(store, rows)
        reader = store.reader
        labels = time.perf_counter() - begin
    with open_tasks("local", workers) as tasks:
        source = stored_array(reader, SITE, LAYER, None, rows_N)
        weights, report = fit_logistic(source, rows_N, y_N, C, "balanced", tasks, on_pass=_tell(begin))
        fitted = time.perf_counter() - begin
        scores(source, rows_N, weights, tasks)
    seconds = time.perf_counter() - begin
    found = {name: getattr(report, name) for name in report.__slots__}
    return {"seconds": seconds, "labels": labels, "fit": fitted - labels, "how": "fit_logistic + scores", **found}


def _tell(begin: float):  # type: ignore[no-untyped-def]
    return lambda what: print(f"  {time.perf_counter() - begin:6.1f} s: {what}", flush=True)


def plain_pass(url: str, rows: int, workers: int) -> float:
    """Return the seconds of one pass by raw tensorstore, with as many processes."""
    key = f"{url}/activations/main/{SITE}/{LAYER}/"
    tasks_of = [(key, first, min(first + UNIT_ROWS, rows)) for first in range(0, rows, UNIT_ROWS)]
    with open_tasks("local", workers) as tasks:
        list(tasks.map(raw_read, tasks_of[:workers]))  # imports, and the array is open
        begin = time.perf_counter()
        n_read = sum(tasks.map(raw_read, tasks_of))
        seconds = time.perf_counter() - begin
    assert n_read == rows
    return seconds


def raw_read(task: tuple[str, int, int]) -> int:
    """Read a range of rows as tensorstore gives them."""
    import tensorstore

    path, first, stop = task
    if path not in _raw:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        _raw[path] = tensorstore.open(spec, open=True).result()
    return len(_raw[path][first:stop].read().result())


_raw: dict[str, object] = {}


def measured(command: list[str]) -> tuple[dict[str, object], float, float]:
    """Run a command that prints JSON last. Return that, and the peaks of RSS and PSS over its processes, in GB."""
    rss, pss, number = 0.0, 0.0, 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        top = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                family = [top, *top.children(recursive=True)]
                rss = max(rss, _total(family, full=False))
                if number % 5 == 0:
                    pss = max(pss, _total(family, full=True))
            number += 1
            time.sleep(0.05)
        output.seek(0)
        said = output.read()
    if process.returncode:
        sys.exit(said)
    *lines, last = said.strip().splitlines()
    print("\n".join(lines), flush=True)
    return json.loads(last), rss / 1e9, pss / 1e9


def _total(family: list[psutil.Process], *, full: bool) -> float:
    total = 0
    for one in family:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += one.memory_full_info().pss if full else one.memory_info().rss
    return float(total)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--many-rows", type=int, default=2_000_000)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", help="where stores are made; one that is there already is used again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(fit(given.child, given.many_rows, given.workers), default=str))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.folder or temporary)
        if given.rows:
            url = _made(folder, given.rows, given.width)
            against_scikit_learn(url, given.rows, given.workers)
        if given.many_rows:
            url = _made(folder, given.many_rows, given.width)
            once = plain_pass(url, given.many_rows, given.workers)
            options = {"--child": url, "--many-rows": given.many_rows, "--workers": given.workers}
            command = [str(word) for option in options.items() for word in option]
            found, rss, pss = measured([sys.executable, __file__, *command])
            again = plain_pass(url, given.many_rows, given.workers)
            once = min(once, again)
            print(
                f"{given.many_rows:,} x {given.width} with {given.workers} processes, {found.pop('how')}: "
                f"{found['seconds']:.0f} s, {found['seconds'] / once:.1f} x one plain pass ({once:.1f} s); "
                f"peak memory {rss:.2f} GB (RSS of all processes), {pss:.2f} GB (PSS)\n  {found}"
            )


def _made(folder: Path, rows: int, width: int) -> str:
    place = folder / f"{rows}x{width}"
    return str(place) if (place / "manifest.json").exists() else make(place, rows, width)


if __name__ == "__main__":
    main()
