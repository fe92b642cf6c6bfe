"""Rows of the tables of normalized_measurements, and the raw rows that they are decoded from: SQL only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import groupby, pairwise

import numpy as np
import polars as pl

from analytics_pipeline.assets import regions as area
from analytics_pipeline.assets.calculation import Context, Ints, Key, Parts, Work
from analytics_pipeline.assets.measurements.spec import SPEC
from analytics_pipeline.records import HOUR, HOUR_S, HOUR_US, RAW_EVENTS
from analytics_pipeline.storage import partition_state, raw_events, table_io
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.raw_events import StoredRows
from analytics_pipeline.tables import TableSpec

#: Raw rows that are decoded at once: what bounds a worker's memory, at about 1 kB a row.
CHUNK_ROWS = 200_000
#: Ordinals of one element of a message that was split; a message that was not is element 0, however many samples
#: it has.
ELEMENT_SAMPLES = 1024
#: Batches whose rows are read in one go.
CHUNK_BATCHES = 200

#: Of rows of one identity, the last in this order stays.
ORDER = ("kafka_time", "log_id", "offset", "ordinal")
ORDER_US = ("kafka_time_us", "log_id", "offset", "ordinal")


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


# ---------------------------------------------------------------------- rows of each table


def count_by_series(connection: Connection, work: Work) -> pl.DataFrame:
    """Measurements that one domain partition holds: series_id, rows."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT series_id, count(*) FROM normalized_measurements "
            "WHERE domain_id = %s AND event_time >= %s AND event_time < %s GROUP BY series_id",
            (work.domain_id, work.hour, work.hour + HOUR),
        )
        rows = cursor.fetchall()
    return pl.DataFrame(rows, schema={"series_id": pl.Int64(), "rows": pl.Int64()}, orient="row")


def replace_or_merge(
    connection: Connection, table: TableSpec, works: Sequence[Work], parts: Parts, rows: pl.DataFrame
) -> Ints:
    """Write rows of some works: of a whole hour they replace what is stored, others are added to it.

    Args:
        works: those that may be written.
        rows: of these works, one per identity.

    Returns:
        for each work of ``parts`` how many rows it holds (a whole hour), or holds more than before.
    """
    whole = np.array([work.whole for work in parts.works])
    part = part_of(parts, table, rows)
    counted = np.bincount(part, minlength=len(parts.works))
    merged = whole[part]
    new = merge(connection, table, rows.filter(pl.Series(~merged, dtype=pl.Boolean)), parts)
    replaced = [work for work in works if work.whole]
    if replaced:
        _replace(connection, table, replaced, rows.filter(pl.Series(merged, dtype=pl.Boolean)))
    return np.where(whole, counted, new)


def part_of(parts: Parts, table: TableSpec, rows: pl.DataFrame) -> Ints:
    """The domain partition of each row, as its index among the works."""
    return parts.of(rows["domain_id"].to_numpy(), rows[table.frame_time].to_numpy())


def _replace(connection: Connection, table: TableSpec, works: Sequence[Work], rows: pl.DataFrame) -> None:
    """All rows of some domain partitions become these; where they are very many, in spans of time one after the
    other, because stored rows, wanted rows and what tells them apart are in memory together."""
    filled = [work for work in works if work.state.rows]
    if not filled:
        table_io.copy_frame(connection, table.name, table, rows)
        return
    time_us = rows[table.frame_time].to_numpy()
    for begins_us, ends_us in _replaced_spans(works):
        regions = [
            replace(region, begins_us=max(region.begins_us, begins_us), ends_us=min(region.ends_us, ends_us))
            for work in filled
            for region in work.regions(whole=True)
            if region.begins_us < ends_us and begins_us < region.ends_us
        ]
        stored = table_io.read_regions(connection, table, area.joined(regions))
        inside = (time_us >= begins_us) & (time_us < ends_us)
        wanted = rows if inside.all() else rows.filter(pl.Series(inside, dtype=pl.Boolean))
        table_io.replace(connection, table, stored, wanted)


