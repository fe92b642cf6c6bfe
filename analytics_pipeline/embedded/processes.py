"""Child processes: started with a log, waited for until ready, stopped in order, never left behind.

Knows nothing of what the children are. Every child leads its own session, so that Ctrl-C reaches this process
alone and it decides the order. If this process dies without a word, ``guard.py`` ends the children. A parent
death signal (prctl) would not do: it follows the *thread* that forked, and reaches no grandchild.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from analytics_pipeline.embedded import guard
from analytics_pipeline.embedded.stop_signals import StopSignals
from analytics_pipeline.errors import EmbeddedServerError

#: What a child started first serves those started later; higher tiers stop first.
TIER_SERVER = 0
TIER_CLIENT = 1
TIER_DRIVER = 2  # asks the clients for work

READY_POLL_S = 0.05
LOG_TAIL_LINES = 15


@dataclass(eq=False, kw_only=True)
class Managed:
    """One child process and how to end it."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path
    stop_signal: signal.Signals
    grace_s: float
    tier: int
    stopping: bool = field(default=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def log_tail(self) -> str:
        """The last lines that the process wrote."""
        try:
            text = self.log_file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


class Supervisor:
    """Starts children and answers for their end, whatever way this process ends."""

    def __init__(
        self, log_dir: Path, *, signals: StopSignals | None = None, until_all_gone: Sequence[int] = ()
    ) -> None:
        """``until_all_gone``: file descriptors that stay open, for example locked, until the guard is done."""
        self.log_dir = log_dir
        log_dir.mkdir(parents=True, exist_ok=True)
        self._signals = signals or StopSignals()
        self._children: list[Managed] = []
        self._logs: set[Path] = set()
        self._lock = threading.RLock()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            pass_fds=until_all_gone,
        )

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_s: float = 10.0,
        tier: int = TIER_CLIENT,
    ) -> Managed:
        """Start a child whose output goes to ``<log_dir>/<name>.log``. ``env`` adds to this environment.

        A child of that name that was started before keeps what it wrote: the reason of a crash is read after the
        restart. What an earlier supervisor's children wrote is kept once, as ``<name>.log.1``.
        """
        log_file = self.log_dir / f"{name}.log"
        with self._signals.hold(), self._lock, self._open_log(log_file) as log:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
            child = Managed(
                name=name, process=process, log_file=log_file, stop_signal=stop_signal, grace_s=grace_s, tier=tier
            )
            self._children.append(child)
            self._tell_guard(f"+ {child.pid} {int(stop_signal)} {grace_s} {tier}")
        return child

    def _open_log(self, log_file: Path) -> BinaryIO:
        if log_file not in self._logs:
            self._logs.add(log_file)
            if log_file.exists():
                log_file.replace(log_file.with_name(f"{log_file.name}.1"))
        elif log_file.exists():
            with log_file.open("ab") as log:
                log.write(f"--- started again at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
        return log_file.open("ab")

    def wait_ready(self, child: Managed, ready: Callable[[], bool], timeout_s: float) -> None:
        """Poll ``ready`` until it is true.

        Raises:
            EmbeddedServerError: the child ended, or was not ready in time; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if not child.running:
                code = child.process.returncode
                raise EmbeddedServerError(self._failure(child, f"ended with code {code} before it was ready"))
            if ready():
                return
            if time.monotonic() > deadline:
                raise EmbeddedServerError(self._failure(child, f"not ready after {timeout_s:.0f} s"))
            time.sleep(READY_POLL_S)

    @property
    def children(self) -> Sequence[Managed]:
        """Those that run, or ended without being stopped."""
        return tuple(self._children)

    def died(self) -> list[Managed]:
        """Children that ended although nobody stopped them."""
        return [child for child in self._children if not child.stopping and not child.running]

    def stop(self, child: Managed, *, stop_signal: signal.Signals | None = None) -> None:
        """Ask one child to stop; kill its whole group when its grace is over."""
        self._end([child], stop_signal)

    def kill(self, child: Managed) -> None:
        """kill -9 of the child and its group, as a crash would."""
        child.stopping = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.process.wait()
        self._forget(child)

    def stop_all(self) -> None:
        """Stop every child: clients before the servers that they talk to, each tier at once."""
        for tier in sorted({child.tier for child in self._children}, reverse=True):
            self._end([child for child in self._children if child.tier == tier], None)

    def close(self) -> None:
        """Stop every child and the guard."""
        self.stop_all()
        if self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
        self._guard.wait()

    def _end(self, children: list[Managed], stop_signal: signal.Signals | None) -> None:
        for child in children:
            child.stopping = True
            if child.running:
                # The leader alone: a Celery worker or a postmaster ends its own children in good order.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, stop_signal or child.stop_signal)
        started = time.monotonic()
        for child in children:
            left_s = max(0.0, started + child.grace_s - time.monotonic())
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(left_s)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.process.wait()
            self._forget(child)

    def _forget(self, child: Managed) -> None:
        with self._lock:
            if child in self._children:
                self._children.remove(child)
                self._tell_guard(f"- {child.pid}")

    def _tell_guard(self, line: str) -> None:
        if self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.write(f"{line}\n".encode())
                self._guard.stdin.flush()

    @staticmethod
    def _failure(child: Managed, what: str) -> str:
        return f"{child.name} (pid {child.pid}): {what}. The end of {child.log_file}:\n{child.log_tail()}"
