"""How passes are made is chosen once: the capture says it, and every later run of it goes by that.

Passes over trees are used only where they give what the model itself gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import Result, ok
from conftest import Built
from quick import quick_runs

from cliffstore import Store
from cliffstore.extract import calibration
from cliffstore.model import attention

N_LAYERS = 4
SWITCHED_OFF = "passes over prefix trees are off"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_runs():
        yield


def arguments(built: Built, store: Path, *more: str) -> list[str]:
    command = ["extract", built.corpus, "--model", built.model, "--store", store, "--unit-rows", "256", "--json", *more]
    return [str(part) for part in command]


def recorded(store: Path) -> dict[str, object]:
    (document,) = store.glob("captures/main/*.json")
    return json.loads(document.read_text())["passes"]


def forget_unit(store: Path, unit: int) -> dict[str, np.ndarray]:
    """Uncommit a unit and wipe its vectors; return them by array."""
    (receipt,) = store.glob(f"receipts/*/unit-{unit:06d}.json")
    rows = json.loads(receipt.read_text())
    receipt.unlink()
    vectors: dict[str, np.ndarray] = {}
    for folder in sorted(path.parent for path in store.glob("activations/main/*/*/zarr.json")):
        array = zarr.open_array(folder, mode="r+")
        span = slice(rows["row_start"], rows["row_start"] + rows["n_rows"])
        vectors[str(folder.relative_to(store))] = np.asarray(array[span])
        (folder / "c" / str(unit) / "0").unlink()
    assert len(vectors) == N_LAYERS
    return vectors


def of_unit(store: Path, unit: int, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(zarr.open_array(store / name, mode="r")[256 * unit : 256 * unit + len(rows)])
        for name, rows in like.items()
    }


def assert_right(built: Built, store: Path) -> None:
    """Vectors are those of the finished store, token by token."""
    query = "SELECT example, position, row FROM tokens ORDER BY example, position"
    with Store(str(store)) as mine, Store(str(built.store)) as theirs:
        rows = [one.sql(query).fetchnumpy()["row"] for one in (mine, theirs)]
        for layer in range(N_LAYERS):
            found, expected = (
                one.vectors("resid_post", layer, own) for one, own in zip((mine, theirs), rows, strict=True)
            )
            relative = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
            assert relative.max() <= 1e-5


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """Return kind, size and chunking of the passes of each unit, as they are planned."""
    from cliffstore.extract import runner

    seen: list[tuple[str, int, bool]] = []
    plan = runner.plan_passes

    def plan_and_tell(examples, kind, tokens, *, chunk, whole_above):
        seen.append((kind, tokens, chunk))
        return plan(examples, kind, tokens, chunk=chunk, whole_above=whole_above)

    monkeypatch.setattr(runner, "plan_passes", plan_and_tell)
    return seen


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        (("--passes", "tree", "--pass-tokens", "100"), {"kind": "tree", "tokens": 100}),
        (("--passes", "padded", "--pass-tokens", "300"), {"kind": "padded", "tokens": 300}),
        (("--passes", "padded"), {"kind": "padded"}),
        ((), {}),
    ],
)
def test_capture_records_its_passes(
    built: Built,
    options: tuple[str, ...],
    passes: dict[str, object],
    tmp_path: Path,
    planned: list[tuple[str, int, bool]],
) -> None:
    report = ok(*arguments(built, tmp_path / "store", *options)).json
    held = recorded(tmp_path / "store")
    assert held == report["passes"]
    assert held.items() >= passes.items()
    assert held["products"] == "native"
    assert set(planned) == {(held["kind"], held["tokens"], True)}
    assert_right(built, tmp_path / "store")


@pytest.mark.parametrize("kind", ["tree", "padded"])
def test_resumed_run_makes_the_passes_of_the_first(
    built: Built, kind: str, tmp_path: Path, planned: list[tuple[str, int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine would choose another kind and size; the bits must be those of the first."""
    store = tmp_path / "store"
    ok(*arguments(built, store, "--passes", kind, "--pass-tokens", "100"))
    first = forget_unit(store, 1)
    monkeypatch.setattr(calibration, "SIZES", {"cpu": {"tree": (31,), "padded": (37,)}})
    monkeypatch.setattr(calibration, "_TREE_COST", 100.0 if kind == "tree" else 0.01)
    other = ok(*arguments(built, tmp_path / "other")).json["passes"]
    assert other["kind"] != kind
    planned.clear()
    document = next(store.glob("captures/main/*.json")).read_bytes()
    result = ok(*arguments(built, store))
    assert result.json["units_done_now"] == 1
    assert planned == [(kind, 100, True)]
    assert result.json["passes"] == recorded(store) == {"kind": kind, "tokens": 100, "products": "native"}
    assert next(store.glob("captures/main/*.json")).read_bytes() == document
    for name, rows in of_unit(store, 1, first).items():
        np.testing.assert_array_equal(rows, first[name])


