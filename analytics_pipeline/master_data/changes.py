"""What an import would change: rows of files against rows that are stored. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analytics_pipeline.master_data.rows import Placed
from analytics_pipeline.master_data.spec import MasterTable, Row


@dataclass(frozen=True, slots=True)
class Changed:
    """A stored row and what it becomes."""

    before: Row
    after: Row

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name, value in self.after.items() if value != self.before[name])


@dataclass(frozen=True, slots=True)
class Changes:
    """What an import does to one table. ``same``: rows that files and database have alike."""

    table: MasterTable
    added: Sequence[Row]
    changed: Sequence[Changed]
    removed: Sequence[Row]
    same: int

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def changes_of(
    table: MasterTable, stored: Sequence[Row], wanted: Sequence[Row], filled_in: Row, *, prune: bool
) -> Changes:
    """Compare files with what is stored.

    Args:
        wanted: rows of the files, each key once.
        filled_in: by column, what a new row gets where a file leaves it to the import.
        prune: rows that no file has are removed.
    """
    known = {table.key_of(row): row for row in stored}
    added: list[Row] = []
    changed: list[Changed] = []
    for row in wanted:
        before = known.pop(table.key_of(row), None)
        after = _completed(table, row, filled_in if before is None else before)
        if before is None:
            added.append(after)
        elif any(after[name] != before[name] for name in after):
            changed.append(Changed(before, after))
    same = len(wanted) - len(added) - len(changed)
    return Changes(table, added, changed, list(known.values()) if prune else [], same)


def _completed(table: MasterTable, row: Row, filled_in: Row) -> dict[str, Any]:
    return {
        column.name: filled_in.get(column.name)
        if column.is_filled_in and row[column.name] is None
        else row[column.name]
        for column in table.in_files
    }


def rows_afterwards(changes: Changes, stored: Sequence[Row], placed: Sequence[Placed]) -> list[Placed]:
    """Every row of a table after an import, those of files with their lines."""
    table = changes.table
    gone = {table.key_of(row) for row in changes.removed} | {table.key_of(one.row) for one in placed}
    return [*placed, *(Placed(table, row) for row in stored if table.key_of(row) not in gone)]
