"""Where the device has too little memory for a pass, the pass is divided, the run goes on, and nothing is lost."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import add_probe
from quick import quick_runs

from cliffstore import Store
from cliffstore.cli.main import main
from cliffstore.extract.memory import is_out_of_memory
from cliffstore.extract.passes import Passes, plan_passes
from cliffstore.extract.tree import UnitExample
from cliffstore.model.capture import PassTensors, Sink, SiteCapture
from cliffstore.run.executor import MOST_ATTEMPTS

N_LAYERS = 4
NOTICE = re.compile(r"^note: .+: out of memory on cpu: passes of at most ([\d,]+) tokens from here on", re.MULTILINE)
TOO_BIG = "a forward pass of one example or token does not fit into the device's memory"
_THINGS = (
    "bread", "chair", "sky", "bicycle", "garden", "boat", "library", "soup", "path", "club", "rain", "scarf", "knife",
    "train", "play", "gate",
)  # fmt: skip

TREE, PADDED = ["--passes", "tree"], ["--passes", "padded"]


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@dataclass
class SmallDevice:
    """A device on which passes run out of memory.

    Attributes
    ----------
    fits : whether a pass fits
    arrays : how many arrays a pass that does not fit gives before it dies; wrong ones, to see that they are replaced
    error : what it dies of
    events : tokens of the passes of units as they were tried, and whether they fitted
    """

    fits: Callable[[PassTensors], bool]
    arrays: int = 0
    error: Exception = field(default_factory=lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate."))
    events: list[tuple[int, bool]] = field(default_factory=list)

    @property
    def failed(self) -> list[int]:
        return [tokens for tokens, fitted in self.events if not fitted]

    @property
    def ran(self) -> list[int]:
        return [tokens for tokens, fitted in self.events if fitted]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> SmallDevice:
        """Put the device under every pass of a unit; choosing passes is not its subject."""
        on_a_large_one = SiteCapture.run

        def run(capture: SiteCapture, one: PassTensors, sink: Sink, **options: bool) -> None:
            of_a_unit = getattr(sink, "__name__", "") == "take" and hasattr(sink, "__self__")
            fits = not of_a_unit or self.fits(one)
            if of_a_unit:
                self.events.append((one.input_ids_BT.numel(), fits))
            if fits:
                on_a_large_one(capture, one, sink, **options)
                return
            taken: list[str] = []

            def take_some(name: str, vectors_ND: torch.Tensor) -> None:
                if len(taken) == self.arrays:
                    raise self.error
                taken.append(name)
                sink(name, vectors_ND + 1_000)

            on_a_large_one(capture, one, take_some, **options)

        monkeypatch.setattr(SiteCapture, "run", run)
        return self


def holds(tokens: int) -> Callable[[PassTensors], bool]:
    return lambda one: one.input_ids_BT.numel() <= tokens


@dataclass(frozen=True)
class Case:
    """What is extracted, and the store of a run with memory enough."""

    corpus: str
    model: str
    reference: Path

    def command(self, store: Path, *more: str) -> list[str]:
        return [
            "extract", self.corpus, "--model", self.model, "--store", str(store), "--unit-rows", "256", "--json", *more,
        ]  # fmt: skip

    def differs(self, store: Path) -> float:
        """Return the largest |difference| / |reference| of a vector; the store must be whole."""
        largest = 0.0
        with Store(str(store)) as mine, Store(str(self.reference)) as theirs:
            assert not mine.verify().findings
            rows = [
                one.sql("SELECT DISTINCT row FROM tokens ORDER BY row").fetchnumpy()["row"] for one in (mine, theirs)
            ]
            np.testing.assert_array_equal(*rows)
            for layer in range(N_LAYERS):
                found, expected = (one.vectors("resid_post", layer, rows[0]) for one in (mine, theirs))
                relative = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
                largest = max(largest, float(relative.max()))
        return largest


@pytest.fixture(scope="module")
def case(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Examples of some 80 tokens that share beginnings, in at least four units; one word is in one of them only."""
    folder = tmp_path_factory.mktemp("memory")
    rows = []
    for number in range(24):
        thing, other = _THINGS[number // 3], _THINGS[-1 - number % 16]
        words = " ".join(f"{thing} {other} {number * step}" for step in range(1, 7)) + (
            " zebra" if number == 10 else ""
        )
        rows.append({"id": f"e{number:02d}", "prompt": f"Tell me about {thing}. I mean the {other}: {words}"})
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    case = Case(str(corpus), tiny_model, folder / "reference")
    assert main(case.command(case.reference, *PADDED, "--pass-tokens", "512")) == 0
    return case


def told(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, object], list[int], str]:
    """Return the report of the run just made, the sizes that its notices named, and all it said."""
    printed = capsys.readouterr()
    report = json.loads(printed.out) if printed.out else {}
    return report, [int(size.replace(",", "")) for size in NOTICE.findall(printed.err)], printed.err


