"""Commands in processes of their own that have everything imported already: they are forked from one that has.

For tests that kill or stop a command again and again, where the start of Python, torch and transformers is not the
point and would take most of their time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

MODULES = [
    "cliffstore.cli.main", "cliffstore.run.stages", "cliffstore.run.rendering", "cliffstore.extract.unit",
    "cliffstore.extract.runner", "torch", "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers", "tensorstore", "cliffstore.run.store", "cliffstore.analyze.score",
]  # fmt: skip
SAY_MEMORY = "SAY_MEMORY"
"""Where it is in the environment, a process says at its end how much memory it ever had, the server's included."""
DISTURBANCE = str(Path(__file__).parent / "fault" / "disturbance")


@dataclass(frozen=True)
class Command:
    """A command that runs in a forked process; `log` is what it says on standard error, `printed` what it prints."""

    process: BaseProcess
    log: Path

    @property
    def printed(self) -> str:
        return _output(str(self.log)).read_text()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> str:
        """Wait for its end. Return what it said."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"timed out: {self.log.read_text()}"
        return self.log.read_text()

    def send_signal(self, signal: int) -> None:
        os.kill(self.process.pid or 0, signal)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(30)


Start = Callable[[Iterable[str], Path, Mapping[str, str]], Command]


@contextmanager
def server() -> Iterator[None]:
    """Run the process that others are forked from: one for all tests, for its start takes seconds."""
    get_context("forkserver").set_forkserver_preload(MODULES)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        forkserver.ensure_running()
    try:
        yield
    finally:
        forkserver._forkserver._stop()


@contextmanager
def commands() -> Iterator[Start]:
    """Give a function that starts a command, from its arguments, a log file and additions to the environment.

    What is started ends with the context.
    """
    context, begun = get_context("forkserver"), list[Command]()

    def start(arguments: Iterable[str], log: Path, environment: Mapping[str, str]) -> Command:
        process = context.Process(target=_run, args=([*arguments], str(log), dict(environment)))
        process.start()
        begun.append(Command(process, log))
        return begun[-1]

    try:
        yield start
    finally:
        for command in begun:
            command.kill()


def _output(log: str) -> Path:
    return Path(f"{log}.out")


def _run(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    for stream, path in ((1, _output(log)), (2, log)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(environment)
    sys.path.append(DISTURBANCE)
    import disturbances

    from cliffstore.analyze.score import ScoreWorker
    from cliffstore.cli.main import main
    from cliffstore.extract.unit import UnitWorker
    from cliffstore.run import executor, planning

    executor.available_cpus = planning.available_cpus = lambda: 1
    disturbances.disturb(UnitWorker)
    if "SCORING_GATE" in os.environ:
        disturbances.hold_scoring_at_gate(ScoreWorker)
    code = main(arguments)
    if SAY_MEMORY in os.environ:
        lines = Path("/proc/self/status").read_text().splitlines()
        print(next(line for line in lines if line.startswith("VmHWM")), file=sys.stderr)
    sys.exit(code)
