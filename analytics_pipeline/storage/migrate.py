"""Applies ``sql/NN_*.sql`` in order and records what it applied. Declares no tables: they are in SQL.

The files are idempotent and forward only. A file whose content changed is applied again, and so is every
later one, because later files rest on earlier ones (grants name views, views name tables). The same happens
when the server has something that it had not before: TimescaleDB was installed, its licence changed, or an
administrator created the roles that this one may not create.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extras import execute_values

from analytics_pipeline.errors import PipelineError
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage import window_sizes
from analytics_pipeline.storage.engine import Connection, connection, make_engine

DISTRIBUTION = "analytics-pipeline"
FILE_NAME = re.compile(r"^\d\d_[a-z0-9_]+\.sql$")

#: Settings that views in the database need: one truth for those who read with SQL alone.
SETTINGS_IN_DATABASE = ("allowed_lateness_s", "idle_partition_s", "consumer_group")

_BOOKKEEPING = """
CREATE TABLE IF NOT EXISTS schema_migration (
    name       text PRIMARY KEY,
    sha256     text NOT NULL,
    server     text NOT NULL,           -- what the server could do when the file was applied
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""

_CAPABILITIES = """
SELECT 'timescaledb ' || coalesce((SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'), 'none')
    || ', licence ' || coalesce(current_setting('timescaledb.license', true), 'none')
    || ', roles ' || (SELECT count(*) FROM pg_roles WHERE rolname IN ('analytics_reader', 'analytics_writer'))
"""


class MigrationError(PipelineError):
    """A migration that could not be applied: names the file, what the server said, and the remedy."""


@dataclass(frozen=True, slots=True)
class SqlFile:
    """One numbered file of ``sql/``."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def sql_files(folder: Path | None = None) -> tuple[SqlFile, ...]:
    """The numbered files in order, from a checkout or from where the package was installed.

    Raises:
        MigrationError: there are none.
    """
    paths = sorted(folder.glob("*.sql")) if folder else _checkout_files() or _installed_files()
    files = tuple(SqlFile(path.name, path.read_text("utf-8")) for path in paths if FILE_NAME.match(path.name))
    if not files:
        raise MigrationError(
            f"no sql/NN_*.sql found in {folder or 'this checkout or the installed package'}: "
            "reinstall the package, or run from a checkout"
        )
    return files


def _checkout_files() -> list[Path]:
    return sorted((Path(__file__).resolve().parents[2] / "sql").glob("*.sql"))


def _installed_files() -> list[Path]:
    try:
        listed = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    paths = (Path(str(file.locate())) for file in listed if FILE_NAME.match(file.name))
    return sorted((path for path in paths if path.is_file()), key=lambda path: path.name)


def migrate(
    settings: Settings,
    domain_topics: Mapping[str, Sequence[str]] | None = None,
    *,
    files: Sequence[SqlFile] | None = None,
    on_notice: Callable[[str], None] = lambda _text: None,
) -> list[str]:
    """Bring the schema of ``settings`` up to the files, and return the names of those that were applied.

    Safe to run from several processes at once: an advisory lock lets one work and the others find it done.
    ``domain_topics`` (domain name to topics) fills the table by which views find a domain's watermark; None
    leaves that table as it is. ``on_notice`` gets what the server or this function has to say to a person.

    Raises:
        MigrationError: the server is out of reach, refuses, or a file fails. Files before it stay applied.
    """
    files = sql_files() if files is None else files
    with _migration_connection(settings) as conn:
        _ensure_schema(conn, settings.db_schema)
        _lock(conn, settings.db_schema)
        _refuse_what_is_not_ours(conn, settings, files)
        on_notice_text = _try_timescaledb(settings, conn)
        if on_notice_text:
            on_notice(on_notice_text)
        applied = _apply_outdated(conn, files, on_notice)
        _store_settings(conn, settings, domain_topics, on_notice)
    return applied


def outdated(conn: Connection, files: Sequence[SqlFile] | None = None) -> list[str]:
    """Names of files that ``migrate`` would apply now. All of them where nothing was ever applied."""
    files = sql_files() if files is None else files
    with conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass('schema_migration') IS NOT NULL")
        known = dict(_recorded(cursor)) if cursor.fetchone()[0] else {}
        server = _capabilities(cursor)
    return [file.name for file in _outdated(files, known, server)]


def _outdated(files: Sequence[SqlFile], known: Mapping[str, tuple[str, str]], server: str) -> Sequence[SqlFile]:
    for position, file in enumerate(files):
        if known.get(file.name) != (file.sha256, server):
            return files[position:]
    return ()


@contextmanager
def _migration_connection(settings: Settings) -> Iterator[Connection]:
    # An engine of its own: a session-level lock and the lifted timeout must not go back to a pool.
    engine = make_engine(settings)
    try:
        with connection(engine, autocommit=True) as conn, conn.cursor() as cursor:
            # Turning a filled table into a hypertable takes as long as it takes.
            cursor.execute("SET statement_timeout = 0; SET client_min_messages = notice")
            yield conn
    except psycopg2.OperationalError as error:
        raise MigrationError(_unreachable(settings, error)) from error
    except Exception as error:
        cause = getattr(error, "orig", None)
        if isinstance(cause, psycopg2.OperationalError):
            raise MigrationError(_unreachable(settings, cause)) from error
        raise
    finally:
        engine.dispose()


def _unreachable(settings: Settings, error: Exception) -> str:
    return (
        f"database {settings.db_name} at {settings.db_host}:{settings.db_port} as {settings.db_user}: "
        f"{_first_line(error)}; check DB_HOST, DB_PORT, DB_NAME, DB_USER and DB_PASSWORD"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _ensure_schema(conn: Connection, schema: str) -> None:
    with conn.cursor() as cursor:
        cursor.execute("SELECT to_regnamespace(%s) IS NOT NULL", (schema,))
        if cursor.fetchone()[0]:
            return  # CREATE SCHEMA IF NOT EXISTS asks for the right to create one even where it exists
        try:
            cursor.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
        except psycopg2.errors.UniqueViolation:
            pass  # another process made it at the same moment
        except psycopg2.errors.InsufficientPrivilege as error:
            raise MigrationError(
                f"schema {schema} does not exist and this role may not create it: have an administrator run "
                f'CREATE SCHEMA "{schema}" AUTHORIZATION <the role in DB_USER>'
            ) from error


def _lock(conn: Connection, schema: str) -> None:
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtext('analytics_pipeline.migrate'), hashtext(%s))", (schema,))


def _refuse_what_is_not_ours(conn: Connection, settings: Settings, files: Sequence[SqlFile]) -> None:
    """Stop before anything is changed where these files do not lead on from what is there."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass('schema_migration') IS NOT NULL")
        recorded = {name for name, _ in _recorded(cursor)} if cursor.fetchone()[0] else set()
        gone = sorted(recorded - {file.name for file in files})
        if files and gone:
            raise MigrationError(
                f"schema {settings.db_schema} of database {settings.db_name} was made by a version that cannot be "
                f"updated (it applied {', '.join(gone)}): name another in DB_SCHEMA or DB_NAME, or run "
                f'DROP SCHEMA "{settings.db_schema}" CASCADE, and migrate again; the pipeline reads again what '
                "Kafka still has (with 'make demo': run 'make clean')"
            )
        text = unreadable_chunks(conn, settings.db_schema)
        if text:
            raise MigrationError(text)


