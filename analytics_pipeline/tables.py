"""What a stored table is: columns with type, unit and meaning; key; time. Pure: no SQL, no rows.

``sql/`` holds the DDL that people read; a test holds it and these specs to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import polars as pl

PgType = Literal["bool", "int2", "int4", "int8", "float8", "timestamptz", "text", "bytea"]

_POLARS: Mapping[PgType, Any] = {
    "bool": pl.Boolean(),
    "int2": pl.Int16(),
    "int4": pl.Int32(),
    "int8": pl.Int64(),
    "float8": pl.Float64(),
    "timestamptz": pl.Int64(),
    "text": pl.String(),
    "bytea": pl.Binary(),
}
FIXED: tuple[PgType, ...] = ("bool", "int2", "int4", "int8", "float8", "timestamptz")


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        unit: of a number; "1" for counts and shares, "value" for the unit of the series, "" for what has none.
    """

    name: str
    type: PgType
    unit: str
    description: str
    nullable: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether each value has the same width, and there always is one."""
        return self.type in FIXED and not self.nullable

    @property
    def frame_name(self) -> str:
        """In frames, times are integers: microseconds since the Unix epoch, in columns that end in ``_us``."""
        return f"{self.name}_us" if self.type == "timestamptz" else self.name


def schema_of(columns: Sequence[Column]) -> dict[str, Any]:
    """The polars schema of frames of these columns."""
    return {column.frame_name: _POLARS[column.type] for column in columns}


@dataclass(frozen=True)
class TableSpec:
    """One stored table.

    Attributes:
        description: what one row is.
        key: the columns that identify a row, led by the domain's number.
        time_column: by which rows belong to an hour.
        bookkeeping: columns that the database or a write fills in; they do not count when rows are compared.
        counted: whether its rows are content of its domain partition; not those that only say which others are.
        touched_sql: what a changed row gets beside its figures, as the end of a SET clause.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    time_column: str
    bookkeeping: tuple[Column, ...] = ()
    touched_sql: str = ""
    counted: bool = True

    @cached_property
    def by_name(self) -> Mapping[str, Column]:
        return {column.name: column for column in (*self.columns, *self.bookkeeping)}

    @cached_property
    def frame_key(self) -> tuple[str, ...]:
        return tuple(self.by_name[name].frame_name for name in self.key)

    @property
    def frame_time(self) -> str:
        return self.by_name[self.time_column].frame_name

    def subset(self, names: Sequence[str] | None) -> tuple[Column, ...]:
        """The columns with these names, in their order; None: all but those of bookkeeping."""
        return self.columns if names is None else tuple(self.by_name[name] for name in names)

    def schema(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """The polars schema of frames of some columns."""
        return schema_of(self.subset(names))

    def empty(self, names: Sequence[str] | None = None) -> pl.DataFrame:
        return pl.DataFrame(schema=self.schema(names))
