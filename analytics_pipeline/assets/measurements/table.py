"""Rows of normalized_measurements, and the raw rows that they are decoded from: SQL only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import polars as pl

from analytics_pipeline.assets.calculation import Context, Ints, Key, Parts, Work
from analytics_pipeline.assets.measurements.spec import SPEC, TABLE
from analytics_pipeline.records import HOUR, HOUR_S, RAW_EVENTS, Region
from analytics_pipeline.storage import partition_state, raw_events, table_io
from analytics_pipeline.storage.binary_copy import FixedTable, copy_in
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.raw_events import StoredRows

#: Raw rows that are decoded at once: what bounds a worker's memory, at about 1 kB a row.
CHUNK_ROWS = 200_000
#: Ordinals of one element of a message that was split; a message that was not is element 0, however many samples
#: it has.
ELEMENT_SAMPLES = 1024
#: Batches whose rows are read in one go.
CHUNK_BATCHES = 200

_FIXED = FixedTable(tuple((column.name, column.type) for column in TABLE.columns))  # type: ignore[misc]
_NAMES = ", ".join(f'"{column.name}"' for column in TABLE.columns)
_ORDER = ("kafka_time", "log_id", '"offset"', "ordinal")
_MERGE = (
    f"INSERT INTO normalized_measurements AS kept ({_NAMES}) SELECT {_NAMES} FROM incoming_measurements "
    "ON CONFLICT (domain_id, event_time, series_id, sample_key) DO UPDATE SET "
    + ", ".join(f"{name} = EXCLUDED.{name}" for name in ("value", *_ORDER))
    + f" WHERE ({', '.join(f'EXCLUDED.{name}' for name in _ORDER)}) > "
    f"({', '.join(f'kept.{name}' for name in _ORDER)}) RETURNING domain_id, event_time, (xmax = 0) AS is_new"
)
Columns = Mapping[str, Any]


# ---------------------------------------------------------------------- raw rows


def read_raw(context: Context, works: Sequence[Work]) -> Iterator[StoredRows]:
    """The raw rows that a slice is computed from, and perhaps some of other hours, chunk by chunk."""
    whole = [work for work in works if work.whole or work.pending is None or work.pending.whole]
    for begins, ends, topics in _spans(context.connection, whole):
        yield raw_events.read_span(context.connection, topics, begins, ends)
    some = [work for work in works if work not in whole]
    if not some:
        return
    for hour, its in groupby(sorted(some, key=lambda work: work.hour), key=lambda work: work.hour):
        group = list(its)
        # Of these domains only: another one of the slice may have been read as a whole.
        topics = [topic for work in group for topic in work.domain.topics]
        batches = sorted({batch for work in group if work.pending for batch in work.pending.batches})
        for at in range(0, len(batches), CHUNK_BATCHES):
            yield raw_events.read_batches(context.connection, topics, hour, batches[at : at + CHUNK_BATCHES])


def _spans(connection: Connection, works: Sequence[Work]) -> Iterator[tuple[datetime, datetime, list[str]]]:
    """Spans of time with the topics to read: neighbouring hours of the same domains together, as far as memory
    allows; an hour with very many rows in parts."""
    hours: dict[datetime, list[Work]] = {}
    for work in works:
        hours.setdefault(work.hour, []).append(work)
    states = partition_state.read_states(connection, RAW_EVENTS, list(hours))
    rows = {hour: sum(states[work.key].rows for work in its if work.key in states) for hour, its in hours.items()}
    begins: datetime | None = None
    for hour, following in pairwise([*sorted(hours), None]):
        if hour is None:
            continue
        begins = begins or hour
        domains = {work.domain.name for work in hours[hour]}
        held = sum(n for at, n in rows.items() if begins <= at <= hour)
        joins = (
            following == hour + HOUR
            and {work.domain.name for work in hours[following]} == domains
            and held + rows[following] <= CHUNK_ROWS
        )
        if joins:
            continue
        topics = [topic for work in hours[hour] for topic in work.domain.topics]
        pieces = min(HOUR_S, held // CHUNK_ROWS + 1)
        ends = hour + HOUR
        edges = [begins + (ends - begins) * piece / pieces for piece in range(pieces)] + [ends]
        for begin, end in pairwise(edges):
            yield begin, end, topics
        begins = None


def log_domains(connection: Connection, works: Sequence[Work]) -> dict[int, int]:
    """The number of the domain of each Kafka log that feeds the slice."""
    by_topic = {topic: work.domain_id for work in works for topic in work.domain.topics}
    with connection.cursor() as cursor:
        cursor.execute("SELECT log_id, topic FROM kafka_log WHERE topic = ANY(%s)", (list(by_topic),))
        return {log_id: by_topic[topic] for log_id, topic in cursor.fetchall()}


def late_rows(connection: Connection, works: Sequence[Work]) -> list[int]:
    """Rows of each work that came behind the allowed lateness: of its batches, or of the whole hour."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT hour, domain, batch_id, late_rows FROM ingest_batch_hour "
            "WHERE hour = ANY(%s::timestamptz[]) AND late_rows > 0",
            (sorted({work.hour for work in works}),),
        )
        found: dict[tuple[datetime, str], list[tuple[int, int]]] = {}
        for hour, domain, batch, late in cursor.fetchall():
            found.setdefault((hour, domain), []).append((batch, late))
    return [_late(work, found.get((work.hour, work.domain.name), [])) for work in works]


