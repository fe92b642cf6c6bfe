"""What holds between rows of master data, and with the windows: checked before an import. Pure.

Each check takes all rows as they would be afterwards, and tells problems of rows that stand in files: what was stored
before is not the import's fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from analytics_pipeline.master_data.rows import Placed, Problem

#: By name of the table, its rows afterwards.
Rows = Mapping[str, Sequence[Placed]]

_WEEK = timedelta(days=7)
_DAY = timedelta(days=1)
#: Any Monday: a normal week is laid out from here.
_MONDAY = datetime(2001, 1, 1)  # noqa: DTZ001 - a wall time of no zone
_EVER = datetime.min.replace(tzinfo=UTC)
_WALL_TIMES = {"shifts": ("begins", "ends"), "shift_exceptions": ("begins", "ends"), "factories": ("day_start",)}


def problems(rows: Rows, base_window_s: int) -> list[Problem]:
    """What does not hold, in the order of files and lines.

    Args:
        base_window_s: windows that figures are made of; periods begin and end with one.
    """
    found = [one for check in _CHECKS for one in check(rows) if one.file]
    found += [one for one in _edges(rows, base_window_s) if one.file]
    return sorted(found, key=lambda one: (one.file, one.line))


def _edges(rows: Rows, base_s: int) -> Iterator[Problem]:
    takes = f"a time on the edge of a window of {base_s} s"
    for name, columns in _WALL_TIMES.items():
        for one in rows.get(name, ()):
            for column in columns:
                value = one.row[column]
                if value is not None and _seconds(value) % base_s:
                    yield one.problem(column, takes)
    for one in rows.get("planned_stops", ()):
        for column in ("begins_at", "ends_at"):
            if one.row[column].timestamp() % base_s:
                yield one.problem(column, takes)
    for one in rows.get("factories", ()):
        if any(_offset_s(one.row["zone"], month) % base_s for month in range(1, 13)):
            yield one.problem("zone", f"a zone whose hours begin with a window of {base_s} s")


def _seconds(wall: time) -> int:
    return wall.hour * 3600 + wall.minute * 60 + wall.second


def _offset_s(zone: str, month: int) -> int:
    offset = datetime(2026, month, 1, tzinfo=ZoneInfo(zone)).utcoffset()
    return int((offset or timedelta()).total_seconds())


# ---------------------------------------------------------------------- what refers to another row


def _units(rows: Rows) -> Iterator[Problem]:
    canonical: dict[str, str] = {}
    known: set[tuple[str, str]] = set()
    for one in sorted(rows.get("units", ()), key=lambda one: one.line):
        metric, unit, its = (one.row[name] for name in ("metric", "unit", "canonical_unit"))
        known |= {(metric, unit), (metric, its)}
        if canonical.setdefault(metric, its) != its:
            yield one.problem("canonical_unit", f"{canonical[metric]}, as the other rows of {metric}")
    for name in ("spec_limits", "control_limits"):
        for one in rows.get(name, ()):
            metric, unit = one.row["metric"], one.row["unit"]
            if unit is not None and metric in canonical and (metric, unit) not in known:
                takes = ", ".join(sorted(its for of, its in known if of == metric))
                yield one.problem("unit", f"a unit of {metric} that units declares: {takes}")


def _reasons(rows: Rows) -> Iterator[Problem]:
    reasons = {one.row["reason"] for one in rows.get("stop_reasons", ())}
    for one in rows.get("stop_assignments", ()):
        if one.row["reason"] not in reasons:
            yield one.problem("reason", "a reason of stop_reasons")


def _in_force(rows: Sequence[Placed], name: str) -> Iterator[dict[str, Placed]]:
    """The rows in force from each moment on at which one begins, by a column."""
    ordered = sorted(rows, key=_begin)
    now: dict[str, Placed] = {}
    for at, one in enumerate(ordered):
        now[one.row[name]] = one
        if at + 1 == len(ordered) or _begin(ordered[at + 1]) != _begin(one):
            yield now


def _begin(one: Placed) -> datetime:
    begin: datetime | None = one.row["valid_from"]
    return _EVER if begin is None else begin


def _by_factory(rows: Sequence[Placed]) -> dict[tuple[Any, Any], list[Placed]]:
    found: dict[tuple[Any, Any], list[Placed]] = {}
    for one in rows:
        found.setdefault((one.row["tenant_id"], one.row["factory_id"]), []).append(one)
    return found


# ---------------------------------------------------------------------- equipment


def _equipment(rows: Rows) -> Iterator[Problem]:
    told: set[Problem] = set()
    for its in _by_factory(rows.get("equipment", ())).values():
        for by_name in _in_force(its, "equipment_id"):
            for problem in (*_parents(by_name), *_roles(by_name)):
                if problem not in told:
                    told.add(problem)
                    yield problem


def _parents(by_name: Mapping[str, Placed]) -> Iterator[Problem]:
    for name, one in by_name.items():
        above, parent = [name], one.row["parent_id"]
        if parent is not None and (parent not in by_name or by_name[parent].row["kind"] != "line"):
            yield one.problem("parent_id", "a line of the factory that there is by then")
        while parent in by_name and parent not in above:
            above.append(parent)
            parent = by_name[parent].row["parent_id"]
        if parent == name:
            yield one.problem("parent_id", f"a line that is not in itself: {' in '.join([*above, name])}")


def _roles(by_name: Mapping[str, Placed]) -> Iterator[Problem]:
    """A line has at most one machine whose pieces are its own, and one whose times are."""
    for role in ("counting", "bottleneck"):
        first: dict[str, str] = {}
        for name, one in sorted(by_name.items(), key=lambda item: item[1].line):
            if one.row["role"] in (role, "both") and one.row["parent_id"] is not None:
                other = first.setdefault(one.row["parent_id"], name)
                if other != name:
                    yield one.problem("role", f"another role: {other} is {role} in {one.row['parent_id']}")


# ---------------------------------------------------------------------- spans of time that must not overlap

_Span = tuple[datetime, datetime, Placed]


def _stops(rows: Rows) -> Iterator[Problem]:
    machines: dict[tuple[Any, ...], list[_Span]] = {}
    for one in rows.get("stop_assignments", ()):
        machine = tuple(one.row[name] for name in ("tenant_id", "factory_id", "machine_id"))
        machines.setdefault(machine, []).append((one.row["begins_at"], one.row["ends_at"], one))
    for spans in machines.values():
        yield from _overlaps(spans, "begins_at", lambda one: f"the stop from {one.row['begins_at']:%Y-%m-%dT%H:%M:%SZ}")


def _overlaps(spans: Sequence[_Span], column: str, named: Callable[[Placed], str]) -> Iterator[Problem]:
    """Problems of rows whose span overlaps another one's; of two, that one which stands in a file, further down."""
    for (_, ends, one), (begins, _, other) in pairwise(sorted(spans, key=lambda span: span[:2])):
        if begins < ends and one is not other:
            first, second = sorted((one, other), key=_blame)
            yield second.problem(column, f"a span that does not overlap {named(first)}")


