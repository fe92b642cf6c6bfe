"""Advisory locks: of one (asset, hour), for whoever computes it; and of the commits of raw events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from psycopg2.extensions import ISOLATION_LEVEL_REPEATABLE_READ

from analytics_pipeline.records import HOUR_S, AssetName
from analytics_pipeline.storage.engine import Connection

#: Assets that read master data. sql/40_master_data.sql holds the same lock, exclusively, while it marks.
_READ_MASTER_DATA = frozenset[AssetName]({"anomalies", "kpis"})
_HOUR = "(hashtext(current_schema() || %s), %s)"
_MASTER_DATA = "(hashtext('analytics_pipeline.master_data'), hashtext(current_schema()))"

#: psycopg2's own constant for it is None, which ``set_session`` takes for "as it is": the connection would go
#: back into the pool with the level that it had.
SERVERS_DEFAULT = "DEFAULT"

_RAW_COMMIT = 0x6472_6169_6E


def lock_raw_commits(conn: Connection) -> None:
    """Lets whoever writes raw events commit one after another, until this transaction ends.

    So batch ids are in the order of commit and a cursor over them misses none, and what is counted of raw
    events is not changed by another batch before the count is written.
    """
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_RAW_COMMIT,))


@contextmanager
def hour_lock(conn: Connection, asset: AssetName, hour: datetime, *, snapshot: bool = True) -> Iterator[None]:
    """Holds (asset, hour) for this session, and only then lets the snapshot open.

    Without ``snapshot``, each statement sees what is committed by then: for work beside others that write the
    same rows, such as the drain, which never waits for an hour.

    An advisory lock of the session, not of the transaction: waiting for the latter would already take the
    snapshot, and the run would not see what the run before it committed. It goes with the connection.

    Assets that read master data also keep edits of it out meanwhile: an edit marks the hours that are there when
    it commits, and must not miss one that is being computed with what was before.
    """
    partition = (asset, int(hour.timestamp()) // HOUR_S)
    shared = asset in _READ_MASTER_DATA
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute(f"SELECT pg_advisory_lock{_HOUR}", partition)
        if shared:
            cursor.execute(f"SELECT pg_advisory_lock_shared{_MASTER_DATA}")
    try:
        conn.autocommit = False
        if snapshot:
            conn.set_session(isolation_level=ISOLATION_LEVEL_REPEATABLE_READ)
        yield
    finally:
        if not conn.closed:
            conn.rollback()
            conn.set_session(isolation_level=SERVERS_DEFAULT)
            conn.autocommit = True
            with conn.cursor() as cursor:
                if shared:
                    cursor.execute(f"SELECT pg_advisory_unlock_shared{_MASTER_DATA}")
                cursor.execute(f"SELECT pg_advisory_unlock{_HOUR}", partition)
            conn.autocommit = False
