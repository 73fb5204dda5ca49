"""Object storage on a bad day: what fails in passing is done again, what is denied is not, and nothing is lost."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from botocore.retries.standard import ExponentialBackoff
from commands import ok, run_cli, write_jsonl
from fault_proxy import FAULTS, Weather, proxy
from quick import quick_runs
from servers import Storage, filesystem
from stores import assert_equal_stores

from cliffstore.errors import StorageError, StoreError
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader

SECRET = "hush-hush-not-for-anyone"  # what moto takes for a secret: anything
WORDS = [
    "anchor",
    "apple",
    "basket",
    "bridge",
    "candle",
    "desert",
    "engine",
    "feather",
    "garden",
    "harbour",
    "island",
    "ladder",
    "marble",
    "needle",
]


@dataclass(frozen=True)
class Case:
    corpus: Path
    model: str
    reference: str
    units: int

    def command(self, store: str) -> list[str]:
        return [
            "extract", str(self.corpus), "--model", self.model, "--store", store, "--unit-rows", "512",
            "--pass-tokens", "64", "--sites", "resid_post", "--layers", "1,3", "--json",
        ]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a tenth of the time before trying again: it spares nobody here. That waits grow is shown below."""
    usual = ExponentialBackoff.delay_amount
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: usual(self, context) / 10)
    monkeypatch.setattr("cliffstore.store.patience._FIRST_SECONDS", 0.02)


@pytest.fixture(scope="module")
def case(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("storage")
    numbers = random.Random(1)
    rows = [{"id": f"w{i:03d}", "prompt": " ".join(numbers.choices(WORDS, k=40))} for i in range(70)]
    corpus = write_jsonl(folder / "words.jsonl", rows)
    case = Case(corpus, tiny_model, str(folder / "reference"), 0)
    report = ok(*case.command(case.reference)).json
    assert report["units"] >= 5
    return Case(corpus, tiny_model, case.reference, report["units"])


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch):
    """Tell commands by the environment which server to use, how patient to be, and when an answer is overdue."""

    def set_environment(storage: Storage, patience: float = 60.0, read_seconds: int = 30) -> None:
        options = storage.options
        monkeypatch.setenv("AWS_ENDPOINT_URL", str(options["endpoint_url"]))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", str(options["key"]))
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", str(options["secret"]))
        monkeypatch.setenv("AWS_REGION", str(options["region"]))
        monkeypatch.setenv("CLIFFSTORE_PATIENCE", str(patience))
        for name in ("CLIFFSTORE_READ_TIMEOUT", "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS"):
            monkeypatch.setenv(name, str(read_seconds))

    monkeypatch.setenv("CLIFFSTORE_CONNECT_TIMEOUT", "2")
    return set_environment


@pytest.mark.parametrize("server", ["rclone_s3", "moto_s3"])
def test_extraction_and_reading_through_a_bad_day(
    server: str, case: Case, reach, request: pytest.FixtureRequest
) -> None:
    storage: Storage = request.getfixturevalue(server)
    weather = Weather(share=0.1, seed=9)
    with proxy(storage.port, weather) as port:
        bad = storage.through(port)
        reach(bad, read_seconds=1)
        url = bad.new_url()
        report = ok(*case.command(url)).json
        assert report["units_done_now"] == case.units
        assert set(weather.met) == set(FAULTS), f"not every fault happened: {weather.met} of {weather.requests}"
        assert sum(weather.met.values()) >= 20
        assert_equal_stores(url, case.reference, bad.options)
        ok("verify", url)
        counted = ok("sql", url, "SELECT count(*) AS n FROM tokens", "--format", "json").json
    reach(storage)
    assert_equal_stores(url, case.reference, storage.options)
    assert counted == ok("sql", case.reference, "SELECT count(*) AS n FROM tokens", "--format", "json").json


