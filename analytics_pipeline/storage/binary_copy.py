"""Binary COPY of fixed-width tables, to and from numpy, with no parsing on either side.

PostgreSQL's binary COPY format (documentation of COPY, "Binary Format") gives each field a length and its
bytes in network order. When no column can be NULL and each has a fixed width, every row has the same layout,
so that a whole table is one structured array. No SQL beyond COPY, and no tables, are known here.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from analytics_pipeline.storage.engine import Connection

PgType = Literal["bool", "int2", "int4", "int8", "float8", "timestamptz"]
Columns = Mapping[str, npt.NDArray[Any]]

_DTYPE: dict[PgType, str] = {
    "bool": "?",
    "int2": ">i2",
    "int4": ">i4",
    "int8": ">i8",
    "float8": ">f8",
    "timestamptz": ">i8",
}
SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + bytes(8)  # no flags, no header extension
TRAILER = b"\xff\xff"
#: Rows encoded at once, so that an hour of millions does not stand in memory twice.
SLICE_ROWS = 250_000
#: PostgreSQL counts microseconds from 2000-01-01, this project from 1970-01-01.
POSTGRES_EPOCH_US = 946_684_800_000_000


@dataclass(frozen=True)
class FixedTable:
    """The columns of a fixed-width table, in the order in which they are copied.

    ``timestamptz`` columns appear in numpy as int64 microseconds since the Unix epoch.
    """

    columns: tuple[tuple[str, PgType], ...]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        fields: list[tuple[str, str]] = [("fields", ">i2")]
        for name, pg_type in self.columns:
            fields += [(f"length of {name}", ">i4"), (name, _DTYPE[pg_type])]
        return np.dtype(fields)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)

    def encode(self, columns: Columns) -> bytes:
        """The COPY stream of equally long columns."""
        rows = len(columns[self.columns[0][0]])
        table = np.empty(rows, dtype=self.dtype)
        table["fields"] = len(self.columns)
        for name, pg_type in self.columns:
            table[f"length of {name}"] = np.dtype(_DTYPE[pg_type]).itemsize
            shift = POSTGRES_EPOCH_US if pg_type == "timestamptz" else 0
            table[name] = columns[name] - shift if shift else columns[name]
        return b"".join((SIGNATURE, table.tobytes(), TRAILER))

    def decode(self, stream: bytes | memoryview) -> dict[str, npt.NDArray[Any]]:
        """The columns of a COPY stream, in native byte order.

        Raises:
            ValueError: the stream is not a whole number of rows: a column was NULL or has another type.
        """
        body = memoryview(stream)[len(SIGNATURE) : -len(TRAILER)]
        if len(body) % self.dtype.itemsize:
            raise ValueError(
                f"COPY of {', '.join(self.names)}: {len(body)} bytes are no whole number of "
                f"{self.dtype.itemsize}-byte rows; a column holds NULL or has another type than declared"
            )
        return self._native(np.frombuffer(body, dtype=self.dtype))

    def _native(self, table: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        columns: dict[str, npt.NDArray[Any]] = {}
        for name, pg_type in self.columns:
            native = table[name].astype(np.dtype(_DTYPE[pg_type]).newbyteorder("="))
            columns[name] = native + POSTGRES_EPOCH_US if pg_type == "timestamptz" else native
        return columns

    def decode_with_payload(self, stream: memoryview) -> tuple[dict[str, npt.NDArray[Any]], list[bytes]]:
        """Like :meth:`decode`, where each row carries one further column of any length, the last."""
        fixed, read_length = self.dtype.itemsize, struct.Struct(">i").unpack_from
        at, end = len(SIGNATURE), len(stream) - len(TRAILER)
        starts: list[int] = []
        payloads: list[bytes] = []
        while at < end:
            starts.append(at)
            begin = at + fixed + 4
            at = begin + read_length(stream, begin - 4)[0]
            payloads.append(bytes(stream[begin:at]))
        if not starts:
            return self._native(np.empty(0, self.dtype)), payloads
        # A view of the bytes from every place on: an index of every byte would be eight times as large as the rows.
        cells = sliding_window_view(np.frombuffer(stream, np.uint8), fixed)[starts]
        return self._native(np.ascontiguousarray(cells).view(self.dtype).reshape(-1)), payloads


def copy_in(connection: Connection, target: str, table: FixedTable, columns: Columns) -> int:
    """COPY columns into ``target``; returns the rows written."""
    names = ", ".join(f'"{name}"' for name in table.names)
    rows, written = len(columns[table.names[0]]), 0
    with connection.cursor() as cursor:
        for start in range(0, rows, SLICE_ROWS):
            part = {name: columns[name][start : start + SLICE_ROWS] for name in table.names}
            cursor.copy_expert(
                f"COPY {target} ({names}) FROM STDIN (FORMAT binary)", io.BytesIO(table.encode(part))
            )
            written += int(cursor.rowcount)
    return written


def copy_out(
    connection: Connection, query: str, parameters: Sequence[Any], table: FixedTable
) -> dict[str, npt.NDArray[Any]]:
    """The result of a query, whose columns are those of ``table`` in order, as numpy columns."""
    return table.decode(_stream(connection, query, parameters))


def copy_out_with_payload(
    connection: Connection, query: str, parameters: Sequence[Any], table: FixedTable
) -> tuple[dict[str, npt.NDArray[Any]], list[bytes]]:
    """As :func:`copy_out`, for a query with one further column, the last, of any length and never NULL."""
    return table.decode_with_payload(_stream(connection, query, parameters))


def _stream(connection: Connection, query: str, parameters: Sequence[Any]) -> memoryview:
    buffer = io.BytesIO()
    with connection.cursor() as cursor:
        statement = cursor.mogrify(query, parameters).decode()
        cursor.copy_expert(f"COPY ({statement}) TO STDOUT (FORMAT binary)", buffer)
    return buffer.getbuffer()
