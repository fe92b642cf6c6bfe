"""Wakes a live run that waits for work: LISTEN and NOTIFY of PostgreSQL.

A notification is a wake-up and nothing else: whoever hears one looks into the tables, and looks each second anyhow.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Literal

from sqlalchemy import Engine

from analytics_pipeline.storage.engine import Connection, connection

Signal = Literal["work", "superseded"]

#: A lost notification delays work by no more than this.
LOOK_EVERY_S = 1.0


def notify(conn: Connection, signal: Signal) -> None:
    """Tell live runs something, once this transaction commits."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_notify(current_schema() || '_live', %s)", (signal,))


def live_data_came(conn: Connection, live_from: datetime, since: datetime) -> bool:
    """Whether a batch that arrived since then brought something for a live hour."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM ingest_batch_hour h JOIN ingest_batch b USING (batch_id) "
            "WHERE h.hour >= %s AND h.raw_rows > 0 AND b.arrived_at >= %s)",
            (live_from, since),
        )
        return bool(cursor.fetchone()[0])


class Listener:
    """Hears the signals of one schema, on a connection of its own that holds neither lock nor snapshot."""

    def __init__(self, conn: Connection) -> None:
        self._connection = conn
        del conn.notifies[:]  # a pooled connection keeps what whoever listened before did not read
        with conn.cursor() as cursor:
            cursor.execute("SELECT quote_ident(current_schema() || '_live')")
            cursor.execute(f"LISTEN {cursor.fetchone()[0]}")

    def heard(self) -> set[str]:
        """What was said since the last call; does not wait."""
        self._connection.poll()
        found = {one.payload for one in self._connection.notifies}
        del self._connection.notifies[:]
        return found

    def wait(self, timeout_s: float = LOOK_EVERY_S) -> set[str]:
        """What is said within the time; empty where nothing was."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.heard()):
            left = deadline - time.monotonic()
            if left <= 0:
                return set()
            select.select([self._connection], [], [], left)
        return found


@contextmanager
def listening(engine: Engine) -> Iterator[Listener]:
    """A listener for the length of a block."""
    with connection(engine, autocommit=True) as conn:
        try:
            yield Listener(conn)
        finally:
            if not conn.closed:
                with conn.cursor() as cursor:
                    cursor.execute("UNLISTEN *")
