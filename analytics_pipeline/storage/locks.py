"""Advisory locks: of domain partitions, for whoever computes them; and of the commits of raw events.

Session locks need a connection to the server itself, or a pooler that keeps a session for as long as a client does:
PgBouncer in transaction mode hands the lock to whoever comes next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from psycopg2.extensions import ISOLATION_LEVEL_REPEATABLE_READ

from analytics_pipeline.records import HOUR_S, AssetName
from analytics_pipeline.storage.engine import Connection

#: psycopg2's own constant for it is None, which ``set_session`` takes for "as it is": the connection would go
#: back into the pool with the level that it had.
SERVERS_DEFAULT = "DEFAULT"
#: A slice that waits longer than this for a domain partition leaves it pending.
LOCK_TIMEOUT_MS = 60_000
#: Locks of one slice: PostgreSQL keeps them in shared memory (max_locks_per_transaction x max_connections).
MAX_LOCKS = 256

_RAW_COMMIT = 0x6472_6169_6E
#: What `lock_domain_commits` is told by those who change which event an id is: windows may be committed meanwhile.
EVENT_IDENTITIES = "event identities"

Key = tuple[int, datetime]


def lock_raw_commits(conn: Connection) -> None:
    """Lets whoever writes raw events commit one after another, until this transaction ends.

    So batch ids are in the order of commit and a cursor over them misses none, and what is counted of raw
    events is not changed by another batch before the count is written.
    """
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_RAW_COMMIT,))


def lock_domain_commits(conn: Connection, domain_ids: Iterable[int], what: str = "window commits") -> None:
    """Lets those who change windows of a domain, or what else is named, commit one after another, until this
    transaction ends."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtext(current_schema() || ' ' || %s), domain_id) "
            "FROM unnest(%s::int[]) domain_id",
            (what, sorted(set(domain_ids))),
        )


def lock_inputs(conn: Connection) -> None:
    """Waits for those who commit what they computed, and lets nobody else, until this transaction ends."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtext('analytics_pipeline.master_data'), hashtext(current_schema()))"
        )


def lock_inputs_shared(conn: Connection) -> None:
    """Keeps edits of master data, of the retention floor and of the window sizes out until this transaction ends."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock_shared(hashtext('analytics_pipeline.master_data'), "
            "hashtext(current_schema()))"
        )


def _numbered(conn: Connection, asset: AssetName, keys: Sequence[Key]) -> list[tuple[int, int, Key]]:
    """(lock key, hour number, domain partition) in the numeric order in which everybody takes them."""
    domains = sorted({key[0] for key in keys})
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT domain_id, hashtext(current_schema() || %s || domain_id) FROM unnest(%s::int[]) domain_id",
            (asset, domains),
        )
        hashed = dict(cursor.fetchall())
    return sorted((hashed[key[0]], int(key[1].timestamp()) // HOUR_S, key) for key in keys)


def lock_domain_partitions(conn: Connection, asset: AssetName, keys: Sequence[Key], *, wait: bool) -> list[Key]:
    """Takes the locks of some domain partitions for this session, all before a snapshot opens.

    Args:
        wait: for those that others hold, up to the time-out; otherwise takes what is free.

    Returns:
        the domain partitions that are locked now.

    Raises:
        psycopg2.errors.LockNotAvailable: the time-out passed; the caller releases what was taken.
    """
    numbered = _numbered(conn, asset, keys)
    function = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    with conn.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
        cursor.execute(
            f"SELECT {function}(k, h)::text FROM unnest(%s::int[], %s::int[]) AS wanted (k, h)",
            ([one[0] for one in numbered], [one[1] for one in numbered]),
        )
        got = [row[0] for row in cursor.fetchall()]
    return [one[2] for one, answer in zip(numbered, got, strict=True) if answer != "false"]


@contextmanager
def domain_partition_locks(
    conn: Connection, asset: AssetName, keys: Sequence[Key], *, wait: bool
) -> Iterator[list[Key]]:
    """Holds domain partitions for this session, and only then lets the snapshot open; yields those held.

    Locks of the session, not of the transaction: waiting for the latter would already take the snapshot, and the
    run would not see what the run before it committed. They go with the connection.
    """
    conn.autocommit = True
    try:
        held = lock_domain_partitions(conn, asset, keys, wait=wait)
        conn.autocommit = False
        conn.set_session(isolation_level=ISOLATION_LEVEL_REPEATABLE_READ)
        yield held
    finally:
        if not conn.closed:
            conn.rollback()
            conn.set_session(isolation_level=SERVERS_DEFAULT)
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock_all()")
                cursor.execute("RESET lock_timeout")
            conn.autocommit = False


@contextmanager
def hour_lock(conn: Connection, asset: AssetName, hour: datetime) -> Iterator[None]:
    """Holds (asset, hour) of all domains, without a snapshot: each statement sees what is committed by then.

    For work beside others that write the same rows, such as the drain, which never waits for an hour.
    """
    conn.autocommit = True
    try:
        with conn.cursor() as cursor:
            cursor.execute(
                "SELECT pg_advisory_lock(hashtext(current_schema() || %s), %s)",
                (asset, int(hour.timestamp()) // HOUR_S),
            )
        conn.autocommit = False
        yield
    finally:
        if not conn.closed:
            conn.rollback()
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock_all()")
            conn.autocommit = False


@contextmanager
def lock_if_free(conn: Connection, name: str) -> Iterator[bool]:
    """Holds a lock of this schema for a block that commits; yields whether it was free. Waits for nobody."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext(current_schema() || ' ' || %s), 0)", (name,))
        free = bool(cursor.fetchone()[0])
    try:
        yield free
    finally:
        if free and not conn.closed:
            conn.rollback()
            with conn.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(hashtext(current_schema() || ' ' || %s), 0)", (name,))
            conn.commit()
