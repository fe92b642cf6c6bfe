"""Plans of the statements that a pipeline sends, as they are sent. Not here: assertions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from psycopg2.extensions import cursor as Cursor
from sqlalchemy import Engine, event

_COPIED = re.compile(r"^\s*COPY\s*\((.*)\)\s*TO\s", re.DOTALL | re.IGNORECASE)
_PLANNED = re.compile(r"^\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH)\b", re.IGNORECASE)
#: What reads rows of a table.
_SCANS = {"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Sample Scan", "Tid Scan"}


@dataclass(frozen=True)
class Scan:
    """One place of a plan where rows of a table are read, and by which condition on which index (empty: none)."""

    table: str
    node: str
    by: str
    statement: str
    index: str = ""


@dataclass
class Plans:
    """Every scan of every statement."""

    scans: list[Scan] = field(default_factory=list)

    def add(self, statement: str, plan: dict[str, Any]) -> None:
        if plan["Node Type"] in _SCANS:
            index = plan.get("Index Name", "")
            self.scans.append(Scan(plan["Relation Name"], plan["Node Type"], _condition(plan), statement, index))
        for child in plan.get("Plans", ()):
            self.add(statement, child)


def _condition(plan: dict[str, Any]) -> str:
    """The conditions on indexes at a scan, those of a bitmap's parts included."""
    parts = [plan.get("Index Cond", "")] + [_condition(child) for child in plan.get("Plans", ())]
    return " ".join(part for part in parts if part)


@contextmanager
def explained(engine: Engine) -> Iterator[Plans]:
    """Collects the plans of what goes over the engine's new connections meanwhile, made right before each statement."""
    plans = Plans()

    class Explaining(Cursor):
        def execute(self, query: Any, vars: Any = None) -> None:
            text = self.mogrify(query, vars).decode()
            if _PLANNED.match(text):
                self._explain(text)
            super().execute(query, vars)

        def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
            if found := _COPIED.match(sql):
                self._explain(found[1])
            super().copy_expert(sql, file, size)

        def _explain(self, text: str) -> None:
            super().execute("EXPLAIN (FORMAT JSON) " + text)
            (found,) = self.fetchone()
            plans.add(" ".join(text.split()), (found if isinstance(found, list) else json.loads(found))[0]["Plan"])

    def explain(driver: Any, _record: Any, _proxy: Any) -> None:
        driver.cursor_factory = Explaining

    def stop(driver: Any, _record: Any) -> None:
        driver.cursor_factory = None

    event.listen(engine, "checkout", explain)
    event.listen(engine, "checkin", stop)
    try:
        yield plans
    finally:
        event.remove(engine, "checkout", explain)
        event.remove(engine, "checkin", stop)