def unreadable_chunks(conn: Connection, schema: str) -> str | None:
    """What is wrong, with the remedy, where compressed chunks read as empty: under the Apache licence they do."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT to_regclass('timescaledb_information.chunks') IS NOT NULL "
            "AND current_setting('timescaledb.license', true) = 'apache'"
        )
        if not cursor.fetchone()[0]:
            return None
        cursor.execute(
            "SELECT count(*), string_agg(DISTINCT hypertable_name, ', ') FROM timescaledb_information.chunks "
            "WHERE hypertable_schema = %s AND is_compressed",
            (schema,),
        )
        chunks, tables = cursor.fetchone()
    if not chunks:
        return None
    return (
        f"{chunks} compressed chunks of {tables} read as empty under timescaledb.license = 'apache': set it to "
        "'timescale' and restart the server; to leave that licence, first decompress them there (SELECT "
        f"decompress_chunk(chunk, true) FROM show_chunks('{schema}.<table>') AS chunk)"
    )


def _try_timescaledb(settings: Settings, conn: Connection) -> str | None:
    """Install TimescaleDB where the server offers it; a sentence with the remedy where that is refused."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT installed_version FROM pg_available_extensions WHERE name = 'timescaledb' AND NOT EXISTS "
            "(SELECT FROM pg_extension WHERE extname = 'timescaledb')"
        )
        if cursor.fetchone() is None:
            return None
    # On a connection of its own: a server that did not preload the library ends the session.
    engine = make_engine(settings)
    try:
        with connection(engine, autocommit=True) as attempt, attempt.cursor() as cursor:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS timescaledb SCHEMA public")
    except psycopg2.Error as error:
        return (
            f"TimescaleDB is on this server but not in database {settings.db_name}, and could not be added "
            f"({_first_line(error)}); going on with plain tables. Remedy: put timescaledb into "
            "shared_preload_libraries, have a superuser run CREATE EXTENSION timescaledb, then migrate again"
        )
    finally:
        engine.dispose()
    return None


