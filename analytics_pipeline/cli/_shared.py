"""What commands share: settings, a connection whose errors people understand, and two ways to show a result."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from analytics_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from analytics_pipeline.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

#: Characters a line where no terminal says how many: wide enough that words stay whole for grep.
PIPE_WIDTH = 240


class DatabaseError(PipelineError):
    """The database is out of reach, or not what a command needs: says which setting or command mends it."""


@contextmanager
def open_database(settings: Settings) -> Iterator[Any]:
    """A psycopg2 connection. What is not committed is rolled back.

    Raises:
        DatabaseError: out of reach, not migrated, or not permitted.
    """
    import psycopg2
    from sqlalchemy.exc import OperationalError

    from analytics_pipeline.storage.engine import connection, engine_for

    where = f"database {settings.db_name} at {settings.db_host}:{settings.db_port} as {settings.db_user}"
    try:
        with connection(engine_for(settings)) as conn:
            yield conn
    except (OperationalError, psycopg2.OperationalError) as error:
        remedy = "check DB_HOST, DB_PORT, DB_NAME, DB_USER and DB_PASSWORD"
        raise DatabaseError(f"{where}: {first_line(getattr(error, 'orig', error))}; {remedy}") from error
    except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn) as error:
        remedy = "run 'analytics-pipeline migrate'"
        raise DatabaseError(f"{where}, schema {settings.db_schema}: {first_line(error)}; {remedy}") from error
    except psycopg2.errors.InsufficientPrivilege as error:
        remedy = f"grant it: GRANT analytics_writer TO {settings.db_user}"
        raise DatabaseError(f"{where}: {first_line(error)}; {remedy}") from error


def first_line(error: object) -> str:
    """The first line of an error's text, without the prefix that libpq puts before it."""
    lines = str(error).strip().splitlines()
    return lines[0].removeprefix("ERROR:").strip() if lines else type(error).__name__


def print_json(value: Any) -> None:
    """Dataclasses, datetimes and containers of them, on stdout."""
    print(json.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: _plain(one) for name, one in shown.items()}
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return utc(value) if isinstance(value, datetime) else value


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table for people. None is shown as a dash; numbers stand to the right."""
    rows = [tuple(row) for row in rows]
    shown = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for at, name in enumerate(columns):
        numeric = any(isinstance(row[at], (int, float)) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*("-" if cell is None else _cell(cell) for cell in row))
    return shown


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    return utc(value) if isinstance(value, datetime) else str(value)


def utc(moment: datetime) -> str:
    """As people copy it into other commands: ``2026-11-21T10:00:00Z``."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def age(since: datetime | None, now: datetime) -> str:
    """How long ago, in the largest unit that says something."""
    if since is None:
        return "never"
    seconds = (now - since) / timedelta(seconds=1)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def console() -> Console:
    """Where tables go. Made when it is used, so that a redirected stdout is respected."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