@pytest.mark.parametrize(
    ("passes", "pass_tokens", "memory", "arrays"),
    [(TREE, 128, 70, 0), (TREE, 128, 70, 2), (TREE, 64, 20, 3), (PADDED, 512, 200, 0), (PADDED, 512, 200, 2)],
    ids=["tree", "tree, partway", "tree with paths, partway", "padded", "padded, partway"],
)
def test_pass_is_divided_and_nothing_is_lost(
    case: Case,
    passes: list[str],
    pass_tokens: int,
    memory: int,
    arrays: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = SmallDevice(holds(memory), arrays).install(monkeypatch)
    assert main(case.command(tmp_path / "store", *passes, "--pass-tokens", str(pass_tokens))) == 0
    report, notices, _ = told(capsys)
    assert report["units"] == report["units_done_now"]
    assert int(str(report["units"])) >= 4
    assert device.failed
    assert max(device.ran) <= memory
    assert case.differs(tmp_path / "store") <= 1e-5

    assert notices == [tokens // 2 for tokens in device.failed], "one notice a shrink"
    assert notices == sorted(set(notices), reverse=True)
    assert len(device.failed) <= 3, "what did not fit is remembered"
    with Store(str(tmp_path / "store")) as store:
        (capture,) = store.reader.captures()
    assert capture.passes.tokens == pass_tokens, "the capture keeps what was asked for"


def planned_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the size of passes whenever those of a unit are planned."""
    sizes: list[int] = []

    def plan_and_tell(examples: list[UnitExample], kind: str, tokens: int, **options: object) -> list[Passes]:
        sizes.append(tokens)
        return plan_passes(examples, kind, tokens, **options)

    monkeypatch.setattr("cliffstore.extract.runner.plan_passes", plan_and_tell)
    return sizes


def test_later_units_begin_with_the_smaller_size(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 128 nodes a unit has two passes or more; the first does not fit, and none of that size is tried again."""
    sizes = planned_sizes(monkeypatch)
    device = SmallDevice(holds(70)).install(monkeypatch)
    assert main(case.command(tmp_path / "store", *TREE, "--pass-tokens", "128")) == 0
    (first, fitted), *others = device.events
    assert not fitted
    assert all(fitted and tokens <= first // 2 + 1 for tokens, fitted in others)
    assert len(sizes) >= 4
    assert sizes == [128, *[first // 2] * (len(sizes) - 1)]


def test_example_that_is_alone_in_its_padded_pass_goes_piece_by_piece(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = SmallDevice(holds(30), arrays=1).install(monkeypatch)
    assert main(case.command(tmp_path / "store", *PADDED, "--pass-tokens", "200")) == 0
    _, notices, _ = told(capsys)
    assert notices == [tokens // 2 for tokens in device.failed]
    assert max(device.ran) <= 30
    assert case.differs(tmp_path / "store") <= 1e-5


def test_scores_of_a_pass_that_died_are_replaced(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = [f"--probe={add_probe(case.reference, f'of-{layer}', layer=layer, seed=layer)}" for layer in (0, 3)]
    scores: list[dict[str, np.ndarray]] = []
    for memory in (10**9, 50):
        store_path = tmp_path / f"store-{memory}"
        with monkeypatch.context() as patch:
            SmallDevice(holds(memory), arrays=1).install(patch)
            assert main(case.command(store_path, *TREE, "--pass-tokens", "128", *probes)) == 0
        with Store(str(store_path)) as store:
            scores.append(store.sql("SELECT * FROM scores ORDER BY probe, example, position").fetchnumpy())
        assert bool(told(capsys)[1]) is (memory == 50)
    large, small = scores
    assert set(large["probe"]) == {"of-0", "of-3"}
    for column in ("probe", "example", "position"):
        np.testing.assert_array_equal(small[column], large[column])
    np.testing.assert_allclose(small["score"], large["score"], rtol=0, atol=1e-5 * np.abs(large["score"]).max())


def only_in_one_unit(case: Case) -> tuple[int, int]:
    """Return a token that one unit alone has, and the unit."""
    with Store(str(case.reference)) as store:
        found = store.sql(
            "SELECT token_id, min(unit) FROM tokens JOIN examples USING (example) GROUP BY 1 "
            "HAVING min(unit) = max(unit) ORDER BY 2 DESC, count(*), 1 LIMIT 1"
        ).fetchall()
    return int(found[0][0]), int(found[0][1])


@pytest.mark.parametrize(
    ("passes", "trees", "least"),
    [(TREE, True, 1), (PADDED, True, 1), (PADDED, False, 50)],
    ids=["tree", "padded", "padded without pieces"],
)
def test_what_cannot_be_divided_fails_its_unit_and_no_other(
    case: Case,
    passes: list[str],
    trees: bool,
    least: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A token that never fits: passes shrink to it alone (or to its example, where it cannot go in pieces)."""
    token, unit = only_in_one_unit(case)
    store_path = tmp_path / "store"
    command = case.command(store_path, *passes, "--pass-tokens", "512")
    with monkeypatch.context() as patch:
        if not trees:
            patch.setattr("cliffstore.extract.runner.disagreement", lambda *_: "made up")
        device = SmallDevice(lambda one: token not in one.input_ids_BT.unique().tolist()).install(patch)
        assert main(command) == 1
    report, _, error = told(capsys)
    assert report == {}
    assert error.splitlines()[-1].endswith(TOO_BIG)
    assert "Traceback" not in error
    assert least <= device.failed[-1] <= least * 2
    with Store(str(store_path)) as store:
        units = store.sql("SELECT unit, extracted, error FROM units ORDER BY unit").fetchall()
    assert units == [(number, number != unit, TOO_BIG if number == unit else None) for number in range(len(units))]

    assert main(command) == 0
    assert told(capsys)[0]["units_done_now"] == 1
    assert case.differs(store_path) <= 1e-5


def test_another_error_of_a_pass_is_not_taken_for_it(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No pass is divided: each attempt at a unit plans passes of the size asked for, and ends with its first."""
    sizes = planned_sizes(monkeypatch)
    wrong = RuntimeError("The size of tensor a must match the size of tensor b")
    device = SmallDevice(holds(0), error=wrong).install(monkeypatch)
    assert main(case.command(tmp_path / "store", *TREE, "--pass-tokens", "128")) == 1
    _, notices, error = told(capsys)
    assert notices == []
    assert "RuntimeError: The size of tensor a" in error.splitlines()[-1]
    with Store(str(tmp_path / "store")) as store:
        attempts = [row[0] for row in store.sql("SELECT attempt FROM units WHERE error IS NOT NULL").fetchall()]
        n_units = store.sql("SELECT count(*) FROM units").fetchall()[0][0]
    assert attempts == [MOST_ATTEMPTS] * n_units
    assert sizes == [128] * sum(attempts), "each attempt planned its passes once"
    assert len(device.failed) == sum(attempts), "each attempt tried one pass"
    assert device.ran == []
    assert all(count % MOST_ATTEMPTS == 0 for count in Counter(device.failed).values()), "and always the same one"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no room"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of range"), False),
    ],
)
def test_errors_that_say_that_memory_is_short(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
