"""Files of master data: CSV in, typed rows with their lines out, and back. Pure.

A file has the name of its table, a header, and one row per line. Every problem is told with file, line, column, the
value and what is taken; a file with one is not taken at all.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analytics_pipeline.master_data import cells
from analytics_pipeline.master_data.spec import MasterColumn, MasterTable, Row
from analytics_pipeline.master_data.units import UnitConversionError, conversion

_TO_QUOTE = re.compile(r'[",\r\n]')
#: Longer cells are told shortened.
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one cell, or, without a column, with a line."""

    file: str
    line: int
    column: str
    value: str
    takes: str

    def __str__(self) -> str:
        shown = self.value if len(self.value) <= _SHOWN else f"{self.value[:_SHOWN]}…"
        where = f"{self.file}, line {self.line}" + (f", column {self.column}" if self.column else "")
        return f"{where}: got {shown!r}, takes {self.takes}"


@dataclass(frozen=True, slots=True)
class Placed:
    """A row and where it stands; without a file it is stored, and in no file."""

    table: MasterTable
    row: Row
    file: str = ""
    line: int = 0

    def problem(self, column: str, takes: str) -> Problem:
        value = cells.write(self.table.by_name[column], self.row[column]) if column else ""
        return Problem(self.file, self.line, column, value, takes)


def parse(table: MasterTable, file: str, text: str) -> tuple[list[Placed], list[Problem]]:
    """The rows of a file, and what is wrong with it."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    placed: list[Placed] = []
    problems: list[Problem] = []
    try:
        header = next(reader, [])
        problems += _header_problems(table, file, header)
        for line_cells in reader if not problems else ():
            if line_cells:
                line = reader.line_num
                row, wrong = _row(table, file, line, dict(zip(header, line_cells, strict=False)))
                if len(line_cells) != len(header):
                    wrong = [Problem(file, line, "", ",".join(line_cells), f"{len(header)} cells, as the header has")]
                problems += wrong
                if not wrong:
                    placed.append(Placed(table, row, file, line))
    except csv.Error as error:
        problems.append(Problem(file, reader.line_num, "", "", f"comma-separated values: {error}"))
    return placed, problems + _told_twice(table, placed)


def _header_problems(table: MasterTable, file: str, header: Sequence[str]) -> list[Problem]:
    names = [column.name for column in table.in_files]
    takes = f"the columns {', '.join(names)}, separated by commas"
    wrong = [name for at, name in enumerate(header) if name not in names or name in header[:at]]
    if wrong:
        return [Problem(file, 1, "", name, takes) for name in wrong]
    missing = [column.name for column in table.in_files if column.name not in header and _is_required(column)]
    return [Problem(file, 1, "", ",".join(header), f"also a column {name}") for name in missing]


def _is_required(column: MasterColumn) -> bool:
    return not column.nullable and column.default is None and not column.is_filled_in


def _row(table: MasterTable, file: str, line: int, texts: dict[str, str]) -> tuple[Row, list[Problem]]:
    row: dict[str, Any] = {}
    problems = []
    for column in table.in_files:
        text = texts.get(column.name) or column.default
        try:
            if text is None and _is_required(column):
                raise cells.CellError("a value")
            row[column.name] = None if text is None else cells.parse(column, text)
        except cells.CellError as error:
            problems.append(Problem(file, line, column.name, texts.get(column.name, ""), str(error)))
    if problems:
        return row, problems
    if table.name == "units":
        problems = _by_names(Placed(table, row, file, line), row)
    return row, problems or check_row(Placed(table, row, file, line))


def _by_names(placed: Placed, row: dict[str, Any]) -> list[Problem]:
    """Fills in the factor that the names of two units say, unless the file says one."""
    if row["factor"] is not None:
        row["shift"] = row["shift"] or 0.0
        return []
    try:
        row["factor"], shift = conversion(row["unit"], row["canonical_unit"])
    except UnitConversionError as error:
        return [placed.problem("factor", f"a number: {error}")]
    row["shift"] = shift if row["shift"] is None else row["shift"]
    return []


def check_row(placed: Placed) -> list[Problem]:
    """What a row does not fulfil of what its table declares."""
    return [placed.problem(one.column, one.words) for one in placed.table.checks if not one.holds(placed.row)]


def _told_twice(table: MasterTable, rows: Iterable[Placed]) -> list[Problem]:
    lines: dict[tuple[Any, ...], int] = {}
    problems = []
    for one in rows:
        first = lines.setdefault(table.key_of(one.row), one.line)
        if first != one.line:
            takes = f"one row for each {', '.join(table.key)}: line {first} is about the same"
            problems.append(one.problem(table.key[-1], takes))
    return problems


def text_of(table: MasterTable, rows: Iterable[Row]) -> str:
    """Rows as a file, header first."""
    lines = [[column.name for column in table.in_files]]
    lines += [[cells.write(column, row[column.name]) for column in table.in_files] for row in rows]
    return "".join(",".join(map(_quoted, line)) + "\n" for line in lines)


def _quoted(cell: str) -> str:
    # csv.writer leaves a carriage return alone, and csv.reader then takes it for the end of the line.
    return '"' + cell.replace('"', '""') + '"' if _TO_QUOTE.search(cell) else cell