@pytest.mark.parametrize("server", ["rclone_s3", "moto_s3"])
def test_lost_answers_to_writes_that_succeeded(server: str, case: Case, reach, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(server)
    weather = Weather(share=0.4, faults=("lost",), methods=("PUT", "POST", "DELETE"), seed=3)
    with proxy(storage.port, weather) as port:
        bad = storage.through(port)
        reach(bad)
        url = bad.new_url()
        report = ok(*case.command(url)).json
    assert weather.met["lost"] >= 15, weather.requests
    assert (report["units_done_now"], report["units_failed"]) == (case.units, 0)
    reach(storage)
    assert_equal_stores(url, case.reference, storage.options)


def test_writer_recognises_its_own_object_after_a_lost_answer(moto_s3: Storage, reach) -> None:
    """The server did what was asked and says, the second time, that something is there."""
    weather = Weather(share=1.0, faults=("lost",), methods=("PUT",), most=1)
    with proxy(moto_s3.port, weather) as port:
        bad = moto_s3.through(port)
        reach(bad)
        store = ObjectStore(bad.new_url(), bad.options)
        assert store.create("receipts/unit-000000.json", b"mine") is True
        assert weather.met["lost"] == 1
        assert weather.requests["PUT"] == 2
        assert store.create("receipts/unit-000000.json", b"mine") is False
        assert store.get("receipts/unit-000000.json") == b"mine"


def test_create_only_holds_between_writers_that_do_not_see_each_other(
    moto_s3: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(moto_s3.new_url(), moto_s3.options)
    store.put("a.json", b"theirs")
    monkeypatch.setattr(store, "exists", lambda key: False)  # as if the other had written after we asked
    assert store.create("a.json", b"ours") is False
    assert store.get("a.json") == b"theirs"


@pytest.mark.parametrize("fault", ["403", "404"])
def test_denied_and_missing_are_not_tried_again(fault: str, moto_s3: Storage, reach) -> None:
    weather = Weather(share=1.0, faults=(fault,))
    with proxy(moto_s3.port, weather) as port:
        bad = moto_s3.through(port)
        reach(bad)
        store = ObjectStore(bad.new_url(), bad.options)
        with pytest.raises(StoreError if fault == "403" else FileNotFoundError):
            store.get("a.json")
        assert sum(weather.requests.values()) <= 2
        if fault == "403":
            with pytest.raises(StoreError, match="denied"):
                store.put("a.json", b"x")
            assert weather.requests["PUT"] == 1


def test_denied_extraction_is_one_line(case: Case, moto_s3: Storage, reach) -> None:
    with proxy(moto_s3.port, Weather(share=1.0, faults=("403",))) as port:
        bad = moto_s3.through(port)
        reach(bad)
        result = run_cli(*case.command(bad.new_url()))
    assert result.code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "access denied" in line


def test_missing_bucket_is_one_line(case: Case, moto_s3: Storage, reach) -> None:
    reach(moto_s3)
    result = run_cli(*case.command("s3://nobody-made-this/store"))
    assert result.code == 2
    assert "no such bucket" in result.stderr.splitlines()[-1]


def test_storage_that_never_answers_is_given_up(case: Case, moto_s3: Storage, reach, monkeypatch) -> None:
    monkeypatch.setattr("cliffstore.store.reader._FIRST_CONTACT_SECONDS", 1.0)
    with proxy(moto_s3.port, Weather(share=1.0, faults=("503",))) as port:
        bad = moto_s3.through(port)
        reach(bad, patience=1.0)
        result = run_cli(*case.command(bad.new_url()))
        assert result.code == 2
        assert "does not answer" in result.stderr.splitlines()[-1]
        store = ObjectStore(bad.new_url(), bad.options)
        with pytest.raises(StorageError, match="does not answer"):
            store.put("a.json", b"x")


def test_outage_in_the_middle_is_resumed(case: Case, moto_s3: Storage, reach) -> None:
    """Storage that stays away stops the run, and blames no unit; the same command goes on."""
    weather = Weather(share=0.0, faults=("503",))
    with proxy(moto_s3.port, weather) as port:
        bad = moto_s3.through(port)
        reach(bad, patience=3.0)
        url = bad.new_url()
        count = weather.next

        def outage_after_two_receipts(method: str, path: str) -> str | None:
            receipts = [key for key in filesystem(moto_s3).find(url.removeprefix("s3://")) if "/receipts/" in key]
            weather.share = 1.0 if len(receipts) >= 2 else 0.0
            return count(method, path)

        weather.next = outage_after_two_receipts  # type: ignore[method-assign]
        result = run_cli(*case.command(url))
    assert result.code == 1
    assert "does not answer" in result.stderr.splitlines()[-1]
    reach(moto_s3)
    done = len(StoreReader(url, moto_s3.options).receipts(StoreReader(url, moto_s3.options).captures()[0].capture))
    assert 2 <= done < case.units
    report = ok(*case.command(url)).json
    assert report["units_done_before"] == done
    assert_equal_stores(url, case.reference, moto_s3.options)


def test_secrets_are_nowhere(case: Case, moto_s3: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIFFSTORE_PATIENCE", "5")
    url = moto_s3.new_url()
    options = {**moto_s3.options, "secret": SECRET}
    config = tmp_path / "extract.yaml"
    config.write_text(json.dumps({"storage_options": options}), encoding="utf-8")
    result = ok(*case.command(url), "--config", config)
    denied = Weather(share=1.0, faults=("403",))
    with proxy(moto_s3.port, denied) as port:
        elsewhere = {**options, "endpoint_url": f"http://127.0.0.1:{port}"}
        config.write_text(json.dumps({"storage_options": elsewhere}), encoding="utf-8")
        failed = run_cli(*case.command(moto_s3.new_url()), "--config", config)
    assert failed.code == 2
    for said in (result.text, result.stderr, failed.text, failed.stderr):
        assert SECRET not in said
    fs = filesystem(moto_s3)
    paths = fs.find(url.removeprefix("s3://"))
    assert len(paths) > 20
    for path in paths:
        assert SECRET.encode() not in fs.cat_file(path), path


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    from cliffstore.store import patience

    waits: list[float] = []
    monkeypatch.undo()
    monkeypatch.setattr(patience.time, "sleep", waits.append)
    failures = iter([ConnectionResetError("reset")] * 9)

    def act() -> str:
        for failure in failures:
            raise failure
        return "done"

    assert patience.patiently(act, where="store x", options={}) == "done"
    assert len(waits) == 9
    assert len(set(waits)) == 9
    for attempt, wait in enumerate(waits, 1):
        assert 0 <= wait <= min(0.2 * 2**attempt, 20.0)
