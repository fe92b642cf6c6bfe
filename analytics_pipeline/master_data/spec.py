"""What a table of master data is, declared once: columns, what a row is about, when it holds, what an edit touches.

Pure: no SQL, no rows. ``sql/04_master_data.sql`` holds the DDL that people read and ``sql/40_master_data.sql`` what an
edit makes stale; a test holds both and these specs to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from analytics_pipeline.records import DerivedName

#: What a cell holds. A moment is a point in time with its offset from UTC, a wall time one of the factory's zone.
Kind = Literal["text", "number", "whole number", "yes or no", "moment", "date", "wall time", "zone", "JSON object"]

#: When a row holds.
#:   from      from ``valid_from`` on, until the next row with the same target
#:   between   from ``begins_at`` to ``ends_at``, the end exclusive
#:   date      on the day ``on_date`` of the factory
#:   always    what it says does not change with time
Holds = Literal["from", "between", "date", "always"]

#: A row, by column. Times are aware; None: no value.
Row = Mapping[str, Any]

#: What a row may name to say which series it is about; None matches any.
SERIES_NAMES = ("tenant_id", "factory_id", "machine_id", "sensor_id")
FACTORY_NAMES = ("tenant_id", "factory_id")
MACHINE_NAMES = ("tenant_id", "factory_id", "machine_id")


@dataclass(frozen=True, slots=True)
class MasterColumn:
    """One column.

    Attributes:
        unit: of a number; "1" for counts and shares, "unit" for that of the row's column ``unit``, "" for what has
            none.
        default: what an empty cell stands for, as it is written in a file; None: no value.
        choices: the texts that it takes; none: any.
        is_remark: no figure depends on it.
        is_generated: given by the database; no file has it.
        is_filled_in: an empty cell keeps what is stored; in a new row the import fills it in.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    nullable: bool = False
    default: str | None = None
    choices: tuple[str, ...] = ()
    is_remark: bool = False
    is_generated: bool = False
    is_filled_in: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """Something that every row fulfils.

    Attributes:
        words: what a file takes, as the end of a sentence.
        column: where an error points to.
        holds: whether a row fulfils it; its columns are typed, and None where they have no value.
    """

    words: str
    column: str
    holds: Callable[[Row], bool]


@dataclass(frozen=True, kw_only=True)
class MasterTable:
    """One table of master data.

    Attributes:
        name: of its file; the table is ``analytics_`` and this.
        description: what one row says.
        target: columns; rows with the same values are about the same thing.
        scope: the names by which it is found whose figures a row is about.
        stale: the assets that read it, and which an edit makes stale.
        checks: what every row fulfils beside the types of its columns.
    """

    name: str
    description: str
    columns: tuple[MasterColumn, ...]
    target: tuple[str, ...]
    holds: Holds
    scope: tuple[str, ...] = ()
    stale: tuple[DerivedName, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def table_name(self) -> str:
        return f"analytics_{self.name}"

    @cached_property
    def by_name(self) -> Mapping[str, MasterColumn]:
        return {column.name: column for column in self.columns}

    @cached_property
    def in_files(self) -> tuple[MasterColumn, ...]:
        """The columns that files have, in their order."""
        return tuple(column for column in self.columns if not column.is_generated)

    @cached_property
    def key(self) -> tuple[str, ...]:
        """What no two rows have in common."""
        return (*self.target, "valid_from") if self.holds == "from" else self.target

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.is_remark)

    def key_of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.key)


# ---------------------------------------------------------------------- columns that many tables have

NOTE = MasterColumn("note", "text", "", "for people; no figure depends on it", nullable=True, is_remark=True)
VALID_FROM = MasterColumn(
    "valid_from", "moment", "", "from when on the row holds; empty: since ever", default="-infinity"
)
BEGINS_AT = MasterColumn("begins_at", "moment", "", "from when on the row holds")
ENDS_AT = MasterColumn("ends_at", "moment", "", "until when it holds, exclusive")
TENANT = MasterColumn("tenant_id", "text", "", "tenant; empty: any", nullable=True)
FACTORY = MasterColumn("factory_id", "text", "", "factory; empty: any", nullable=True)
MACHINE = MasterColumn("machine_id", "text", "", "machine; empty: any", nullable=True)
SENSOR = MasterColumn("sensor_id", "text", "", "sensor; empty: any", nullable=True)
METRIC = MasterColumn("metric", "text", "", "metric of the series")
ONE_FACTORY = MasterColumn("factory_id", "text", "", "factory")
ONE_MACHINE = MasterColumn("machine_id", "text", "", "machine")
SERIES_COLUMNS = (TENANT, FACTORY, MACHINE, SENSOR, METRIC)

BEGINS_BEFORE_ENDS = Check("a moment after begins_at", "ends_at", lambda row: row["begins_at"] < row["ends_at"])


def is_above_zero(column: str) -> Check:
    return Check("a number above 0", column, lambda row: row[column] is None or row[column] > 0)
