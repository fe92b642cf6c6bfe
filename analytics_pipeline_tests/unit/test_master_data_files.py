"""Files of master data: what they take, what is told of what they do not, and that what is written is read again."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_pipeline.master_data import checks
from analytics_pipeline.master_data.catalog import BY_NAME, MASTER_TABLES
from analytics_pipeline.master_data.changes import changes_of
from analytics_pipeline.master_data.rows import Placed, parse, text_of
from analytics_pipeline.master_data.spec import MasterColumn, MasterTable

BASE_S = 60
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(9999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXTS,
    "number": NUMBERS,
    "whole number": st.integers(-(1 << 63), (1 << 63) - 1),
    "yes or no": st.booleans(),
    "moment": MOMENTS,
    "date": st.dates(date(1970, 1, 1), date(9999, 12, 31)),
    "wall time": st.times().map(lambda value: value.replace(microsecond=0)),
    "zone": st.sampled_from(["Europe/Berlin", "Asia/Kolkata", "UTC"]),
    "JSON object": st.dictionaries(TEXTS, NUMBERS | TEXTS | st.booleans() | st.none(), max_size=3),
}


def read(name: str, *lines: str) -> tuple[list[Placed], list[str]]:
    """The rows of a file, and what is told of it."""
    placed, problems = parse(BY_NAME[name], f"{name}.csv", "\n".join(lines) + "\n")
    return placed, [str(one) for one in problems]


def together(**files: list[str]) -> list[str]:
    """What is told of rows that are right by themselves."""
    rows = {}
    for name, lines in files.items():
        rows[name], problems = read(name, *lines)
        assert not problems
    return [str(one) for one in checks.problems(rows, BASE_S)]


def a_row(table: MasterTable) -> st.SearchStrategy[dict[str, Any]]:
    def value(column: MasterColumn) -> st.SearchStrategy[Any]:
        values = st.sampled_from(column.choices) if column.choices else VALUES[column.kind]
        may_be_none = column.nullable or column.is_filled_in or column.default == "-infinity"
        return values | st.none() if may_be_none else values

    return st.fixed_dictionaries({column.name: value(column) for column in table.in_files})


# ---------------------------------------------------------------------- written and read again


@pytest.mark.parametrize("table", MASTER_TABLES, ids=lambda table: table.name)
def test_what_is_written_is_read_again(table: MasterTable) -> None:
    @settings(max_examples=30, deadline=None)
    @given(a_row(table))
    def holds(row: dict[str, Any]) -> None:
        if not all(check.holds(row) for check in table.checks if table.name != "units"):
            return
        if table.name == "units":
            row |= {"factor": 2.0, "shift": 0.5, "unit": "a", "canonical_unit": "b"}
        if "weekdays" in row:
            row |= {"weekdays": "135"}
        placed, problems = parse(table, "x.csv", text_of(table, [row]))
        assert not problems
        assert [one.row for one in placed] == [row]
        assert not changes_of(table, [row], [one.row for one in placed], {}, prune=True)

    holds()


def test_columns_may_stand_in_any_order_and_those_without_values_may_be_missing() -> None:
    placed, problems = read("calibration", "gain,metric,sensor_id", "1.5,temp,s-1")
    assert not problems
    assert placed[0].row == {
        "tenant_id": None, "factory_id": None, "machine_id": None, "sensor_id": "s-1", "metric": "temp",
        "gain": 1.5, "offset": 0.0, "valid_from": None, "note": None,
    }  # fmt: skip


def test_a_file_as_spreadsheets_write_it_is_read() -> None:
    text = '\ufeffmetric,sensor_id,note\r\n"temp","s,1","two\nlines"\r\n\r\ntemp,s-2,\r\n'
    placed, problems = parse(BY_NAME["calibration"], "calibration.csv", text)
    assert not problems
    assert [(one.line, one.row["sensor_id"], one.row["note"]) for one in placed] == [
        (3, "s,1", "two\nlines"),
        (5, "s-2", None),
    ]


# ---------------------------------------------------------------------- what is told of a cell


@pytest.mark.parametrize(
    ("table", "header", "line", "told"),
    [
        ("calibration", "metric,sensor_id,gain", "temp,s,much", "line 2, column gain: got 'much', takes a number"),
        ("calibration", "metric,sensor_id,gain", "temp,s,nan", "line 2, column gain: got 'nan', takes a number"),
        ("calibration", "metric,sensor_id,gain", "temp,s,1_0", "line 2, column gain: got '1_0', takes a number"),
        ("calibration", "metric,sensor_id,gain", "temp,s,0", "column gain: got '0.0', takes a number other than 0"),
        ("calibration", "metric,gain", "temp,2", "column sensor_id: got '', takes a sensor, unless machine_id"),
        ("calibration", "metric,sensor_id,gain", ",s,2", "line 2, column metric: got '', takes a value"),
        ("calibration", "metric,sensor_id,valid_from", "temp,s,2026-01-01T10:00", "takes a moment from 1970 on with"),
        ("calibration", "metric,sensor_id,valid_from", "temp,s,1969-01-01T10:00Z", "takes a moment from 1970 on with"),
        ("calibration", "metric,sensor_id", "temp,s,2", "line 2: got 'temp,s,2', takes 2 cells, as the header has"),
        ("calibration", "metric,sensor", "temp,s", "line 1: got 'sensor', takes the columns tenant_id, "),
        ("calibration", "metric,metric", "temp,s", "line 1: got 'metric', takes the columns"),
        ("calibration", "sensor_id", "s", "line 1: got 'sensor_id', takes also a column metric"),
        ("calibration", "metric;sensor_id", "temp;s", "separated by commas"),
        ("calibration", "metric,sensor_id", 'temp,"s', "comma-separated values: unexpected end of data"),
        ("spec_limits", "metric,lsl,usl", "temp,5,5", "line 2, column usl: got '5.0', takes a number above lsl"),
        ("spec_limits", "metric", "temp", "column lsl: got '', takes a number, unless usl has one"),
        ("spec_limits", "metric,lsl,spec_id", "temp,5,1", "line 1: got 'spec_id', takes the columns"),
        ("factories", "factory_id,zone", "f,Europe/Atlantis", "column zone: got 'Europe/Atlantis', takes the name of"),
        ("factories", "factory_id,zone,day_start", "f,UTC,24:00", "column day_start: got '24:00', takes a time of day"),
        ("equipment", "factory_id,equipment_id,kind", "f,m,robot", "column kind: got 'robot', takes one of mach"),
        ("equipment", "factory_id,equipment_id,kind,role", "f,m,machine,counting", "takes plain, for a machine in no"),
        ("equipment", "factory_id,equipment_id,kind,parent_id", "f,m,machine,m", "takes another name than"),
        ("shifts", "factory_id,shift,weekdays,begins,ends", "f,a,17x,06:00,14:00", "takes days from 1 to 7 in their"),
        ("shifts", "factory_id,shift,weekdays,begins,ends", "f,a,1,6:00,14:00", "column begins: got '6:00', takes"),
        ("shift_exceptions", "factory_id,shift,on_date,begins", "f,a,2026-01-01,06:00", "takes a time if begins"),
        ("shift_exceptions", "factory_id,shift,on_date", "f,a,2026-02-30", "column on_date: got '2026-02-30', takes a"),
        ("planned_time", "product_id,pri_s", "p,0", "column pri_s: got '0.0', takes a number above 0"),
        ("counter_limits", "metric,modulus", "count,1e6", "column modulus: got '1e6', takes a whole number"),
        ("counter_limits", "metric", "count", "column modulus: got '', takes a number, unless max_rate has one"),
        ("detector_settings", "metric,detector,enabled", "temp,stuck,maybe", "got 'maybe', takes yes or no"),
        ("detector_settings", "metric,detector,parameters", "temp,stuck,[1]", "takes an object in JSON"),
        ("detector_settings", "metric,detector,parameters", 'temp,stuck,"{""a"": NaN}"', "takes an object in JSON"),
        ("units", "metric,unit,canonical_unit", "count,pieces,kg", "column factor: got '', takes a number: 'pieces'"),
        ("units", "metric,unit,canonical_unit,factor", "temp,K,°C,-1", "column factor: got '-1.0', takes a number"),
        ("units", "metric,unit,canonical_unit,factor", "temp,°C,°C,2", "takes 1, and a shift of 0, for the canonical"),
    ],
)  # fmt: skip
def test_a_wrong_cell_is_told_with_line_column_value_and_what_is_taken(
    table: str, header: str, line: str, told: str
) -> None:
    placed, problems = read(table, header, line)
    assert not placed
    assert len(problems) == 1
    assert problems[0].startswith(f"{table}.csv, line ")
    assert told in problems[0]


def test_every_problem_is_told_not_only_the_first() -> None:
    _, problems = read("calibration", "metric,sensor_id,gain,offset", "temp,s,a,b", "temp,t,1,1", ",u,1,1")
    assert [one.split(":")[0] for one in problems] == [
        "calibration.csv, line 2, column gain",
        "calibration.csv, line 2, column offset",
        "calibration.csv, line 4, column metric",
    ]


def test_two_rows_about_the_same_are_told() -> None:
    header = "metric,sensor_id,gain,valid_from"
    _, problems = read("calibration", header, "temp,s,1,", "temp,s,2,2026-01-01T00:00Z", "temp,s,3,")
    assert len(problems) == 1
    assert problems[0].startswith("calibration.csv, line 4, column valid_from")
    assert problems[0].endswith("line 2 is about the same")


def test_units_fill_in_the_factor_that_their_names_say() -> None:
    placed, problems = read("units", "metric,unit,canonical_unit", "temp,°F,°C", "temp,°C,°C")
    assert not problems
    assert [(one.row["factor"], one.row["shift"]) for one in placed] == [(5 / 9, -160 / 9), (1.0, 0.0)]


# ---------------------------------------------------------------------- what holds between rows

SHIFT = "factory_id,shift,weekdays,begins,ends,valid_from"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["f,early,12345,06:00,14:00,", "f,late,12345,14:00,22:00,", "f,night,12345,22:00,06:00,"], None),
        (["f,early,12345,06:00,14:00,", "f,late,12345,13:00,22:00,"], "line 3, column begins: got '13:00', takes a"),
        (["f,early,12345,06:00,14:00,", "g,late,12345,13:00,22:00,"], None),
        (["f,early,12345,06:00,14:00,", "f,late,67,13:00,22:00,"], None),
        (["f,night,7,22:00,07:00,", "f,early,1,06:00,14:00,"], "line 3, column begins"),  # from Sunday into Monday
        (["f,a,1,06:00,06:00,", "f,b,2,06:00,06:00,"], None),  # a day long
        (["f,a,1,06:00,06:00,", "f,b,2,05:00,06:00,"], "line 3"),
        (["f,a,1,06:00,14:00,", "f,b,1,10:00,18:00,2026-01-01T00:00Z"], "line 3"),
        (
            ["f,a,1,06:00,14:00,", "f,a,none,06:00,14:00,2026-01-01T00:00Z", "f,b,1,10:00,18:00,2026-01-01T00:00Z"],
            None,
        ),
        (["f,a,1,06:00:30,14:00,"], "line 2, column begins: got '06:00:30', takes a time on the edge"),
    ],
)  # fmt: skip
def test_shifts_neither_overlap_nor_divide_a_window(lines: list[str], told: str | None) -> None:
    problems = together(shifts=[SHIFT, *lines])
    assert (told is None and not problems) or (len(problems) == 1 and told is not None and told in problems[0])


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["f,late,2026-01-05,,"], None),  # a Monday without its late shift
        (["f,late,2026-01-05,12:00,20:00"], "line 2, column begins"),
        (["f,late,2026-01-05,12:00,20:00", "f,early,2026-01-05,06:00,12:00"], None),
        (["f,extra,2026-01-10,08:00,12:00"], None),  # a Saturday
        (["f,extra,2026-01-04,22:00,07:00"], "line 2, column begins"),  # from Sunday into Monday's early shift
    ],
)
def test_exceptions_do_not_overlap_what_remains_of_the_week(lines: list[str], told: str | None) -> None:
    week = [SHIFT, "f,early,12345,06:00,14:00,", "f,late,12345,14:00,22:00,"]
    problems = together(shifts=week, shift_exceptions=["factory_id,shift,on_date,begins,ends", *lines])
    wanted = [] if told is None else [told]
    of_exceptions = [one for one in problems if one.startswith("shift_exceptions.csv")]
    assert len(of_exceptions) == len(problems) == len(wanted)
    assert all(part in one for part, one in zip(wanted, problems, strict=True))


EQUIPMENT = "factory_id,equipment_id,kind,parent_id,role,valid_from"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["f,l-1,line,,,", "f,m-1,machine,l-1,counting,", "f,m-2,machine,l-1,bottleneck,"], []),
        (["f,m-1,machine,l-1,,"], ["line 2, column parent_id: got 'l-1', takes a line of the factory"]),
        (["f,l-1,line,,,2026-01-01T00:00Z", "f,m-1,machine,l-1,,"], ["line 3, column parent_id"]),
        (["f,m-1,machine,,,", "f,m-2,machine,m-1,,"], ["line 3, column parent_id: got 'm-1', takes a line"]),
        (["f,a,line,b,,", "f,b,line,a,,"], ["not in itself: a in b in a", "not in itself: b in a in b"]),
        (["f,a,line,,,", "f,b,line,a,,", "f,a,line,b,,2026-01-01T00:00Z"], ["in itself: b in a", "in itself: a in b"]),
        (["f,a,line,,,", "f,m,machine,a,both,", "f,n,machine,a,counting,"], ["line 4, column role: got 'counting'"]),
        (["f,a,line,,,", "g,m,machine,a,,"], ["line 3, column parent_id"]),
    ],
)
def test_equipment_stands_in_lines_and_in_no_circle(lines: list[str], told: list[str]) -> None:
    problems = together(equipment=[EQUIPMENT, *lines])
    assert len(problems) == len(told)
    assert all(part in one for part, one in zip(told, problems, strict=True)), problems


def test_a_stop_is_split_into_parts_that_do_not_overlap_for_known_reasons() -> None:
    header = "machine_id,begins_at,ends_at,reason"
    problems = together(
        stop_reasons=["reason", "jam", "cleaning"],
        stop_assignments=[
            header,
            "m-1,2026-01-01T10:00:07Z,2026-01-01T10:20:00Z,jam",
            "m-1,2026-01-01T10:20:00Z,2026-01-01T10:30:00Z,cleaning",
            "m-1,2026-01-01T10:25:00Z,2026-01-01T10:40:00Z,jam",
            "m-2,2026-01-01T10:25:00Z,2026-01-01T10:40:00Z,lunch",
        ],
    )
    assert len(problems) == 2
    assert "line 4, column begins_at" in problems[0]
    assert "line 5, column reason: got 'lunch', takes a reason of stop_reasons" in problems[1]


def test_a_metric_has_one_canonical_unit_and_limits_are_in_units_that_it_has() -> None:
    units = ["metric,unit,canonical_unit", "temp,K,°C", "temp,°F,°C", "temp,mK,K"]
    limits = ["metric,usl,unit", "temp,5,°C", "temp,5,K", "temp,5,bar", "speed,5,furlong", "flow,5,"]
    rows, problems = parse(BY_NAME["spec_limits"], "spec_limits.csv", "\n".join(limits))
    assert len(problems) == 2  # three rows about one target: the first is enough
    rows = [one for one in rows if one.row["unit"] in ("bar", "furlong", None)]
    found = [str(one) for one in checks.problems({"units": read("units", *units)[0], "spec_limits": rows}, BASE_S)]
    assert len(found) == 2
    assert "line 4, column unit: got 'bar', takes a unit of temp that units declares: K, mK, °C, °F" in found[0]
    assert "line 4, column canonical_unit: got 'K', takes °C, as the other rows of temp" in found[1]


def test_planned_stops_and_days_lie_on_edges_of_windows() -> None:
    problems = together(
        planned_stops=["machine_id,begins_at,ends_at", "m,2026-01-01T10:00:30Z,2026-01-01T11:00:00Z"],
        factories=["factory_id,zone,day_start", "f,Asia/Kolkata,06:00", "g,UTC,06:00:01"],
    )
    assert len(problems) == 2
    assert "factories.csv, line 3, column day_start: got '06:00:01'" in problems[0]
    assert "planned_stops.csv, line 2, column begins_at" in problems[1]
    rows = {"factories": read("factories", "factory_id,zone", "f,Asia/Kolkata")[0]}
    assert "takes a zone whose hours begin with a window of 3600 s" in str(checks.problems(rows, 3600)[0])


def test_what_was_stored_before_is_not_the_imports_fault() -> None:
    its, _ = read("shifts", SHIFT, "f,early,1,06:00,14:00,", "f,late,1,13:00,22:00,")
    stored = [Placed(one.table, one.row) for one in its]
    assert not checks.problems({"shifts": stored}, BASE_S)
    assert len(checks.problems({"shifts": [stored[0], its[1]]}, BASE_S)) == 1
    assert len(checks.problems({"shifts": [its[0], stored[1]]}, BASE_S)) == 1


# ---------------------------------------------------------------------- what an import changes


def test_an_import_adds_and_changes_and_removes_only_when_told() -> None:
    header = "metric,sensor_id,gain"
    table = BY_NAME["calibration"]
    stored = [one.row for one in read("calibration", header, "temp,a,1", "temp,b,2", "temp,c,3")[0]]
    wanted = [one.row for one in read("calibration", header, "temp,b,5", "temp,c,3", "temp,d,4")[0]]
    found = changes_of(table, stored, wanted, {}, prune=False)
    assert [row["sensor_id"] for row in found.added] == ["d"]
    assert [(one.before["gain"], one.after["gain"], one.columns) for one in found.changed] == [(2.0, 5.0, ("gain",))]
    assert (found.removed, found.same) == ([], 1)
    pruned = changes_of(table, stored, wanted, {}, prune=True)
    assert [row["sensor_id"] for row in pruned.removed] == ["a"]


def test_who_assigned_a_stop_stays_unless_a_file_says_so() -> None:
    header = "machine_id,begins_at,ends_at,reason"
    (placed,), _ = read("stop_assignments", header, "m,2026-01-01T10:00Z,2026-01-01T11:00Z,jam")
    now = {"assigned_by": "ada", "assigned_at": datetime(2026, 1, 2, tzinfo=UTC)}
    (new,) = changes_of(placed.table, [], [placed.row], now, prune=False).added
    assert {name: new[name] for name in now} == now
    later = {"assigned_by": "bob", "assigned_at": datetime(2026, 1, 3, tzinfo=UTC)}
    assert not changes_of(placed.table, [new], [placed.row], later, prune=False)


def test_wall_times_and_objects_are_written_as_people_write_them() -> None:
    shift = {"tenant_id": None, "factory_id": "f", "shift": "a", "weekdays": "1", "valid_from": None, "note": None}
    text = text_of(BY_NAME["shifts"], [shift | {"begins": time(6), "ends": time(14, 0, 30)}])
    assert text.splitlines()[1] == ",f,a,1,06:00,14:00:30,,"
