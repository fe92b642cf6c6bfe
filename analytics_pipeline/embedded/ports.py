"""Which TCP port a server takes: the preferred one, or the next free one. Starts nothing."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from analytics_pipeline.errors import EmbeddedServerError

LOOPBACK = "127.0.0.1"

#: How far the search goes beyond the preferred port before it gives up.
PORTS_TRIED = 200


@dataclass(frozen=True, slots=True)
class PortChoice:
    """A free port, and the one that was asked for."""

    preferred: int
    port: int

    @property
    def moved(self) -> bool:
        """Whether the preferred port was taken."""
        return self.port != self.preferred


def is_free(port: int) -> bool:
    """Whether nobody listens on the loopback port. SO_REUSEADDR: a connection in TIME_WAIT is no owner."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


#: Kept until this process ends.
_reservations: list[socket.socket] = []


def _reserve(port: int) -> bool:
    """Claim the port among all stacks of this machine: seconds pass before a server binds what was chosen.

    The claim is a name in the kernel, which goes away with the process. Linux alone has such names; elsewhere a
    race is left to chance.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0analytics-pipeline-port-{port}")
    except OSError as error:
        claim.close()
        return error.errno != errno.EADDRINUSE
    _reservations.append(claim)
    return True


def choose_port(preferred: int) -> PortChoice:
    """The preferred port, or the next one above it that is free and promised to no other stack."""
    last = min(preferred + PORTS_TRIED, 65535)
    for port in range(preferred, last + 1):
        if is_free(port) and _reserve(port):
            return PortChoice(preferred, port)
    raise EmbeddedServerError(f"127.0.0.1: no free TCP port from {preferred} to {last}; free one")
