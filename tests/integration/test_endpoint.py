"""Answers of another model over HTTP: what is asked, what is kept, how failures end, and where the key does not go."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import pyarrow.parquet as pq
import pytest
from chat_server import Answer, Served, said, serving
from commands import Result, run_cli, snapshot
from conftest import SELECTION, Built

from cliffstore.errors import EndpointError, EndpointRefusedError
from cliffstore.publish.completions import ATTEMPTS, KEY_VARIABLE, Endpoint
from cliffstore.publish.endpoint import learnt

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with serving() as served:
        yield served


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cliffstore.publish.completions._LONGEST_WAIT", 0.01)


def export(built: Built, served: Served, out: Path, *more: str | Path) -> Result:
    at = ("--target-endpoint", served.url, "--target-model", "small-guard", "--thinking", "drop")
    return run_cli("export", built.store, "--selection", SELECTION, "-o", out, *at, *more, "--json")


def answers(out: Path) -> dict[str, str]:
    return {row["id"]: row["messages"][-1]["content"] for row in pq.read_table(out / "train.parquet").to_pylist()}


def test_the_model_is_asked_once_for_each_example(built: Built, served: Served, tmp_path: Path) -> None:
    result = export(built, served, tmp_path / "out")
    assert (result.code, result.json["rows"]) == (0, 8), result.stderr
    assert len(served.asked) == 8
    assert served.keys == [f"Bearer {KEY}"] * 8
    for asked in served.asked:
        assert (asked["path"], asked["model"], asked["temperature"]) == ("/v1/chat/completions", "small-guard", 0)
        assert [turn["role"] for turn in asked["messages"]] == ["user"]
    assert set(answers(tmp_path / "out").values()) == {f"I must decline ({number})." for number in range(8)}
    first = snapshot(tmp_path / "out")
    assert sorted(first) == ["README.md", "answers.jsonl", "train.parquet"]
    assert "small-guard" in (tmp_path / "out" / "README.md").read_text()
    assert export(built, served, tmp_path / "out").code == 0
    more = ("--target-answers", tmp_path / "out" / "answers.jsonl")
    assert export(built, served, tmp_path / "other", *more).code == 0
    assert len(served.asked) == 8, "what is kept is not asked again"
    assert snapshot(tmp_path / "out") == first
    assert {**snapshot(tmp_path / "other"), "answers.jsonl": first["answers.jsonl"]} == first


def test_what_is_mixed_in_is_not_asked_for(built: Built, served: Served, tmp_path: Path) -> None:
    result = export(built, served, tmp_path / "out", "--mix", "20%", "--mix-where", "true")
    assert (result.code, result.json["mixed"], len(served.asked)) == (0, 2, 8)


def test_requests_that_are_refused_for_what_they_hold_are_named(built: Built, served: Served, tmp_path: Path) -> None:
    served.answer = lambda number, body: (400, {"error": {"message": "too long"}}) if number < 2 else said("No.")
    result = export(built, served, tmp_path / "out")
    assert (result.code, len(served.asked)) == (2, 8)
    last = result.stderr.splitlines()[-1]
    assert "answers 400 (too long) to 2 of 8 examples: r" in last
    assert "--where" in last


def test_key_is_in_nothing_that_is_written_or_said(built: Built, served: Served, tmp_path: Path) -> None:
    written = export(built, served, tmp_path / "out")
    served.answer = lambda number, body: (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    refused = export(built, served, tmp_path / "refused")
    assert refused.code == 2
    assert KEY_VARIABLE in refused.stderr
    assert "***" in refused.stderr
    for result in (written, refused):
        assert KEY not in result.text + result.stderr
    assert not any(KEY.encode() in (content or b"") for content in snapshot(tmp_path).values())
    assert not (tmp_path / "refused").exists()
    assert KEY not in repr(Endpoint.check(served.url, "m"))


def test_key_does_not_follow_a_redirect(built: Built, served: Served, tmp_path: Path) -> None:
    for status in (302, 307):
        served.asked.clear()
        served.answer = lambda number, body, status=status: (status, {})
        result = export(built, served, tmp_path / "out")
        assert (result.code, str(status) in result.stderr) == (2, True)
        assert {asked["path"] for asked in served.asked} == {"/v1/chat/completions"}


def test_what_was_answered_before_a_failure_is_kept(built: Built, served: Served, tmp_path: Path) -> None:
    served.answer = lambda number, body: said("No.") if number < 3 else (503, {})
    failed = export(built, served, tmp_path / "out")
    assert failed.code == 1
    assert "503" in failed.stderr
    assert sorted(snapshot(tmp_path / "out")) == ["answers.jsonl"]
    served.asked.clear()
    served.answer = lambda number, body: said("No.")
    assert export(built, served, tmp_path / "out").code == 0
    assert len(served.asked) == 5


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_by_itself_is_tried_again(status: int, served: Served) -> None:
    served.answer = lambda number, body: (status, {}) if number < ATTEMPTS - 1 else said("No.")
    endpoint = Endpoint.check(served.url, "m")
    assert endpoint.ask(endpoint.body([], 16), Event()).text == "No."
    assert len(served.asked) == ATTEMPTS


def test_attempts_have_an_end(served: Served) -> None:
    served.answer = lambda number, body: (500, {})
    endpoint = Endpoint.check(served.url, "m")
    with pytest.raises(EndpointError, match=f"500, {ATTEMPTS} times"):
        endpoint.ask(endpoint.body([], 16), Event())
    assert len(served.asked) == ATTEMPTS


def test_stopping_waits_for_no_answer(served: Served) -> None:
    """As Ctrl-C does: an answer may take ten minutes."""
    asked, stop, release = Event(), Event(), Event()

    def answer(number: int, body: dict[str, object]) -> Answer:
        asked.set()
        release.wait(60)
        return said("Late.")

    served.answer = answer
    endpoint = Endpoint.check(served.url, "m", timeout=600)
    with ThreadPoolExecutor(1) as pool:
        try:
            waiting = pool.submit(endpoint.ask, endpoint.body([], 16), stop)
            assert asked.wait(30)
            stop.set()
            with pytest.raises(EndpointError):
                waiting.result(timeout=30)
            assert len(served.asked) == 1
        finally:
            release.set()


def test_answer_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps a socket from timing out; the answer has a time all the same."""
    monkeypatch.setattr("cliffstore.publish.completions.ATTEMPTS", 1)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    over = Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not over.wait(0.05):
                    connection.sendall(b" ")

        thread = Thread(target=trickle)
        thread.start()
        try:
            endpoint = Endpoint(f"http://127.0.0.1:{server.getsockname()[1]}/v1", "m", timeout=1)
            with ThreadPoolExecutor(1) as pool, pytest.raises(EndpointError, match="timed out"):
                pool.submit(endpoint.ask, endpoint.body([], 16), Event()).result(timeout=30)
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"choices": []}', b'{"choices": [{"message": 3}]}'])
def test_no_completion_is_no_answer(content: bytes, served: Served) -> None:
    served.answer = lambda number, body: (200, content)
    endpoint = Endpoint.check(served.url, "m")
    with pytest.raises(EndpointError, match="no chat completion"):
        endpoint.ask(endpoint.body([], 16), Event())