def _blame(row: Placed) -> tuple[bool, bool, int]:
    return bool(row.file), row.table.name == "shift_exceptions", row.line


def _shifts(rows: Rows) -> Iterator[Problem]:
    told: set[Problem] = set()
    for its in _by_factory(rows.get("shifts", ())).values():
        for now in _in_force(its, "shift"):
            for problem in _overlaps(_week(list(now.values())), "begins", _shift):
                if problem not in told:
                    told.add(problem)
                    yield problem


def _week(shifts: Sequence[Placed]) -> list[_Span]:
    """The shifts of a normal week, and of its last day again before it, which may reach into it."""
    spans = []
    for one in shifts:
        for day in one.row["weekdays"] if one.row["weekdays"] != "none" else "":
            begins, ends = _on(_MONDAY.date() + (int(day) - 1) * _DAY, one.row["begins"], one.row["ends"])
            spans += [(begins, ends, one), (begins - _WEEK, ends - _WEEK, one)]
    return spans


def _on(day: date, begins: time, ends: time) -> tuple[datetime, datetime]:
    begin = datetime.combine(day, begins)
    end = datetime.combine(day, ends)
    return begin, end if end > begin else end + _DAY


def _shift(one: Placed) -> str:
    return f"{one.row['shift']}, {one.row['begins']:%H:%M} to {one.row['ends']:%H:%M}"


def _exceptions(rows: Rows) -> Iterator[Problem]:
    """On the days around an exception, the shifts that remain do not overlap."""
    shifts = _by_factory(rows.get("shifts", ()))
    for factory, exceptions in _by_factory(rows.get("shift_exceptions", ())).items():
        by_day: dict[date, dict[str, Placed]] = {}
        for one in exceptions:
            by_day.setdefault(one.row["on_date"], {})[one.row["shift"]] = one
        told: set[Problem] = set()
        for day in by_day:
            around = [
                span
                for on in (day - _DAY, day, day + _DAY)
                for span in _day(on, shifts.get(factory, []), by_day.get(on, {}))
            ]
            for problem in _overlaps(around, "begins", _shift):
                if problem not in told:
                    told.add(problem)
                    yield problem


def _day(day: date, shifts: Sequence[Placed], exceptions: Mapping[str, Placed]) -> list[_Span]:
    """The shifts that begin on a day: those of the week as it is then, but for the exceptions."""
    until = datetime.combine(day, time(12), UTC)
    of_week: dict[str, Placed] = {}
    for one in sorted(shifts, key=_begin):
        if _begin(one) <= until:
            of_week[one.row["shift"]] = one
    of_day = {name: one for name, one in of_week.items() if str(day.isoweekday()) in one.row["weekdays"]}
    held = [one for one in {**of_day, **exceptions}.values() if one.row["begins"] is not None]
    return [(*_on(day, one.row["begins"], one.row["ends"]), one) for one in held]


_CHECKS: Sequence[Callable[[Rows], Iterator[Problem]]] = (_units, _reasons, _equipment, _stops, _shifts, _exceptions)

#: What the checks look at beside the tables of an import.
LOOKED_AT = ("units", "stop_reasons", "shifts")