def _late(work: Work, batches: Sequence[tuple[int, int]]) -> int:
    if work.whole or work.pending is None or work.pending.whole:
        return sum(late for _, late in batches)
    wanted = set(work.pending.batches)
    return sum(late for batch, late in batches if batch in wanted)


def count_dead_letters(connection: Connection, works: Sequence[Work]) -> dict[Key, int]:
    """Stored dead letters of this asset, by domain partition."""
    if not works:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT domain_id, hour, count(*) FROM dead_letters WHERE hour = ANY(%s::timestamptz[]) AND stage = %s "
            "GROUP BY domain_id, hour",
            (sorted({work.hour for work in works}), SPEC.name),
        )
        counted = {(domain_id, hour): rows for domain_id, hour, rows in cursor.fetchall()}
    return {work.key: counted.get(work.key, 0) for work in works}


def read_dead_letters(connection: Connection, work: Work) -> list[tuple[int, bytes]]:
    """(index of the sample in its payload, payload) of the dead letters of this asset in one domain partition."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ordinal, payload FROM dead_letters WHERE hour = %s AND stage = %s AND domain_id = %s "
            "AND payload IS NOT NULL",
            (work.hour, SPEC.name, work.domain_id),
        )
        rows = cursor.fetchall()
    splits = work.domain.split is not None
    return [(ordinal % ELEMENT_SAMPLES if splits else ordinal, bytes(payload)) for ordinal, payload in rows]


# ---------------------------------------------------------------------- measurements


def count_by_series(connection: Connection, work: Work) -> pl.DataFrame:
    """Rows that one domain partition holds: series_id, rows."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT series_id, count(*) FROM normalized_measurements "
            "WHERE domain_id = %s AND event_time >= %s AND event_time < %s GROUP BY series_id",
            (work.domain_id, work.hour, work.hour + HOUR),
        )
        rows = cursor.fetchall()
    return pl.DataFrame(rows, schema={"series_id": pl.Int64(), "rows": pl.Int64()}, orient="row")


def replace_or_merge(
    connection: Connection,
    works: Sequence[Work],
    parts: Parts,
    rows: Columns,
    part: Ints,
    accepted: frozenset[Key],
) -> dict[Key, int]:
    """Write the rows of the accepted works; returns how many each domain partition holds then."""
    whole = np.array([work.whole for work in works])
    held = {work.key: work.state.rows for work in works if work.key in accepted}
    if rows:
        merged = ~whole[part]
        new = merge(connection, {name: column[merged] for name, column in rows.items()}, works, parts)
        for at, count in enumerate(new):
            if count:
                held[works[at].key] += count
    replaced = [work for work in works if work.whole and work.key in accepted]
    if replaced:
        wanted = {name: column[~merged] for name, column in rows.items()} if rows else {}
        _replace(connection, replaced, wanted)
        counts = parts.counts(part) if rows else [0] * len(works)
        held |= {work.key: counts[at] for at, work in enumerate(works) if work in replaced}
    return held