def _replaced_spans(works: Sequence[Work]) -> list[tuple[int, int]]:
    """Spans of time that cover the hours of all works, each with about as many rows as may be in memory."""
    begins_us = min(work.hour_us for work in works)
    ends_us = max(work.hour_us for work in works) + HOUR_US
    hours = (ends_us - begins_us) // HOUR_US
    pieces = min(HOUR_S * hours, sum(work.state.rows for work in works) // CHUNK_ROWS + 1)
    edges = [begins_us + (ends_us - begins_us) * piece // pieces for piece in range(pieces + 1)]
    return list(pairwise(edges))


def merge(connection: Connection, table: TableSpec, rows: pl.DataFrame, parts: Parts) -> Ints:
    """Add rows, one per identity; where it exists, the later by (Kafka time, position) stays.

    Rows later than everything that their domain partition holds cannot exist: they are copied straight in, twice
    as fast as the others, which go through a temporary table.

    Returns:
        how many identities are new, for each work.
    """
    if rows.is_empty():
        return np.zeros(len(parts.works), np.int64)
    part = part_of(parts, table, rows)
    newest = _newest_us(connection, table, parts.works, np.unique(part).tolist())
    later = rows[table.frame_time].to_numpy() > newest[part]
    table_io.copy_frame(connection, table.name, table, rows.filter(pl.Series(later, dtype=pl.Boolean)))
    new = np.bincount(part[later], minlength=len(parts.works))
    if later.all():
        return new
    rest = rows.filter(pl.Series(~later, dtype=pl.Boolean))
    return new + _merge_through_temporary(connection, table, rest, parts.works)


def _newest_us(connection: Connection, table: TableSpec, works: Sequence[Work], indexes: Sequence[int]) -> Ints:
    """The newest event time that each work's domain partition holds, or the least number."""
    newest = np.full(len(works), np.iinfo(np.int64).min)
    filled = [at for at in indexes if works[at].state.rows]
    with connection.cursor() as cursor:
        for at in filled:
            cursor.execute(
                f"SELECT (extract(epoch FROM max(event_time)) * 1000000)::bigint FROM {table.name} "
                "WHERE domain_id = %s AND event_time >= %s AND event_time < %s",
                (works[at].domain_id, works[at].hour, works[at].hour + timedelta(hours=1)),
            )
            (found,) = cursor.fetchone()
            if found is not None:
                newest[at] = found
    return newest


@lru_cache(maxsize=16)
def _merge_statement(name: str, columns: tuple[str, ...], key: tuple[str, ...]) -> str:
    listed = _listed("", columns)
    others = ", ".join(f'"{column}" = EXCLUDED."{column}"' for column in columns if column not in key)
    return (
        f"INSERT INTO {name} AS kept ({listed}) SELECT {listed} FROM incoming_{name} "
        f"ON CONFLICT ({_listed('', key)}) DO UPDATE SET {others} "
        f"WHERE ({_listed('EXCLUDED.', ORDER)}) > ({_listed('kept.', ORDER)}) "
        "RETURNING domain_id, event_time, (xmax = 0) AS is_new"
    )


def _listed(prefix: str, names: Sequence[str]) -> str:
    return ", ".join(f'{prefix}"{name}"' for name in names)


def _merge_through_temporary(
    connection: Connection, table: TableSpec, rows: pl.DataFrame, works: Sequence[Work]
) -> Ints:
    incoming = f"incoming_{table.name}"
    statement = _merge_statement(table.name, tuple(column.name for column in table.columns), table.key)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE IF NOT EXISTS {incoming} (LIKE {table.name}) ON COMMIT DROP")
        cursor.execute(f"TRUNCATE {incoming}")
        table_io.copy_frame(connection, incoming, table, rows)
        cursor.execute(
            f"WITH merged AS ({statement}) SELECT domain_id, date_trunc('hour', event_time, 'UTC'), count(*) "
            "FROM merged WHERE is_new GROUP BY 1, 2"
        )
        found = {(domain_id, hour): count for domain_id, hour, count in cursor.fetchall()}
    return np.array([found.get(work.key, 0) for work in works], np.int64)
