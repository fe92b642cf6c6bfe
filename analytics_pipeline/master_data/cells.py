"""Single cells of a file: what each kind of column takes, and how a value is written. Pure: text in, values out.

A cell that is empty has no value; texts keep their spaces. What is written is read as the same value again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from analytics_pipeline.master_data.spec import Kind, MasterColumn

SINCE_EVER = "-infinity"
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d{1,19}")
_WALL_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?")
_INT8 = 1 << 63
_YES_OR_NO = {"yes": True, "true": True, "no": False, "false": False}
FIRST, LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


class CellError(ValueError):
    """A cell that is not what its column takes."""


def parse(column: MasterColumn, text: str) -> Any:
    """The value of a cell that is not empty; None: since ever.

    Raises:
        CellError: what the column takes, in words.
    """
    if column.choices and text not in column.choices:
        raise CellError(f"one of {', '.join(column.choices)}")
    return _PARSERS[column.kind](text)


def write(column: MasterColumn, value: Any) -> str:
    """A value as a cell: what an empty cell stands for is empty."""
    if value is None:
        return ""
    text = _WRITERS.get(column.kind, str)(value)
    return "" if column.default is not None and value == parse(column, column.default) else text


def _text(text: str) -> str:
    if "\x00" in text:
        raise CellError("text without the character NUL")
    return text


def _number(text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise CellError("a number, such as 12.5")
    return value


def _whole_number(text: str) -> int:
    value = int(text) if _WHOLE.fullmatch(text) else _INT8
    if not -_INT8 <= value < _INT8:
        raise CellError("a whole number")
    return value


def _yes_or_no(text: str) -> bool:
    if text not in _YES_OR_NO:
        raise CellError("yes or no")
    return _YES_OR_NO[text]


def _moment(text: str) -> datetime | None:
    if text == SINCE_EVER:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None and FIRST <= moment <= LAST:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise CellError("a moment from 1970 on with its offset from UTC, such as 2026-11-21T10:00:00Z")


def _date(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = date.min
    if not FIRST.date() <= day <= LAST.date():
        raise CellError("a date from 1970 on, such as 2026-12-24")
    return day


def _wall_time(text: str) -> time:
    if not _WALL_TIME.fullmatch(text):
        raise CellError("a time of day, such as 06:00")
    return time.fromisoformat(text)


def _zone(text: str) -> str:
    if text not in available_timezones():
        raise CellError("the name of a zone in the IANA database, such as Europe/Berlin")
    ZoneInfo(text)
    return text


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or "\\u0000" in text:
        raise CellError('an object in JSON, such as {"limit_s": 600}')
    return value


def _refuse(word: str) -> None:
    raise ValueError(word)


def _written_moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


_PARSERS: Mapping[Kind, Callable[[str], Any]] = {
    "text": _text,
    "number": _number,
    "whole number": _whole_number,
    "yes or no": _yes_or_no,
    "moment": _moment,
    "date": _date,
    "wall time": _wall_time,
    "zone": _zone,
    "JSON object": _json_object,
}
_WRITERS: Mapping[Kind, Callable[[Any], str]] = {
    "number": repr,
    "yes or no": lambda value: "yes" if value else "no",
    "moment": _written_moment,
    "date": date.isoformat,
    "wall time": lambda value: value.isoformat("minutes" if not value.second else "seconds"),
    "JSON object": lambda value: json.dumps(value, sort_keys=True, ensure_ascii=False),
}