def _replace(connection: Connection, works: Sequence[Work], rows: Columns) -> None:
    """All rows of some domain partitions become these."""
    filled = [work for work in works if work.state.rows]
    if not filled:
        if rows:
            copy_in(connection, TABLE.name, _FIXED, rows)
        return
    regions = [region for work in filled for region in work.regions(whole=True)]
    stored = table_io.read_regions(connection, TABLE, joined_regions(regions))
    wanted = pl.DataFrame({c.frame_name: rows[c.name] for c in TABLE.columns}) if rows else TABLE.empty()
    table_io.replace(connection, TABLE, stored, wanted.cast(TABLE.schema()))  # type: ignore[arg-type]


def joined_regions(regions: Sequence[Region]) -> list[Region]:
    """The same rows in as few regions as can be: neighbours of one domain and the same series are one."""
    joined: list[Region] = []
    for region in sorted(regions, key=lambda one: (one.domain_id, one.series or (), one.begins_us)):
        last = joined[-1] if joined else None
        if (
            last
            and (last.domain_id, last.series) == (region.domain_id, region.series)
            and region.begins_us <= last.ends_us
        ):
            ends = max(last.ends_us, region.ends_us)
            joined[-1] = Region(last.domain_id, last.begins_us, ends, last.series)
        else:
            joined.append(region)
    return joined


def merge(connection: Connection, rows: Columns, works: Sequence[Work], parts: Parts) -> list[int]:
    """Add rows, one per identity; where it exists, the later by (Kafka time, position) stays.

    Rows later than everything that their domain partition holds cannot exist: they are copied straight in, twice
    as fast as the others, which go through a temporary table.

    Returns:
        how many identities are new, for each work.
    """
    if not len(rows["event_time"]):
        return [0] * len(works)
    part = parts.of(rows["domain_id"], rows["event_time"])
    newest = _newest_us(connection, works, np.unique(part).tolist())
    later = rows["event_time"] > newest[part]
    if later.any():
        copy_in(connection, TABLE.name, _FIXED, {name: column[later] for name, column in rows.items()})
    new = np.bincount(part[later], minlength=len(works))
    if not later.all():
        new = new + _merge_through_temporary(
            connection, {name: column[~later] for name, column in rows.items()}, works, parts
        )
    return [int(n) for n in new]


def _newest_us(connection: Connection, works: Sequence[Work], indexes: Sequence[int]) -> Ints:
    """The newest event time that each work's domain partition holds, or the least number."""
    newest = np.full(len(works), np.iinfo(np.int64).min)
    filled = [at for at in indexes if works[at].state.rows]
    with connection.cursor() as cursor:
        for at in filled:
            cursor.execute(
                "SELECT (extract(epoch FROM max(event_time)) * 1000000)::bigint FROM normalized_measurements "
                "WHERE domain_id = %s AND event_time >= %s AND event_time < %s",
                (works[at].domain_id, works[at].hour, works[at].hour + timedelta(hours=1)),
            )
            (found,) = cursor.fetchone()
            if found is not None:
                newest[at] = found
    return newest


def _merge_through_temporary(connection: Connection, rows: Columns, works: Sequence[Work], parts: Parts) -> Ints:
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP TABLE IF NOT EXISTS incoming_measurements (LIKE normalized_measurements) ON COMMIT DROP"
        )
        cursor.execute("TRUNCATE incoming_measurements")
        copy_in(connection, "incoming_measurements", _FIXED, rows)
        cursor.execute(
            f"WITH merged AS ({_MERGE}) SELECT domain_id, date_trunc('hour', event_time, 'UTC'), count(*) "
            "FROM merged WHERE is_new GROUP BY 1, 2"
        )
        found = {(domain_id, hour): count for domain_id, hour, count in cursor.fetchall()}
    return np.array([found.get(work.key, 0) for work in works], np.int64)
