"""An import of files of master data: read, compared, checked and written in one transaction, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath

import psycopg2

from analytics_pipeline.errors import PipelineError
from analytics_pipeline.master_data import checks
from analytics_pipeline.master_data.catalog import BY_NAME, MASTER_TABLES
from analytics_pipeline.master_data.changes import Changes, changes_of, rows_afterwards
from analytics_pipeline.master_data.rows import Placed, Problem, parse
from analytics_pipeline.master_data.spec import MasterTable
from analytics_pipeline.storage import master_data_edits
from analytics_pipeline.storage.engine import Connection

#: More problems than this are counted, not told.
TOLD = 20


class MasterDataError(PipelineError):
    """Files of master data that were not taken: tells every problem with file, line, column and value."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        told = "".join(f"\n  {one}" for one in problems[:TOLD])
        more = f"\n  and {len(problems) - TOLD} more" if len(problems) > TOLD else ""
        count = f"{len(problems)} problem" + ("s" if len(problems) != 1 else "")
        super().__init__(f"master data: {count}, nothing was imported{told}{more}")


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did, or would do.

    Attributes:
        changes: of each table that a file names.
        hours: by asset, how many hours of domains are computed again.
    """

    changes: Sequence[Changes]
    hours: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class File:
    """One file: its name tells the table."""

    name: str
    text: str

    @property
    def table(self) -> MasterTable:
        """Raises PipelineError: there is no such table."""
        stem = PurePath(self.name).stem
        if stem not in BY_NAME:
            raise PipelineError(f"{self.name}: no table is named {stem!r}; takes {', '.join(sorted(BY_NAME))}")
        return BY_NAME[stem]


def apply(
    connection: Connection, files: Sequence[File], *, prune: bool, edited_by: str, now: datetime, base_window_s: int
) -> Imported:
    """Write what files say, in the transaction of the caller, who commits or rolls back soon after.

    Args:
        prune: remove stored rows that the file of their table does not have.
        edited_by: for the record of edits, and who assigned a stop where the file does not say.
        now: when, for the same.
        base_window_s: windows that figures are made of.

    Raises:
        MasterDataError: a file is wrong, in itself or beside what is stored; nothing was written.
    """
    placed = _parsed(files)
    tables = [table for table in MASTER_TABLES if table.name in placed]
    master_data_edits.lock(connection, tables)
    stored = {table.name: master_data_edits.read_rows(connection, table) for table in _needed(tables)}
    filled_in = {"assigned_by": edited_by, "assigned_at": now}
    changes = [
        changes_of(table, stored[table.name], [one.row for one in placed[table.name]], filled_in, prune=prune)
        for table in tables
    ]
    afterwards = {name: [Placed(BY_NAME[name], row) for row in rows] for name, rows in stored.items()}
    for one in changes:
        afterwards[one.table.name] = rows_afterwards(one, stored[one.table.name], placed[one.table.name])
    problems = checks.problems(afterwards, base_window_s)
    if problems:
        raise MasterDataError(problems)
    return Imported(changes, _write(connection, changes, edited_by))


def _parsed(files: Sequence[File]) -> dict[str, list[Placed]]:
    found: dict[str, list[Placed]] = {}
    problems: list[Problem] = []
    for file in files:
        if file.table.name in found:
            raise PipelineError(f"{file.name}: two files are about {file.table.name}; give one")
        found[file.table.name], wrong = parse(file.table, file.name, file.text)
        problems += wrong
    if problems:
        raise MasterDataError(problems)
    return found


def _needed(tables: Sequence[MasterTable]) -> list[MasterTable]:
    return [one for one in MASTER_TABLES if one in tables or one.name in checks.LOOKED_AT]


def _write(connection: Connection, changes: Sequence[Changes], edited_by: str) -> Mapping[str, int]:
    if not any(changes):
        return {}
    try:
        for one in changes:
            master_data_edits.write(connection, one, edited_by)
        return master_data_edits.hours_asked_for(connection)
    except (psycopg2.IntegrityError, psycopg2.DataError) as error:
        # What the checks here let through, the database refuses; it cannot tell the line.
        raise PipelineError(f"master data: the database refuses a row, nothing was imported: {error}") from error
