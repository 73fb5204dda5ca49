"""A pool of Ray actors and the units that it works through, until each unit has an outcome.

Workers and nodes may come and go meanwhile: an actor is given units only once it is ready, a lost one is
replaced and its units go back in the queue, and a unit that fails on three different workers is given up while the
others go on. Only unit numbers and short reports travel.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from cliffstore.errors import CliffstoreError, UserError
from cliffstore.run.executor import MOST_ATTEMPTS, OnDone, OnNotice, UnitOutcome

_LOOK_SECONDS = 2.0
"""How often the cluster is looked at for nodes that have joined."""
LONELY_SECONDS = 30.0
"""How long no worker may be there before the user is told, and one may take to start before it counts as one that waits
for a node."""
_MOST_FAILED_STARTS, _MOST_DEATHS_AT_START = 3, 10

Actor = Any
"""A Ray actor handle around `UnitActor`."""
OnQuarantine = Callable[[UnitOutcome, int, str], None]
"""Called with outcome, attempt and worker where a unit is given up because workers died of it."""


@dataclass(slots=True)
class _Task:
    """A unit on its way: the workers that it failed on, and whether it may have killed one."""

    unit: int
    failed_on: set[str] = field(default_factory=set)
    is_suspect: bool = False

    @property
    def attempt(self) -> int:
        return len(self.failed_on) + 1


@dataclass(slots=True, eq=False)
class _Member:
    """An actor of the pool. `name` is known once it is ready."""

    actor: Actor
    in_flight: int
    name: str | None = None
    running: dict[ray.ObjectRef, _Task] = field(default_factory=dict)
    begun_at: float = field(default_factory=time.monotonic)

    @property
    def has_room(self) -> bool:
        """Whether it may have one more unit beside those that it has; a suspect stays alone."""
        alone = any(other.is_suspect for other in self.running.values())
        return self.name is not None and len(self.running) < self.in_flight and not alone

    def may_take(self, task: _Task) -> bool:
        """Whether it is a worker that a unit can go to, now or before long."""
        if self.name is None:
            return time.monotonic() - self.begun_at < LONELY_SECONDS
        return self.name not in task.failed_on

    def can_take(self, task: _Task) -> bool:
        if not self.has_room or self.name in task.failed_on:
            return False
        return not task.is_suspect or not self.running


class RayPool:
    """Works through units with actors.

    Parameters
    ----------
    first : an actor that is there already
    make_actor : starts one more
    wanted : how many actors the cluster has room for now
    job : reference to the job, sent to each actor once
    in_flight : units that an actor has at once
    """

    def __init__(
        self,
        first: Actor,
        make_actor: Callable[[], Actor],
        wanted: Callable[[], int],
        job: ray.ObjectRef,
        on_done: OnDone,
        on_notice: OnNotice,
        on_quarantine: OnQuarantine,
        *,
        in_flight: int = 2,
    ) -> None:
        self._in_flight = in_flight
        self._make_actor, self._wanted, self._job = make_actor, wanted, job
        self._on_done, self._on_notice, self._on_quarantine = on_done, on_notice, on_quarantine
        self._members: list[_Member] = []
        self._starting: dict[ray.ObjectRef, _Member] = {}
        self._waiting: deque[_Task] = deque()
        self._failed_starts = self._deaths_at_start = 0
        self._looked_at = self._seen_at = time.monotonic()
        self._places = wanted()
        self._begin(first)

    @property
    def actors(self) -> list[Actor]:
        """Actors that are there or on their way."""
        return [member.actor for member in self._members]

    def adopt(self, actor: Actor) -> None:
        """Take in one more actor that is there already."""
        self._begin(actor)

    def run(self, units: Sequence[int]) -> None:
        """Run units until each has an outcome.

        Raises
        ------
        CliffstoreError
            No worker can be started, or what a worker met concerns all units.
        """
        self._waiting.extend(_Task(unit) for unit in units)
        while self._waiting or any(member.running for member in self._members):
            self._staff()
            self._hand_out()
            self._tell_if_lonely()
            pending = [*self._starting, *(ref for member in self._members for ref in member.running)]
            ready, _ = ray.wait(pending, num_returns=1, timeout=_LOOK_SECONDS) if pending else ([], [])
            if not pending:
                time.sleep(_LOOK_SECONDS)
            for reference in ready:
                self._take(reference)

    def _begin(self, actor: Actor) -> None:
        member = _Member(actor, self._in_flight)
        self._members.append(member)
        self._starting[actor.begin.remote(self._job)] = member

    def _staff(self) -> None:
        """Have as many actors as there is room and work for."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at, before = now, self._places
            self._places = self._wanted()
            if self._places > before and self._waiting:
                self._on_notice(f"the cluster has grown: room for {self._places} workers instead of {before}")
        work = len(self._waiting) + sum(len(member.running) for member in self._members)
        while len(self._members) < max(min(self._places, work), 1):
            self._begin(self._make_actor())

    def _hand_out(self) -> None:
        for _ in range(len(self._waiting)):
            if not any(member.has_room for member in self._members):
                return  # not each of many units is looked at whenever one ends
            task = self._waiting.popleft()
            able = [member for member in self._members if member.can_take(task)]
            if not able:
                self._waiting.append(task)
                self._make_room_for(task)
                continue
            member = min(able, key=lambda one: len(one.running))
            member.running[member.actor.run.remote(task.unit, task.attempt)] = task

    def _make_room_for(self, task: _Task) -> None:
        """Where a unit has failed on every worker that there is, put a new one in the place of an idle one."""
        if not task.failed_on or any(member.may_take(task) for member in self._members):
            return
        idle = next((member for member in self._members if member.name is not None and not member.running), None)
        if idle is not None:
            self._members.remove(idle)
            ray.kill(idle.actor)
            self._begin(self._make_actor())

    def _take(self, reference: ray.ObjectRef) -> None:
        member = self._starting.pop(reference, None)
        if member is not None:
            self._take_start(reference, member)
            return
        member = next((one for one in self._members if reference in one.running), None)
        if member is None:
            return  # of a worker that was given up meanwhile
        try:
            outcome: UnitOutcome = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise _of_task(error) from None
        except ray.exceptions.RayError as error:
            self._lose(member, error)
            return
        task = member.running.pop(reference)
        if outcome.error is None:
            self._on_done(outcome)
        else:
            self._fail(task, member.name or "", outcome.error)

    def _take_start(self, reference: ray.ObjectRef, member: _Member) -> None:
        try:
            member.name = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise _of_task(error) from None
        except ray.exceptions.RayError as error:
            self._drop(member)
            self._count_failed_start(error)
        else:
            self._failed_starts = self._deaths_at_start = 0

    def _count_failed_start(self, error: ray.exceptions.RayError) -> None:
        """Raise where starting workers is hopeless: a mistake of the user at once, anything else after some tries."""
        cause = _cause_of(error)
        if isinstance(cause, UserError):
            raise cause from None
        if cause is not None:
            self._failed_starts += 1
        else:
            self._deaths_at_start += 1
        if self._failed_starts >= _MOST_FAILED_STARTS or self._deaths_at_start >= _MOST_DEATHS_AT_START:
            tries = self._failed_starts + self._deaths_at_start
            raise CliffstoreError(f"no worker could be started ({tries} tries): {reason_of(cause or error)}") from None
        self._on_notice(f"a worker ended while it started: {reason_of(cause or error)}; another is started")

    def _lose(self, member: _Member, error: ray.exceptions.RayError) -> None:
        """Put the units of a lost worker back in the queue. Which of several it died of, if of any, is not known."""
        self._drop(member)
        tasks = list(member.running.values())
        units = ", ".join(str(task.unit) for task in tasks)
        reason = reason_of(error)
        self._on_notice(f"worker {member.name} was lost ({reason}); back in the queue: units {units}", "worker_lost")
        its_node_died = "node" in reason.lower() and "died" in reason.lower()
        for task in tasks:
            if len(tasks) > 1 or its_node_died or not task.is_suspect:
                task.is_suspect = task.is_suspect or not its_node_died
                self._waiting.append(task)
            else:
                self._fail(task, member.name or "", f"unit {task.unit}: its worker died: {reason}", died=True)

    def _fail(self, task: _Task, worker: str, error: str, *, died: bool = False) -> None:
        attempt = task.attempt
        task.failed_on.add(worker)
        if len(task.failed_on) < MOST_ATTEMPTS:
            self._on_notice(f"{error}; tried again on another worker")
            self._waiting.append(task)
            return
        outcome = UnitOutcome(task.unit, None, f"{error} (failed on {len(task.failed_on)} workers)")
        if died:
            self._on_quarantine(outcome, attempt, worker)
        self._on_done(outcome)

    def _drop(self, member: _Member) -> None:
        self._members.remove(member)
        ray.kill(member.actor)

    def _tell_if_lonely(self) -> None:
        now = time.monotonic()
        if any(member.name is not None for member in self._members):
            self._seen_at = now
        elif now - self._seen_at >= LONELY_SECONDS:
            self._seen_at = now
            self._on_notice("no worker is there yet: they are starting, or wait for room on the cluster")


def reason_of(error: BaseException) -> str:
    """Return one line that says why a worker is gone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "died" in line.lower() or "unexpectedly" in line.lower()]
    return (told or lines or [type(error).__name__])[-1][:300]


def result_of(reference: ray.ObjectRef) -> Any:
    """Return what an actor's method returned. Raises what it met as an error of ours."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise _of_task(error) from None
    except ray.exceptions.RayError as error:
        cause = _cause_of(error)
        if isinstance(cause, UserError):
            raise cause from None
        raise CliffstoreError(f"a worker could not start or died: {reason_of(cause or error)}") from None


def _of_task(error: ray.exceptions.RayTaskError) -> CliffstoreError:
    if isinstance(error.cause, CliffstoreError):
        return error.cause
    return CliffstoreError(f"a worker failed: {reason_of(error.cause)}")


def _cause_of(error: BaseException) -> BaseException | None:
    """Return what an actor's constructor raised, None where its process ended in another way."""
    cause = error.__cause__
    return getattr(cause, "cause", None) or cause
