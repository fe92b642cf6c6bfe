"""Versions of what computations read beside their inputs: master data, and the retention floor.

Both are read with the snapshot. An edit raises its version; a commit takes the lock that edits take exclusively,
shared, and looks whether the version that it read still stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.locks import lock_inputs

InputName = Literal["master_data", "retention"]


@dataclass(frozen=True, slots=True)
class InputVersions:
    """As one snapshot sees them."""

    master_data: int
    retention: int


def read(connection: Connection) -> InputVersions:
    """The versions as this transaction sees them."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, version FROM input_version")
        found = dict(cursor.fetchall())
    return InputVersions(master_data=found["master_data"], retention=found["retention"])


def raise_version(connection: Connection, name: InputName) -> None:
    """What was read before is another one now. The caller holds the lock exclusively until it commits."""
    lock_inputs(connection)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE input_version SET version = version + 1 WHERE name = %s", (name,))
