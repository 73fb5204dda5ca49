"""The pool's bookkeeping, with a Ray that answers at once: an outcome for each unit, and little looking for work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from cliffstore.records import UnitReport
from cliffstore.run import ray_pool
from cliffstore.run.executor import MOST_ATTEMPTS, UnitOutcome
from cliffstore.run.ray_executor import RayExecutor
from cliffstore.run.ray_pool import RayPool


@dataclass(eq=False)
class Answer:
    value: object


@dataclass
class Method:
    act: Callable[..., object]

    def remote(self, *arguments: object) -> Answer:
        return Answer(self.act(*arguments))


@dataclass
class Remote:
    remote: Callable[..., Answer]


class Actor:
    """Fails units of `poison` and notes who was given them."""

    made = 0

    def __init__(self, poison: set[int], given: list[tuple[int, str]]) -> None:
        Actor.made += 1
        name = f"host:{Actor.made}"

        def run(unit: int, attempt: int) -> UnitOutcome:
            given.append((unit, name))
            if unit in poison:
                return UnitOutcome(unit, None, f"unit {unit}: no")
            return UnitOutcome(unit, UnitReport(unit, 1, 1, 1, 0.0, name), None)

        self.begin, self.run = Method(lambda _: name), Method(run)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch):
    """Run units on some actors. Return outcomes, who was given which unit, and how often a unit was looked at."""
    looks = [0]
    can_take = ray_pool._Member.can_take

    def counted(self, task):
        looks[0] += 1
        return can_take(self, task)

    monkeypatch.setattr(ray_pool._Member, "can_take", counted)
    monkeypatch.setattr(ray_pool.ray, "wait", lambda pending, **_: (pending[:1], pending[1:]))
    monkeypatch.setattr(ray_pool.ray, "get", lambda answer: answer.value)
    monkeypatch.setattr(ray_pool.ray, "kill", lambda _: None)

    def act(units: int, actors: int, in_flight: int, poison: set[int] = frozenset()):
        given: list[tuple[int, str]] = []
        done: list[UnitOutcome] = []
        pool = RayPool(
            Actor(poison, given), lambda: Actor(poison, given), lambda: actors, None, done.append,
            lambda text, event="notice": None, lambda *_: None, in_flight=in_flight,
        )  # fmt: skip
        pool.run(range(units))
        assert sorted(outcome.unit for outcome in done) == list(range(units))
        return {outcome.unit: outcome for outcome in done}, given, looks[0]

    return act


@pytest.mark.parametrize(("actors", "in_flight"), [(1, 2), (3, 2), (8, 4)])
def test_units_are_not_all_looked_at_whenever_one_ends(work, actors: int, in_flight: int) -> None:
    units = 2_000
    done, given, looks = work(units, actors, in_flight)
    assert all(outcome.error is None for outcome in done.values())
    assert len(given) == units
    assert len({name for _, name in given}) == actors
    assert looks <= 2 * actors * units


@pytest.mark.parametrize("actors", [1, 2, 4])
def test_a_unit_that_fails_everywhere_is_given_up_after_three_workers(work, actors: int) -> None:
    done, given, _ = work(30, actors, 2, poison={0, 7, 29})
    assert {unit for unit, outcome in done.items() if outcome.error} == {0, 7, 29}
    for unit in (0, 7, 29):
        workers = [name for one, name in given if one == unit]
        assert len(workers) == len(set(workers)) == MOST_ATTEMPTS
        assert done[unit].error == f"unit {unit}: no (failed on 3 workers)"


def test_a_unit_that_failed_gets_another_worker_though_some_wait_for_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one actor, four are asked for: the others wait, perhaps for ever, and must not be waited for."""
    waiting, failed_on = [], []

    class Roomless(Actor):
        def __init__(self) -> None:
            super().__init__({3}, [])
            begin, run = self.begin, self.run
            self.answer: Answer | None = None

            def begins(job: object) -> Answer:
                self.answer = begin.remote(job)
                waiting.append(self)
                return self.answer

            def runs(unit: int, attempt: int) -> Answer:
                answer = run.remote(unit, attempt)
                failed_on.extend([answer] if unit == 3 else [])
                return answer

            self.begin, self.run = Remote(begins), Remote(runs)

    def wait(pending: list[Answer], **_: object) -> tuple[list[Answer], list[Answer]]:
        unready = [actor.answer for actor in waiting[1:]]  # the first has the only room
        ready = [one for one in pending if one not in unready]
        return ready[:1], pending

    def kill(actor: Roomless) -> None:
        waiting.remove(actor)

    monkeypatch.setattr(ray_pool, "LONELY_SECONDS", 0.0)
    monkeypatch.setattr(ray_pool.ray, "wait", wait)
    monkeypatch.setattr(ray_pool.ray, "get", lambda answer: answer.value)
    monkeypatch.setattr(ray_pool.ray, "kill", kill)
    done: list[UnitOutcome] = []
    pool = RayPool(
        Roomless(), Roomless, lambda: 4, None, done.append, lambda text, event="notice": None, lambda *_: None
    )
    pool.run(range(5))
    assert {outcome.unit for outcome in done if outcome.error} == {3}
    assert len(failed_on) == MOST_ATTEMPTS
    assert len(done) == 5


@pytest.mark.parametrize("there", [True, False])
def test_who_waits_for_room_is_told(
    there: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first worker is asked before any unit is given out: on a full cluster that may take for ever."""
    executor = RayExecutor.__new__(RayExecutor)
    executor._actors = [SimpleNamespace(ask=Remote(lambda question, *arguments: Answer(question(*arguments))))]
    monkeypatch.setattr(ray_pool.ray, "wait", lambda pending, timeout: (pending, []) if there else ([], pending))
    monkeypatch.setattr(ray_pool.ray, "get", lambda answer: answer.value)
    assert executor.ask(max, 1, 2) == 2
    assert ("waits for room on the cluster" in caplog.text) is not there
