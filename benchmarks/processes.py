"""Runs a piece of work in a process of its own, as production does, and says what it took. Knows no pipeline.

The work comes in two steps: ``prepare(*arguments)`` imports, connects and warms up, and returns the function
that is measured, as often as it is asked for. So nothing that a warm worker has behind it is timed.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: A fresh interpreter: what this process imported or holds is in no child's memory figure.
SPAWN = multiprocessing.get_context("spawn")
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
#: Nothing here runs nearly as long; a worker that hangs must not hang the benchmark.
WORK_TIMEOUT_S = 900.0
KIB = 1024
GIB = 1 << 30

Prepare = Callable[..., Callable[..., Any]]


class WorkerError(Exception):
    """The work failed in its process; with the traceback from there."""


@dataclass(frozen=True)
class Done:
    """What a piece of work returned and took. Times are ``time.monotonic``, one clock for all processes;
    ``peak_bytes`` is the most that the process ever had resident, its imports included."""

    result: Any
    began_s: float
    ended_s: float
    cpu_s: float
    peak_bytes: int

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.began_s


class Worker:
    """One process for one kind of work. Leaving the context ends it, whatever it does."""

    def __init__(self, prepare: Prepare, *arguments: Any) -> None:
        self._kept = arguments  # an event that nobody holds here is gone before the child has it
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_main, args=(theirs, prepare, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def wait_ready(self) -> Worker:
        """Return when it is warm."""
        self._answer(READY_TIMEOUT_S)
        return self

    def go(self, *arguments: Any) -> None:
        """Begin the work, with these arguments."""
        self._pipe.send(arguments)

    def wait(self, timeout_s: float = WORK_TIMEOUT_S) -> Done:
        """What came of it.

        Raises:
            WorkerError: it failed, died or is not done in time.
        """
        done = self._answer(timeout_s)
        assert isinstance(done, Done)
        return done

    def _answer(self, timeout_s: float) -> Any:
        try:
            if not self._pipe.poll(timeout_s):
                raise WorkerError(f"no answer within {timeout_s:.0f} s")
            answer = self._pipe.recv()
        except EOFError:
            raise WorkerError(f"the process ended with code {self._process.exitcode}") from None
        if isinstance(answer, str) and answer != "ready":
            raise WorkerError(answer)
        return answer


def peak_bytes(pid: int | None = None) -> int:
    """The most memory that a process (default: this one) ever had resident: VmHWM."""
    status = Path(f"/proc/{pid or os.getpid()}/status").read_text(encoding="ascii", errors="replace")
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * KIB


def peak_bytes_of_session(leader_pid: int) -> int:
    """The most that any one process of a session ever had resident."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == leader_pid:
                found.append(peak_bytes(int(folder.name)))
        except OSError:
            continue  # it ended meanwhile
    return max(found, default=0)


def cpu_s_of_trees(pids: Sequence[int]) -> float:
    """CPU seconds that some processes and all that descend from them have used, those that ended included."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile: its parent has its seconds
        parents[int(folder.name)] = int(fields[1])
        used[int(folder.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    wanted, grown = set(pids), True
    while grown:
        its = {pid for pid, parent in parents.items() if parent in wanted} - wanted
        wanted, grown = wanted | its, bool(its)
    return sum(used.get(pid, 0.0) for pid in wanted)


def _main(pipe: Connection, prepare: Prepare, arguments: tuple[Any, ...]) -> None:
    try:
        work = prepare(*arguments)
        pipe.send("ready")
        while True:
            try:
                asked = pipe.recv()
            except EOFError:
                return  # nobody will ask any more
            pipe.send(_measured(work, asked))
    except BaseException:  # noqa: BLE001  # told to the parent, which raises it
        pipe.send(traceback.format_exc())


def _measured(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Done:
    began_s, cpu_s = time.monotonic(), time.process_time()
    result = work(*arguments)
    return Done(result, began_s, time.monotonic(), time.process_time() - cpu_s, peak_bytes())
