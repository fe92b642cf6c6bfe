"""``analytics-pipeline doctor``: whether everything that the pipeline needs is there, and the remedy if not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import typer

from analytics_pipeline.cli._shared import AsJson, console, first_line, open_database, print_json
from analytics_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from analytics_pipeline.settings import Settings

MIN_POSTGRES = 150_000  # as server_version_num counts; NULLS NOT DISTINCT came with 15
CONNECT_TIMEOUT_S = 3.0

_SYMBOLS = {"ok": "[green]ok[/]  ", "note": "[yellow]note[/]", "fail": "[red]FAIL[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. ``note``: works, and is worth knowing. ``remedy`` only where there is one."""

    check: str
    level: Literal["ok", "note", "fail"]
    found: str
    remedy: str | None = None


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check settings, database, TimescaleDB, permissions, schema, Kafka and Celery. Exit code 1 if one fails."""
    findings = list(examine())
    if as_json:
        print_json(findings)
    else:
        screen = console()
        for finding in findings:
            screen.print(f"{_SYMBOLS[finding.level]} [bold]{finding.check}[/]: ", end="")
            screen.print(finding.found, markup=False, highlight=False, soft_wrap=True)
            if finding.remedy:
                screen.print(f"     remedy: {finding.remedy}", markup=False, highlight=False, soft_wrap=True)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Every check in turn. One that cannot run because an earlier one failed is left out."""
    from analytics_pipeline.domains import registry_for
    from analytics_pipeline.settings import load_settings, unused_variables

    try:
        settings = load_settings()
        registry = registry_for(settings)
    except PipelineError as error:
        yield Finding("settings", "fail", str(error), "correct it in the environment or in .env")
        return
    yield Finding("settings", "ok", f"domains {', '.join(registry.by_name)}; windows {settings.windows} s")
    yield from (Finding("settings without effect", "note", line) for line in unused_variables())
    yield from _database(settings)
    yield from _kafka(settings, registry.topics)
    yield _celery("Celery broker", "CELERY_BROKER_URL", settings.celery_broker_url)
    yield _celery("Celery result backend", "CELERY_RESULT_BACKEND", settings.celery_result_backend)


# ---------------------------------------------------------------------- database


def _database(settings: Settings) -> Iterator[Finding]:
    checks = (_server, _timescaledb, _role, _schema, _permissions, _units)
    try:
        with open_database(settings) as conn:
            for check in checks:
                yield check(settings, conn)
                conn.rollback()
    except PipelineError as error:
        said, _, remedy = str(error).rpartition("; ")
        yield Finding("database", "fail", said, f"{remedy}; see that the server runs")


def _one(conn: Any, query: str, values: tuple[Any, ...] = ()) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(query, values)
        row = cursor.fetchone()
        return row[0] if row and len(row) == 1 else row


def _server(settings: Settings, conn: Any) -> Finding:
    version, number = _one(conn, "SELECT current_setting('server_version'), current_setting('server_version_num')")
    where = f"PostgreSQL {version} at {settings.db_host}:{settings.db_port}, database {settings.db_name}"
    if int(number) < MIN_POSTGRES:
        return Finding("database", "fail", where, "use PostgreSQL 15 or newer")
    return Finding("database", "ok", where)