def test_other_passes_on_resume_are_told_to_be_ignored(
    built: Built, tmp_path: Path, planned: list[tuple[str, int, bool]]
) -> None:
    store = tmp_path / "store"
    ok(*arguments(built, store, "--passes", "tree", "--pass-tokens", "100"))
    for options, told in (
        (("--passes", "padded"), True),
        (("--pass-tokens", "64"), True),
        (("--passes", "tree", "--pass-tokens", "100"), False),
    ):
        forget_unit(store, 0)
        planned.clear()
        result = ok(*arguments(built, store, *options))
        assert planned == [("tree", 100, True)]
        assert ("note: the capture was begun with --passes tree --pass-tokens 100" in result.stderr) is told


@pytest.mark.parametrize(("limit", "told"), [(20, 1), (10_000, 0), (None, 0)])
def test_rows_that_depend_on_length_are_told_of(
    built: Built, limit: int | None, told: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cliffstore.extract.runner.length_dependent_above", lambda _config: limit)
    result = ok(*arguments(built, tmp_path / "store"))
    notices = [line for line in result.stderr.splitlines() if "depends on the length of the whole example" in line]
    assert len(notices) == told
    assert all("above 20 this model's" in line for line in notices)
    assert_right(built, tmp_path / "store")


def break_attention(patch: pytest.MonkeyPatch) -> None:
    """Make the replaced attention differ from the model's own by half a percent."""
    right = attention._dense
    patch.setattr(attention, "_dense", lambda *arguments: right(*arguments) * 1.005)


def say_so(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("cliffstore.extract.runner.disagreement", lambda *_: "made up")


def refuse_attention(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention, "install", lambda _model: False)


Breaks = Callable[[pytest.MonkeyPatch], None]


def warned(result: Result) -> int:
    return sum(line.startswith(f"note: {SWITCHED_OFF}") for line in result.stderr.splitlines())


@pytest.mark.parametrize(
    ("breaks", "options"),
    [
        (break_attention, ("--passes", "tree")),
        (break_attention, ("--passes", "padded")),
        (break_attention, ()),
        (say_so, ()),
        (refuse_attention, ("--passes", "tree")),
    ],
)
def test_model_that_disagrees_with_trees_is_padded(
    built: Built,
    breaks: Breaks,
    options: tuple[str, ...],
    tmp_path: Path,
    planned: list[tuple[str, int, bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said once, the capture records padded passes, vectors are the model's own; and so when it goes on."""
    store = tmp_path / "store"
    breaks(monkeypatch)
    result = ok(*arguments(built, store, *options))
    assert warned(result) == 1
    assert recorded(store)["kind"] == result.json["passes"]["kind"] == "padded"
    assert {(kind, chunk) for kind, _, chunk in planned} == {("padded", False)}
    assert_right(built, store)

    first = forget_unit(store, 1)
    planned.clear()
    result = ok(*arguments(built, store))
    assert result.json["units_done_now"] == 1
    assert [(kind, chunk) for kind, _, chunk in planned] == [("padded", False)]
    for name, rows in of_unit(store, 1, first).items():
        np.testing.assert_array_equal(rows, first[name])


def test_capture_of_trees_goes_on_where_they_cannot_be_used(
    built: Built, tmp_path: Path, planned: list[tuple[str, int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another library version, say: padded passes, told; the capture keeps what it was begun with."""
    store = tmp_path / "store"
    ok(*arguments(built, store, "--passes", "tree", "--pass-tokens", "100"))
    forget_unit(store, 1)
    planned.clear()
    break_attention(monkeypatch)
    result = ok(*arguments(built, store))
    assert warned(result) == 1
    assert planned == [("padded", 100, False)]
    assert recorded(store)["kind"] == "tree"
    assert_right(built, store)


def test_worker_that_chose_nothing_checks_too(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of several workers chooses passes; all of them must find out that trees are wrong."""
    from cliffstore.extract.job import Job, WorkerSpec
    from cliffstore.extract.unit import UnitWorker
    from cliffstore.model.identity import find_model
    from cliffstore.store.reader import StoreReader

    store = tmp_path / "store"
    ok(*arguments(built, store, "--passes", "padded"))
    first = forget_unit(store, 0)
    break_attention(monkeypatch)
    reader = StoreReader(str(store))
    (capture,) = reader.captures()
    (plan,) = reader.plans()
    spec = WorkerSpec(find_model(built.model, None, print), tuple(capture.arrays), "float32", "cpu", threads=1)
    worker = UnitWorker(spec)
    worker.begin(Job(str(store), (plan.plan,), capture.passes, capture))
    report = worker.extract(0)
    assert any(SWITCHED_OFF in notice for notice in report.notices)
    for name, rows in of_unit(store, 0, first).items():
        np.testing.assert_allclose(rows, first[name], rtol=1e-4, atol=1e-5)