@pytest.mark.parametrize(
    ("text", "finish", "taught"),
    [
        ("<think>Hm.</think>\n\nNo.", "stop", "No."),
        ("[THINK]Hm.[/THINK]No.", "stop", "No."),
        ("<think>\nHm, and", "stop", None),
        ("No, beca", "length", None),
        (None, "stop", None),
        ("  ", "stop", None),
    ],
)
def test_what_is_learnt_of_an_answer(text: str | None, finish: str, taught: str | None, served: Served) -> None:
    served.answer = lambda number, body: said(text, finish)
    endpoint = Endpoint.check(served.url, "m")
    assert learnt(endpoint.ask(endpoint.body([], 16), Event())) == taught


def test_examples_without_an_answer_are_left_out_and_counted(built: Built, served: Served, tmp_path: Path) -> None:
    served.answer = lambda number, body: said("No, beca", "length") if number < 2 else said("No.")
    result = export(built, served, tmp_path / "out")
    assert (result.json["rows"], result.json["without_target"]) == (6, 2)
    assert "2 selected examples have no target" in result.stderr


def test_a_template_is_what_the_model_is_asked(built: Built, served: Served, tmp_path: Path) -> None:
    template = tmp_path / "ask.jinja"
    template.write_text("Decline this politely: {{ prompt }}")
    assert export(built, served, tmp_path / "out", "--target-template", template).code == 0
    for asked in served.asked:
        (turn,) = asked["messages"]
        assert turn["content"].startswith("Decline this politely: ")


@pytest.mark.parametrize(
    ("url", "model", "told"),
    [
        ("https://me:hush@host/v1", "m", "credentials"),
        ("https://host/v1?key=hush", "m", "credentials"),
        ("ftp://host/v1", "m", "https://host/v1"),
        ("https://host/v1", None, "--target-model"),
    ],
)
def test_mistake_is_one_line(url: str, model: str | None, told: str, built: Built, tmp_path: Path) -> None:
    more = () if model is None else ("--target-model", model)
    result = run_cli(
        "export", built.store, "--selection", SELECTION, "-o", tmp_path / "out", "--target-endpoint", url, *more
    )
    assert (result.code, told in result.stderr, "hush" in result.stderr) == (2, True, False)
    assert not (tmp_path / "out").exists()


def test_answers_that_are_none_are_refused(built: Built, served: Served, tmp_path: Path) -> None:
    (tmp_path / "book.jsonl").write_text('{"request": 1}\n')
    result = export(built, served, tmp_path / "out", "--target-answers", tmp_path / "book.jsonl")
    assert (result.code, "book.jsonl" in result.stderr) == (2, True)
    assert not served.asked


def test_endpoint_of_no_one_is_an_error_of_its_own(served: Served) -> None:
    endpoint = Endpoint.check("http://127.0.0.1:9/v1", "m")
    with pytest.raises(EndpointError, match="does not answer"):
        endpoint.ask(endpoint.body([], 16), Event())
    served.answer = lambda number, body: (404, {"error": {"message": "no such model\n\x1b[31m"}})
    endpoint = Endpoint.check(served.url, "m")
    with pytest.raises(EndpointRefusedError, match=r"404 \(no such model  \[31m\)"):
        endpoint.ask(endpoint.body([], 16), Event())