def _timescaledb(settings: Settings, conn: Any) -> Finding:
    from analytics_pipeline.storage.migrate import unreadable_chunks

    unreadable = unreadable_chunks(conn, settings.db_schema)
    if unreadable:
        said, _, remedy = unreadable.partition(": ")
        return Finding("TimescaleDB", "fail", said, remedy)
    version = _one(conn, "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    if version:
        licence = _one(conn, "SELECT current_setting('timescaledb.license', true)")
        offers = "hypertables only" if licence == "apache" else "hypertables, compression, continuous aggregates"
        return Finding("TimescaleDB", "ok", f"{version}, licence {licence}: {offers}")
    if _one(conn, "SELECT name FROM pg_available_extensions WHERE name = 'timescaledb'"):
        remedy = "have a superuser run CREATE EXTENSION timescaledb, then 'analytics-pipeline migrate'"
        found = "installed on this server, not in this database: plain tables are used"
        return Finding("TimescaleDB", "note", found, remedy)
    return Finding("TimescaleDB", "note", "not on this server: plain tables are used, which works")


def _role(settings: Settings, conn: Any) -> Finding:
    if _one(conn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        remedy = "use an ordinary role: CREATE ROLE pipeline LOGIN; GRANT analytics_writer TO pipeline"
        return Finding("role", "note", f"{settings.db_user} is a superuser, which is more than is needed", remedy)
    return Finding("role", "ok", f"{settings.db_user} is not a superuser")


def _schema(settings: Settings, conn: Any) -> Finding:
    from analytics_pipeline.storage.migrate import outdated

    waiting = outdated(conn)
    if waiting:
        said = f"{settings.db_schema} lacks {', '.join(waiting)}"
        return Finding("schema", "fail", said, "run 'analytics-pipeline migrate'")
    return Finding("schema", "ok", f"{settings.db_schema} is up to date")


def _permissions(settings: Settings, conn: Any) -> Finding:
    """Whether this role may do what the pipeline does, asked of the server and not tried."""
    if not _one(conn, "SELECT count(*) FROM pg_tables WHERE schemaname = %s", (settings.db_schema,)):
        return Finding("permissions", "note", f"{settings.db_schema} has no tables yet")
    missing = _one(
        conn,
        "SELECT string_agg(tablename || ' (' || privilege || ')', ', ' ORDER BY tablename, privilege) "
        "FROM pg_tables, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege "
        "WHERE schemaname = %s AND tablename <> 'schema_migration' "
        "AND NOT has_table_privilege(format('%%I.%%I', schemaname, tablename), privilege)",
        (settings.db_schema,),
    )
    remedy = f"GRANT analytics_writer TO {settings.db_user}"
    if missing:
        return Finding("permissions", "fail", f"{settings.db_user} lacks {missing}", remedy)
    if not _one(conn, "SELECT has_database_privilege(current_database(), 'TEMPORARY')"):
        remedy = f"GRANT TEMPORARY ON DATABASE {settings.db_name} TO {settings.db_user}"
        return Finding("permissions", "fail", f"{settings.db_user} may not make temporary tables", remedy)
    return Finding("permissions", "ok", f"{settings.db_user} may read and write every table")


def _units(_: Settings, conn: Any) -> Finding:
    """Series whose figures are in the unit as sent, while their metric has a canonical one."""
    if not _one(conn, "SELECT to_regclass('series_unit') IS NOT NULL"):
        return Finding("units", "note", "not looked at before the first migration")
    unknown = _one(
        conn,
        "SELECT string_agg(format('%%s in %%s (%%s series)', metric, unit, series), ', ' ORDER BY metric, unit) "
        "FROM (SELECT metric, unit, count(*) AS series FROM series_unit WHERE NOT is_known GROUP BY 1, 2) u",
    )
    if unknown:
        return Finding("units", "note", f"kept as sent: {unknown}", "declare the unit: see docs/master-data.md, units")
    return Finding("units", "ok", "every unit that is sent is known, where its metric has a canonical one")


# ---------------------------------------------------------------------- Kafka and Celery


def _kafka(settings: Settings, topics: tuple[str, ...]) -> Iterator[Finding]:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({**settings.kafka_config(), "log_level": 0})
    try:
        there = admin.list_topics(timeout=CONNECT_TIMEOUT_S).topics
    except KafkaException as error:
        said = f"{settings.kafka_brokers} does not answer ({error.args[0].str()})"
        yield Finding("Kafka", "fail", said, "check KAFKA_BROKERS and the KAFKA_SASL_ and KAFKA_SSL_ settings")
        return
    yield Finding("Kafka", "ok", f"{settings.kafka_brokers} answers, {len(there)} topics")
    missing = sorted(set(topics) - set(there))
    shown = ", ".join(f"{topic} ({len(there[topic].partitions)} partitions)" for topic in topics if topic in there)
    if not missing:
        yield Finding("topics", "ok", shown)
    elif settings.kafka_topics or not shown:
        remedy = "create them, or name the topics to read in KAFKA_TOPICS"
        yield Finding("topics", "fail", f"missing topics: {', '.join(missing)}", remedy)
    else:  # all domains are enabled by default, and few people use all of them
        remedy = "nothing, if nobody sends these; else create them, or name the domains that you use in DOMAINS_ENABLED"
        yield Finding("topics", "note", f"{shown}; missing topics: {', '.join(missing)}", remedy)


def _celery(what: str, variable: str, url: str) -> Finding:
    from kombu.connection import Connection
    from kombu.exceptions import KombuError, OperationalError

    connect: Any = Connection  # without types
    scheme, separator, _ = url.partition("://")
    try:
        broker = connect(url, connect_timeout=CONNECT_TIMEOUT_S)
        where = broker.as_uri()  # masks the password
        readable = bool(separator and broker.transport)
    except (KeyError, ValueError, ImportError):
        readable = False
    if not readable:
        # Not the text of the error: it may hold a part of the password.
        found = f"scheme {scheme!r}: unknown, or the rest cannot be read" if separator else "an address without scheme"
        return Finding(what, "fail", found, f"write {variable} as redis://:PASSWORD@HOST:PORT/NUMBER, URL-encoded")
    errors: tuple[type[BaseException], ...] = (OperationalError, KombuError, OSError, ValueError, KeyError)
    try:
        errors = (*errors, *broker.connection_errors)
        broker.ensure_connection(max_retries=1, timeout=CONNECT_TIMEOUT_S, interval_start=0)
    except errors as error:
        return Finding(what, "fail", f"{where}: {first_line(error)}", f"check {variable}, and that Valkey runs")
    finally:
        broker.release()
    return Finding(what, "ok", f"{where} answers")
