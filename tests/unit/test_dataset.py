"""`ActivationDataset`: every row once over ranks and workers, the same sequence after a stop, and nothing silent."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import active_children, forkserver, get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from servers import Storage
from vector_store import VectorStore

import cliffstore
from cliffstore import ActivationDataset, ActivationLoader
from cliffstore.errors import CliffstoreError, ConfigError, DamagedStoreError, QueryError, StoreError
from cliffstore.store import layout
from cliffstore.store.arrays import open_arrays
from cliffstore.store.objects import ObjectStore
from cliffstore.train import buffers
from cliffstore.train import loader as loading
from cliffstore.train.epochs import Group, Pieces
from cliffstore.train.items import Items

UNITS, UNIT_ROWS = 6, 512
STORE = VectorStore(n_units=UNITS, unit_rows=UNIT_ROWS, width=8, n_layers=2, tokens=4, dtype="bfloat16")
ROWS = STORE.n_units * STORE.n_rows


class SharedFirstToken(VectorStore):
    """All examples of a unit share the row of their first token."""

    def _tokens(self, unit: int) -> pa.Table:
        table = VectorStore._tokens(self, unit)
        rows = pc.if_else(pc.equal(table["position"], 0), unit * self.unit_rows, table["row"])
        return table.set_column(table.schema.get_field_index("row"), "row", rows).cast(table.schema)


class Stateful(torch.utils.data.IterableDataset):
    """What torchdata's StatefulDataLoader does in a worker: load its state, then take one with each batch."""

    def __init__(self, dataset: ActivationDataset, states: list[dict[str, object] | None]) -> None:
        self._dataset, self._states = dataset, states

    def __iter__(self) -> Iterator[tuple[list[int], dict[str, object]]]:
        state = self._states[torch.utils.data.get_worker_info().id]
        if state is not None:
            self._dataset.load_state_dict(state)
        for batch in self._dataset:
            yield batch["row"].tolist(), self._dataset.state_dict()


@pytest.fixture(scope="module", autouse=True)
def quick_workers() -> Iterator[None]:
    """Fork workers from a process that has everything imported."""
    get_context("forkserver").set_forkserver_preload(["torch", "cliffstore.train.dataset"])
    yield
    forkserver._forkserver._stop()


@pytest.fixture(autouse=True)
def no_workers_left() -> Iterator[None]:
    """A test that fails leaves its workers, for which the process that they were forked from would wait."""
    before = {*active_children()}
    yield
    for worker in {*active_children()} - before:
        worker.kill()
        worker.join()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("dataset") / "store")
    STORE.make(ObjectStore(url))
    return url


@pytest.fixture
def own_url(tmp_path: Path) -> str:
    """A store that a test may harm."""
    STORE.make(ObjectStore(str(tmp_path / "store")))
    return str(tmp_path / "store")


def made(url: str, **settings: object) -> ActivationDataset:
    small = {"layer": 1, "batch_rows": 64, "buffer_rows": 256, "piece_rows": 256}
    return ActivationDataset(url, **{**small, **settings})  # type: ignore[arg-type]


def rows_of(batches: Iterable[dict[str, object]]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]  # type: ignore[attr-defined]


