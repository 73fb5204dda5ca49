"""What a run will take is said before anything is written, is true, and where it is much, needs a yes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from commands import ok, run_cli, snapshot
from conftest import PROBE, Built
from quick import quick_runs

from cliffstore import extract
from cliffstore.errors import ConfigError

LINE = re.compile(
    r"^estimate: ([\d,]+) tokens in ([\d,]+) rows, (?:(.+) of vectors before compression \((.+)\)|scores only), "
    r"about (.+) of computing$"
)
MUCH = {"confirm_gb": 0.0}
LONG = {"confirm_hours": 1e-9}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_runs():
        yield


class Watching:
    """A reporter that keeps what it is told and asked, and what was in the store's folder then."""

    def __init__(self, folder: Path, answer: bool | None = None) -> None:
        self.folder, self.answer = folder, answer
        self.stages: list[tuple[str, bool]] = []
        self.questions: list[str] = []

    @property
    def estimate(self) -> re.Match[str]:
        (line,) = [text for text, _ in self.stages if text.startswith("estimate: ")]
        found = LINE.match(line)
        assert found, line
        return found

    def stage(self, text: str) -> None:
        self.stages.append((text, self.folder.exists()))

    def ask(self, question: str) -> bool | None:
        self.questions.append(question)
        assert not self.folder.exists()
        return self.answer

    def notice(self, text: str, event: str = "notice") -> None: ...
    def begin(self, what: str, total: int, done: int = 0) -> None: ...
    def advance(self, piece: object = None) -> None: ...
    def end(self) -> None: ...


def in_bytes(text: str) -> float:
    value, unit = text.replace(",", "").split()
    return float(value) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def stored_bytes(store: Path) -> dict[str, int]:
    """Return site -> bytes of the rows that were written, from the arrays themselves."""
    import zarr

    n_rows = sum(json.loads(path.read_text())["n_rows"] for path in store.glob("receipts/*/unit-*.json"))
    sites: dict[str, int] = {}
    for folder in store.glob("activations/main/*/*/zarr.json"):
        array = zarr.open_array(folder.parent, mode="r")
        row_bytes = array.dtype.itemsize * int(array.size / array.shape[0])
        site = folder.parent.parent.name
        sites[site] = sites.get(site, 0) + n_rows * row_bytes
    return sites


@pytest.mark.parametrize("positions", ["all", "decision", "think,last:2"])
@pytest.mark.parametrize("sites", ["resid_post", "resid_mid,final_norm,z"])
def test_estimate_is_what_is_stored(built: Built, positions: str, sites: str, tmp_path: Path) -> None:
    reporter = Watching(tmp_path / "store")
    report = extract(
        str(built.corpus), model=built.model, store=str(reporter.folder), reporter=reporter,
        sites=tuple(sites.split(",")), positions=positions, unit_rows=256, dtype="float16",
    )  # fmt: skip
    tokens, rows, total, by_site, seconds = reporter.estimate.groups()
    assert (int(tokens.replace(",", "")), int(rows.replace(",", ""))) == (report.tokens, report.rows)
    stored = stored_bytes(reporter.folder)
    assert set(stored) == set(sites.split(","))
    assert sum(stored.values()) == report.bytes
    shown = {one.split(" ", 1)[0]: in_bytes(one.split(" ", 1)[1]) for one in by_site.split(", ")}
    assert shown.keys() == stored.keys()
    for site, size in stored.items():
        assert shown[site] == pytest.approx(size, abs=0.5e3 if size < 1e6 else 0.05e6), site
    assert in_bytes(total) == pytest.approx(report.bytes, abs=0.5e3 if report.bytes < 1e6 else 0.05e6)
    assert seconds
    told = [text for text, _ in reporter.stages]
    assert [existed for text, existed in reporter.stages if not text.startswith("extract")] == [False] * 3, told
    assert told[2].startswith("estimate: ")


def test_estimate_of_scores(built: Built, tmp_path: Path) -> None:
    reporter = Watching(tmp_path / "store")
    options = {"probe": (f"{built.store}/probes/{PROBE}",), "confirm_gb": 0}
    report = extract(built.corpus, model=Path(built.model), store=reporter.folder, reporter=reporter, **options)
    assert reporter.estimate.group(3) is None
    assert int(reporter.estimate.group(2).replace(",", "")) == report.rows
    assert report.units_done_now == report.units


def test_estimate_of_the_rest(built: Built, tmp_path: Path) -> None:
    """What is stored already does not count."""
    first = Watching(tmp_path / "store")
    options = {"model": built.model, "store": str(first.folder), "unit_rows": 256}
    whole = extract(str(built.corpus), reporter=first, **options)
    (capture,) = (first.folder / "receipts").iterdir()
    receipt = json.loads((capture / "unit-000001.json").read_text())
    (capture / "unit-000001.json").unlink()
    again = Watching(tmp_path / "store")
    rest = extract(str(built.corpus), reporter=again, **options)
    assert int(again.estimate.group(2).replace(",", "")) == receipt["n_rows"] < whole.rows
    assert int(again.estimate.group(1).replace(",", "")) == receipt["n_tokens"]
    assert rest.bytes == receipt["bytes"]


@pytest.mark.parametrize("limit", [("--confirm-gb", "0"), ("--confirm-hours", "1e-9")])
def test_much_without_a_terminal_is_not_begun(built: Built, limit: tuple[str, str], tmp_path: Path) -> None:
    arguments = ("extract", built.corpus, "--model", built.model, "--store", tmp_path / "store", *limit)
    before = snapshot(tmp_path)
    result = run_cli(*arguments)
    assert result.code == 2
    assert result.text == ""
    *_, estimate, error = result.stderr.splitlines()
    assert LINE.match(estimate)
    for part in ("error: ", *limit, "--yes", "nothing was written"):
        assert part.removesuffix("1e-9").removesuffix("0") in error
    assert snapshot(tmp_path) == before
    assert ok(*arguments, "--yes", "--json").json["units_failed"] == 0
    assert (tmp_path / "store" / "manifest.json").exists()


@pytest.mark.parametrize("much", [MUCH, LONG], ids=["bytes", "hours"])
def test_answer_on_a_terminal_decides(
    built: Built, much: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    store = tmp_path / "store"
    no, yes = Watching(store, answer=False), Watching(store, answer=True)
    options = {"model": built.model, "store": str(store), **much}
    with pytest.raises(ConfigError, match="nothing was written"):
        extract(str(built.corpus), reporter=no, **options)
    assert not store.exists()
    report = extract(str(built.corpus), reporter=yes, **options)
    assert report.units_done_now == report.units
    for reporter in (no, yes):
        assert len(reporter.questions) == 1
        assert reporter.estimate


def test_what_is_little_is_not_asked(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    reporter = Watching(tmp_path / "store", answer=False)
    assert extract(str(built.corpus), model=built.model, store=str(reporter.folder), reporter=reporter).units_done_now
    assert reporter.questions == []


def test_refusal_leaves_a_store_that_is_there_as_it_was(built: Built, tmp_path: Path) -> None:
    """A further capture of the same corpus, above the limit."""
    store = tmp_path / "store"
    ok("extract", built.corpus, "--model", built.model, "--store", store, "--layers", "0")
    before = snapshot(store)
    result = run_cli(
        "extract", built.corpus, "--model", built.model, "--store", store, "--layers", "1,2", "--confirm-gb", "0"
    )
    assert result.code == 2
    assert "--yes" in result.stderr.splitlines()[-1]
    assert snapshot(store) == before
