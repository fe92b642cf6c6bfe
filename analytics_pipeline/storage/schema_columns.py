"""Columns of the stored tables as ``sql/`` declares them, for catalogues. Reads the files; asks no server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from analytics_pipeline.storage.migrate import sql_files

_TABLE = re.compile(r"^CREATE TABLE IF NOT EXISTS (\w+) \(\n(.*?)^\);", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(
    r'^ {4}(?P<name>"?[a-z_0-9]+"?) +(?P<type>[a-z][a-z ]*?(?:\[\])?)'
    r"(?= COLLATE| NOT NULL| DEFAULT| PRIMARY| REFERENCES| GENERATED| CHECK|,|\s*$|\s+--)(?P<rest>.*)$"
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``description`` is the comment that stands beside it in the SQL, or empty."""

    name: str
    type: str
    nullable: bool
    description: str


@lru_cache(maxsize=1)
def columns_by_table() -> Mapping[str, tuple[Column, ...]]:
    """The columns of every table that ``sql/`` creates, in order."""
    return {
        table: tuple(_columns(body.splitlines()))
        for file in sql_files()
        for table, body in _TABLE.findall(file.text)
    }


def _columns(lines: Iterable[str]) -> Iterable[Column]:
    for line in lines:
        match = _COLUMN.match(line)
        if match is None:
            continue  # a key, a check, or a comment of its own
        declaration, _, comment = match["rest"].partition("--")
        yield Column(
            name=match["name"].strip('"'),
            type=match["type"].strip(),
            nullable="NOT NULL" not in declaration and "PRIMARY KEY" not in declaration,
            description=comment.strip(),
        )