def flat(batches: Sequence[Sequence[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def expected(layer: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    whole = np.concatenate([STORE.vectors_of(layer, unit) for unit in range(UNITS)])
    return whole[np.asarray(rows)]


def test_two_ranks_with_two_workers_see_every_row_once(url: str) -> None:
    seen, steps = [], []
    for rank in range(2):
        loader = made(url, rank=rank, world_size=2).loader(2)
        batches = list(loader)
        assert all(torch.equal(b["vectors"].float(), torch.from_numpy(expected(1, b["row"]))) for b in batches)
        assert len(batches) == len(loader)
        seen += flat(rows_of(batches))
        steps.append(len(batches))
        loader.close()
    assert sorted(seen) == list(range(ROWS))
    assert steps[0] == steps[1]


def test_workers_do_not_overrun_a_slow_loop(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their memory is a ring: give them the time to fill what is not taken yet."""
    received = loading._Sent.received

    def slowly(self: loading._Sent, rings: loading._Rings | None) -> dict[str, object]:
        time.sleep(0.02)
        return received(self, rings)  # type: ignore[return-value]

    monkeypatch.setattr(loading._Sent, "received", slowly)
    for n_workers, prefetch_factor, n_rows in ((1, 1, 900), (2, 1, 1000), (2, 3, 1000)):
        loader = made(url, where=f"t.row < {n_rows}").loader(n_workers, prefetch_factor=prefetch_factor)
        for batch in loader:
            assert torch.equal(batch["vectors"].float(), torch.from_numpy(expected(1, batch["row"])))
        loader.close()


def test_batch_that_was_overwritten_is_an_error(url: str) -> None:
    """As it would be if DataLoader asked workers for more than it says."""
    dataset = made(url)
    rings = loading._Rings.of(dataset, 1, 3)
    batches = [dict(batch) for _, batch in zip(range(4), dataset, strict=False)]
    sent = [loading._Sent.of(batch, rings, 0, number) for number, batch in enumerate(batches)]
    assert torch.equal(sent[3].received(rings)["row"], batches[3]["row"])
    with pytest.raises(CliffstoreError, match="num_workers=0"):
        sent[0].received(rings)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_columns_arrive_as_they_are_from_any_process(url: str, n_workers: int) -> None:
    loader = made(url, layer=(0, 1), columns=("example", "label"), dtype=torch.float32).loader(n_workers)
    batch = next(iter(loader))
    loader.close()
    alone = next(iter(made(url, layer=(0, 1), columns=("example", "label"), dtype=torch.float32)))
    assert batch.keys() == alone.keys() == {"vectors", "row", "example", "label"}
    assert torch.equal(batch["vectors"], alone["vectors"])
    assert torch.equal(batch["example"], alone["example"])
    assert batch["label"] == alone["label"]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_epochs_differ_and_seeds_repeat(url: str, n_workers: int) -> None:
    loader = made(url).loader(n_workers)
    first, second = rows_of(loader), rows_of(loader)
    assert first != second
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(ROWS))
    loader.set_epoch(0)
    assert rows_of(loader) == first
    loader.close()
    again = made(url).loader(n_workers)
    again.set_epoch(1)
    assert rows_of(again) == second
    again.close()
    assert rows_of(made(url, seed=1)) != first


@pytest.mark.parametrize(("n_workers", "stops"), [(0, (1, 7, 48)), (2, (1, 7, 47))])
def test_a_stopped_pass_goes_on_with_the_same_sequence(url: str, n_workers: int, stops: tuple[int, ...]) -> None:
    loader = made(url).loader(n_workers)
    whole = [rows_of(loader), rows_of(loader)]
    loader.close()
    for stop in stops:
        stopped = made(url).loader(n_workers)
        head = [next(batches)["row"].tolist() for batches in [iter(stopped)] for _ in range(stop)]
        state = json.loads(json.dumps(stopped.state_dict()))
        stopped.close()
        resumed = made(url).loader(n_workers)
        resumed.load_state_dict(state)
        assert head + rows_of(resumed) == whole[0], stop
        assert rows_of(resumed) == whole[1], "the epoch behind it"
        resumed.close()


def test_a_state_between_epochs(url: str) -> None:
    loader = made(url).loader()
    rows_of(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["batches"]) == (1, 0)
    resumed = made(url).loader()
    resumed.load_state_dict(state)
    assert rows_of(resumed) == rows_of(loader)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_workers_that_ran_out_are_passed_over(url: str) -> None:
    """Three workers, five batches: two workers have two, one has one; the state is taken behind the last of it."""
    settings = {"where": "example < 10", "batch_rows": 8, "buffer_rows": 8}
    loader = made(url, **settings).loader(3)
    whole = rows_of(loader)
    assert len(whole) == 5
    loader.close()
    for stop in (3, 4, 5):
        resumed = made(url, **settings).loader(3)
        resumed.load_state_dict({**loader.state_dict(), "epoch": 0, "batches": stop})
        assert rows_of(resumed) == whole[stop:]
        resumed.close()


def test_a_pass_that_is_left_begins_again(url: str) -> None:
    loader = made(url).loader()
    first = next(iter(loader))["row"].tolist()
    assert rows_of(loader)[0] == first
    assert rows_of(loader)[0] != first


def test_what_was_seen_is_not_read_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made(url)
    groups = ROWS // 256
    filled = _count_groups(monkeypatch)
    dataset.load_state_dict({**dataset.state_dict(), "batches": len(dataset) - 5})  # one batch, and one group
    assert len(rows_of(dataset)) == 5
    assert len(filled) == 2 < groups


def _count_groups(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    filled: list[object] = []
    fill = buffers.Buffers._filled

    def counted(self: buffers.Buffers, group: object) -> object:
        filled.append(group)
        return fill(self, group)  # type: ignore[arg-type]

    monkeypatch.setattr(buffers.Buffers, "_filled", counted)
    return filled


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_memory_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch, prefetch: int) -> None:
    filled, rooms = _count_groups(monkeypatch), []
    room = buffers.Buffers._room
    monkeypatch.setattr(buffers.Buffers, "_room", lambda self: rooms.append(None) or room(self))
    for number, _ in enumerate(made(url, prefetch=prefetch)):
        assert len(filled) <= number // 4 + 1 + prefetch, "groups that are read, or being read"
    assert len(filled) == ROWS // 256
    assert len(rooms) <= prefetch + 1


def test_threads_end_with_a_pass(url: str) -> None:
    batches = iter(made(url))
    next(batches)
    assert any(thread.name.startswith("buffers") for thread in threading.enumerate())
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("buffers") for thread in threading.enumerate())


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_independent_of_each_other(url: str, shuffle: bool) -> None:
    """Buffers are filled again; a batch that was kept must not change, nor keep a whole buffer alive."""
    kept = list(made(url, shuffle=shuffle))
    for batch in kept:
        assert torch.equal(batch["vectors"].float(), torch.from_numpy(expected(1, batch["row"])))
        assert batch["vectors"].untyped_storage().nbytes() == batch["vectors"].nbytes


def test_dtype_is_what_is_stored_unless_asked(url: str) -> None:
    native, single = next(iter(made(url)))["vectors"], next(iter(made(url, dtype=torch.float32)))["vectors"]
    assert native.dtype == torch.bfloat16
    assert single.dtype == torch.float32
    assert torch.equal(native.float(), single)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_several_layers_are_stacked(url: str, dtype: torch.dtype | None) -> None:
    dataset = made(url, layer=np.array([1, 0]), dtype=dtype)
    assert dataset.row_shape == (2, 8)
    batch = next(iter(dataset))
    assert batch["vectors"].shape == (64, 2, 8)
    for place, layer in enumerate([1, 0]):
        assert torch.equal(batch["vectors"][:, place].float(), torch.from_numpy(expected(layer, batch["row"])))


def test_rows_in_their_own_order(url: str) -> None:
    batches = rows_of(made(url, shuffle=False, batch_rows=100))
    assert flat(batches) == list(range(ROWS))
    loader = made(url, shuffle=False, batch_rows=100).loader(2)
    assert rows_of(loader) == batches
    loader.close()


def test_drop_last_gives_full_batches_and_says_what_is_left_out(url: str) -> None:
    said: list[str] = []
    datasets = [made(url, batch_rows=100, rank=r, world_size=2, drop_last=True, notice=said.append) for r in (0, 1)]
    batches = [batch for dataset in datasets for batch in rows_of(dataset)]
    assert {len(batch) for batch in batches} == {100}
    assert len(batches) == 30
    assert said == ["drop_last: 72 of 3,072 rows are left out in each epoch"] * 2


def test_where_gives_each_row_that_satisfies_it_once(url: str) -> None:
    dataset = made(url, where="to_decision = 0 AND label = '1'", columns=("example", "label", "segment", "position"))
    seen = {}
    for batch in dataset:
        assert torch.equal(batch["vectors"].float(), torch.from_numpy(expected(1, batch["row"])))
        assert batch["label"] == ["1"] * len(batch["row"])
        assert batch["segment"] == ["think_close"] * len(batch["row"])
        assert batch["position"].tolist() == [3] * len(batch["row"])
        seen |= dict(zip(batch["row"].tolist(), batch["example"].tolist(), strict=True))
    rows, labels = STORE.rows_and_labels()
    assert seen == {int(rows[example]): example for example in np.flatnonzero(labels)}


def test_a_shared_row_comes_once_with_its_first_pair(tmp_path: Path) -> None:
    store = SharedFirstToken(n_units=2, unit_rows=256, width=4, n_layers=1)
    store.make(ObjectStore(str(tmp_path / "store")))

    def found(where: str) -> dict[int, int]:
        batches = list(made(str(tmp_path / "store"), layer=0, where=where, columns=("example",)))
        assert sum(len(batch["row"]) for batch in batches) == len(set(flat(rows_of(batches))))
        return dict(zip(flat(rows_of(batches)), torch.cat([b["example"] for b in batches]).tolist(), strict=True))

    assert found("position = 0") == {0: 0, 256: 64}
    assert found("position = 0 AND example >= 3") == {0: 3, 256: 64}
    assert len(found("true")) == 2 * (1 + 3 * 64)


def test_columns_alone_leave_the_rows_as_they_are(url: str) -> None:
    dataset = made(url, columns=("id",))
    assert dataset.n_rows == ROWS
    for batch in dataset:
        assert batch["id"] == [f"e{row // 4}" for row in batch["row"].tolist()]


def test_a_comment_in_a_condition_hides_nothing(url: str) -> None:
    assert made(url, where="example < 2 -- a few").n_rows == 8


def test_a_unit_without_receipt_is_left_out_and_told(own_url: str) -> None:
    ObjectStore(own_url).delete(layout.receipt("capture-of-main", 2))
    said: list[str] = []
    held = [row for row in range(ROWS) if row // UNIT_ROWS != 2]
    assert sorted(flat(rows_of(made(own_url, notice=said.append)))) == held
    assert said == ["1 of 6 units are not extracted yet: 512 rows are left out"]
    assert sorted(flat(rows_of(made(own_url, where="true", notice=said.append)))) == held
    assert said[1:] == ["512 of 3,072 positions asked for are not extracted yet and are left out"]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_damage_is_an_error_and_no_hang(own_url: str, n_workers: int) -> None:
    shard = Path(own_url) / layout.shard("activations/main/resid_post/1", 3, 2)
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 255
    shard.write_bytes(content)
    loader = made(own_url).loader(n_workers)
    with pytest.raises(DamagedStoreError, match=r"^array activations/main/resid_post/1 cannot be read: [^\n]*$"):
        rows_of(loader)
    loader.close()


def test_state_of_other_rows_or_settings_is_refused(url: str, own_url: str) -> None:
    state = made(url).state_dict()
    for settings, match in (
        ({"seed": 1}, "seed=0, not 1"),
        ({"batch_rows": 32}, "batch_rows=64, not 32"),
        ({"rank": 0, "world_size": 2}, "world_size=1, not 2"),
        ({"where": "example > 3"}, "state is of other rows"),
        ({"layer": 0}, "state is of other rows"),
        ({"piece_rows": 512}, "state is of other rows"),
    ):
        with pytest.raises(ConfigError, match=match):
            made(url, **settings).load_state_dict(state)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_workers=1, not 2"):
        made(url).loader(2).load_state_dict(state)
    ObjectStore(own_url).delete(layout.receipt("capture-of-main", 2))
    with pytest.raises(ConfigError, match="state is of other rows"):
        made(own_url, notice=lambda _: None).load_state_dict(state)
    with pytest.raises(ConfigError, match="no state of an ActivationDataset"):
        made(url).load_state_dict({"epoch": 3})
    made(url, prefetch=3, dtype=torch.float32).load_state_dict(state)


def test_ranks_come_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (made(url).rank, made(url).world_size) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (made(url).rank, made(url).world_size) == (2, 4)
    assert (made(url, rank=0, world_size=1).rank, made(url, rank=0, world_size=1).world_size) == (0, 1)


def test_mistakes_are_told(url: str) -> None:
    for settings, error, match in (
        ({"layer": 7}, StoreError, "no layer 7"),
        ({"layer": []}, ConfigError, "at least one"),
        ({"where": "lable = 1"}, QueryError, "lable"),
        ({"where": "example < 0"}, StoreError, "no extracted position where example < 0"),
        ({"columns": ["nothing"]}, QueryError, "nothing"),
        ({"batch_rows": 0}, ConfigError, "batch_rows=0: must be at least 1"),
        ({"buffer_rows": 63}, ConfigError, "buffer_rows=63: must be at least 64"),
        ({"rank": 1}, ConfigError, "go together"),
        ({"rank": 2, "world_size": 2}, ConfigError, "rank 2 is not one of 2"),
        ({"where": "example = 0", "rank": 0, "world_size": 5}, ConfigError, "4 rows for 5 ranks"),
        ({"batch_rows": 4096, "buffer_rows": 4096, "drop_last": True}, ConfigError, "do not fill a batch"),
    ):
        with pytest.raises(error, match=match):
            made(url, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_workers=-1"):
        made(url).loader(-1)


def test_workers_end_with_their_loader_even_in_the_middle(url: str) -> None:
    before = {*active_children()}
    with made(url).loader(2) as loader:
        batches = iter(loader)
        first = next(batches)["row"].tolist()
        assert len({*active_children()} - before) == 2
    assert not {*active_children()} - before
    assert next(iter(loader))["row"].tolist() == first
    loader.close()


def test_a_spawned_worker(url: str) -> None:
    loader = ActivationLoader(made(url), 1, multiprocessing_context="spawn")
    assert rows_of(loader) == rows_of(made(url))
    loader.close()


def test_forked_workers_of_a_process_that_has_not_read(url: str) -> None:
    code = (
        "import sys; from cliffstore import ActivationDataset\n"
        "loader = ActivationDataset(sys.argv[1], layer=1).loader(2, multiprocessing_context='fork')\n"
        "print(sum(len(batch['row']) for batch in loader))"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.returncode) == (str(ROWS), 0), done.stderr


def test_workers_that_end_with_an_epoch(url: str) -> None:
    loader, alone = made(url).loader(2, persistent_workers=False), made(url).loader(2)
    for _ in range(2):
        assert rows_of(loader) == rows_of(alone)
    alone.close()


def test_workers_open_a_store_on_s3_by_themselves(rclone_s3: Storage) -> None:
    store = VectorStore(n_units=2, unit_rows=256, width=4, n_layers=1)
    where = f"{rclone_s3.bucket}/dataset"
    store.make(ObjectStore(where, rclone_s3.options))
    loader = made(where, layer=0, storage_options=rclone_s3.options).loader(1)
    for batch in loader:
        whole = np.concatenate([store.vectors_of(0, unit) for unit in range(2)])
        assert torch.equal(batch["vectors"], torch.from_numpy(whole[batch["row"]]))
    loader.close()


def test_a_worker_has_a_state_of_its_own(url: str) -> None:
    def run(states: list[dict[str, object] | None]) -> list[tuple[list[int], dict[str, object]]]:
        dataset = Stateful(made(url), states)
        return list(torch.utils.data.DataLoader(dataset, None, num_workers=2, multiprocessing_context="forkserver"))

    whole = run([None, None])
    # Behind seven batches: the first worker has yielded four, the other three.
    rest = run([whole[6][1], whole[5][1]])
    assert sorted(rows for rows, _ in rest) == sorted(rows for rows, _ in whole[7:])
    with pytest.raises(ConfigError, match="num_workers=2, not 1"):
        made(url).load_state_dict(whole[6][1])


def test_the_dataset_alone_goes_on_and_advances(url: str) -> None:
    dataset = made(url)
    whole = [rows_of(dataset), rows_of(dataset)]
    assert whole[0] != whole[1]
    assert (dataset.state_dict()["epoch"], dataset.state_dict()["batches"]) == (2, 0)
    stopped = made(url)
    batches = iter(stopped)
    head = [next(batches)["row"].tolist() for _ in range(5)]
    resumed = made(url)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.state_dict() == stopped.state_dict()
    assert head + rows_of(resumed) == whole[0]
    assert rows_of(resumed) == whole[1]


def test_a_data_loader_of_ones_own(url: str) -> None:
    """Without `ActivationLoader`: PyTorch's alone, with `set_epoch`."""
    dataset = made(url)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="forkserver", persistent_workers=True
    )
    first = rows_of(loader)
    assert sorted(flat(first)) == list(range(ROWS))
    assert rows_of(loader) == first
    dataset.set_epoch(1)
    assert rows_of(loader) != first
    assert len(loader) == len(first)


def test_public_names() -> None:
    assert cliffstore.ActivationDataset is ActivationDataset


def test_buffers_are_taken_by_threads_at_the_same_moment() -> None:
    """Each thread of a pool takes a free buffer, or makes one: none may find that another one was faster."""

    class Idle(list[tuple[object, ...]]):
        def __bool__(self) -> bool:
            found = len(self) > 0
            self.clear()  # what another thread does meanwhile
            return found

    pieces = Pieces(np.zeros(1, dtype=np.int64), np.full(1, 4))
    filler = buffers.Buffers(Items((), pieces, None, {}, ""), open_arrays(ObjectStore("memory://idle")), 4, 2)
    filler._free = Idle([()])
    group = Group(((0, 4),), np.arange(4), ((0, 4),))
    assert filler._filled(group).is_buffer
    assert filler._filled(group).is_buffer
