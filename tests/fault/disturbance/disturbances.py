"""What a test does to the class of workers, as the environment of their process says.

So a test decides when a run goes on, whatever the speed of the machine: nothing ends before it is disturbed.

- POISON_RAISES, POISON_KILLS: a unit that raises an error, a unit that its process dies of.
- GATE, GATE_UNITS: a process commits so many units (or one more: it has two in flight) and then waits until there is a
  file GATE. Each process gets units, however late it starts.
- SCORING_GATE, GATE_UNITS: the same for a process that scores; see `forked`.
- TICKETS: a folder of files, one of which a unit takes away to be computed, or waits for; none is needed once the
  folder is gone. No more units are computed than there were tickets.
"""

import os
import signal
import time

WAIT_SECONDS = 0.02


def poison(worker):
    extract = worker._extract

    def poisoned(self, unit, attempt):
        if unit == int(os.environ["POISON_KILLS"]):
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == int(os.environ["POISON_RAISES"]):
            raise RuntimeError("this unit is poison")
        return extract(self, unit, attempt)

    worker._extract = poisoned


def hold_at_gate(worker):
    extract, compute, most = worker._extract, worker._run, int(os.environ["GATE_UNITS"])
    worker.committed = 0

    def counted(self, unit, attempt):
        report = extract(self, unit, attempt)
        self.committed += report.worker == self.name
        return report

    def gated(self, *arguments):
        while self.committed >= most and not os.path.exists(os.environ["GATE"]) and not self._runner._stop.is_set():
            time.sleep(WAIT_SECONDS)
        return compute(self, *arguments)

    worker._extract, worker._run = counted, gated


def hold_scoring_at_gate(worker):
    run, score, done, most = worker.run, worker._score, [], int(os.environ["GATE_UNITS"])

    def counted(self, unit, attempt):
        report = run(self, unit, attempt)
        done.append(unit)
        return report

    def gated(self, *arguments):
        while len(done) >= most and not os.path.exists(os.environ["SCORING_GATE"]) and not self._stopped.is_set():
            time.sleep(WAIT_SECONDS)
        score(self, *arguments)

    worker.run, worker._score = counted, gated


def take_tickets(worker):
    compute = worker._run

    def ticketed(self, *arguments):
        while not taken(os.environ["TICKETS"]):
            time.sleep(WAIT_SECONDS)
        return compute(self, *arguments)

    worker._run = ticketed


def taken(folder):
    """Return whether a ticket was taken, or none is needed."""
    try:
        tickets = os.listdir(folder)
    except FileNotFoundError:
        return True
    for ticket in tickets:
        try:
            os.unlink(os.path.join(folder, ticket))
        except FileNotFoundError:
            continue
        return True
    return False


BY_NAME = {"POISON_KILLS": poison, "GATE": hold_at_gate, "TICKETS": take_tickets}


def wanted():
    return [act for name, act in BY_NAME.items() if name in os.environ]


def disturb(worker):
    for act in wanted():
        act(worker)