def _recorded(cursor: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    cursor.execute("SELECT name, sha256, server FROM schema_migration")
    for name, sha256, server in cursor.fetchall():
        yield name, (sha256, server)


def _capabilities(cursor: Any) -> str:
    cursor.execute(_CAPABILITIES)
    return str(cursor.fetchone()[0])


def _apply_outdated(conn: Connection, files: Sequence[SqlFile], on_notice: Callable[[str], None]) -> list[str]:
    with conn.cursor() as cursor:
        _execute(cursor, "the bookkeeping table schema_migration", _BOOKKEEPING)
        server = _capabilities(cursor)
        outdated_files = _outdated(files, dict(_recorded(cursor)), server)
    for file in outdated_files:
        del conn.notices[:]
        _apply(conn, file, server)
        for notice in conn.notices:
            text = notice.strip()
            if text.startswith(("NOTICE:  migrate:", "WARNING:")):
                on_notice(f"{file.name}: {text.partition(':')[2].strip().removeprefix('migrate:').strip()}")
    if outdated_files:
        with conn.cursor() as cursor:
            # What the files themselves brought, as the roles, is no reason to apply them again.
            cursor.execute("UPDATE schema_migration SET server = %s", (_capabilities(cursor),))
    return [file.name for file in outdated_files]


def _apply(conn: Connection, file: SqlFile, server: str) -> None:
    conn.autocommit = False
    try:
        with conn.cursor() as cursor:
            _execute(cursor, f"sql/{file.name}", file.text)
            cursor.execute(
                "INSERT INTO schema_migration (name, sha256, server) VALUES (%s, %s, %s) "
                "ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, server = excluded.server, "
                "applied_at = now()",
                (file.name, file.sha256, server),
            )
        conn.commit()
    finally:
        if not conn.closed:
            conn.rollback()
            conn.autocommit = True


def _execute(cursor: Any, what: str, text: str) -> None:
    try:
        cursor.execute(text)
    except psycopg2.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"{what}: {_first_line(error)}; migrate as the role that owns the schema, or have an "
            "administrator make this role its owner"
        ) from error
    except psycopg2.OperationalError:
        raise
    except psycopg2.Error as error:
        position = getattr(error.diag, "statement_position", None)
        line = f" line {text[: int(position)].count(chr(10)) + 1}" if position else ""
        raise MigrationError(
            f"{what}{line}: {_first_line(error)}; nothing of this file was applied: correct it, migrate again"
        ) from error


def _store_settings(
    conn: Connection,
    settings: Settings,
    domain_topics: Mapping[str, Sequence[str]] | None,
    on_notice: Callable[[str], None],
) -> None:
    with conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass('pipeline_setting') IS NOT NULL")
        if not cursor.fetchone()[0]:
            return
        execute_values(
            cursor,
            "INSERT INTO pipeline_setting (name, value) VALUES %s "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated_at = now() "
            "WHERE pipeline_setting.value <> excluded.value",
            [(name, str(getattr(settings, name))) for name in SETTINGS_IN_DATABASE],
        )
        notice = window_sizes.adopt(conn, settings.window_sizes_s)
        if notice:
            on_notice(notice)
        if domain_topics is None:
            return
        pairs = [(domain, topic) for domain, topics in domain_topics.items() for topic in topics]
        conn.autocommit = False
        try:
            cursor.execute("DELETE FROM domain_topic")
            execute_values(cursor, "INSERT INTO domain_topic (domain, topic) VALUES %s", pairs)
            conn.commit()
        finally:
            conn.rollback()
            conn.autocommit = True
