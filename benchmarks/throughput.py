"""How many events a second reach the tables, beside the two baselines, on the same messages and server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from statistics import median

from benchmarks import bare_copy, seed_sink
from benchmarks.kafka import produce_all
from benchmarks.payloads import Stream
from benchmarks.report import Figure, Say
from benchmarks.stack import Stack

RATE_PER_S = 2_000
EVENTS, EVENTS_QUICK = 400_000, 40_000
#: COPY is over in a second or two, so that it is cheap to repeat and take the middle.
COPY_ROUNDS = 3


def backlog(count: int) -> Stream:
    """Readings at 2,000 a second from the beginning of the previous hour on."""
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    return Stream(hour, RATE_PER_S, count)


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """The baselines."""
    stream = backlog(EVENTS_QUICK if quick else EVENTS)
    with stack.broker() as brokers:
        produced_s = produce_all(brokers, stream)
        say(f"{stream.count:,} messages produced at {stream.count / produced_s:,.0f}/s")
        sink = _seed_sink(stack, brokers, stream.count)
        say(f"(a) seed sink: {sink.value:,.0f} events/s")
        copy = _bare_copy(stack, brokers, stream.count)
        say(f"(b) bare COPY: {copy.value:,.0f} rows/s")
    return [sink, copy]


def _seed_sink(stack: Stack, brokers: str, count: int) -> Figure:
    with stack.database() as database:
        sink = seed_sink.KafkaTimescaleSink(brokers, database)
        try:
            sink.create_table()
            duration_s = sink.run(count)
        finally:
            sink.close()
        if sink.inserted != count:
            raise RuntimeError(f"the seed sink inserted {sink.inserted} of {count}")
    return Figure("(a) seed sink", count / duration_s, "events/s", detail={"duration_s": duration_s})


def _bare_copy(stack: Stack, brokers: str, count: int) -> Figure:
    rows = bare_copy.raw_rows(brokers, count)
    with stack.database() as database:
        times = []
        for _ in range(COPY_ROUNDS):
            stack.checkpoint()
            times.append(bare_copy.run(database, rows))
    total_s = median(one.total_s for one in times)
    copy_s = median(one.copy_s for one in times)
    return Figure(
        "(b) bare COPY",
        count / total_s,
        "rows/s",
        detail={"total_s": total_s, "copy_alone_rows_per_s": count / copy_s, "rounds": COPY_ROUNDS},
    )
