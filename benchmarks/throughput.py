"""How many events a second reach the tables, beside the two baselines, on the same messages and server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from statistics import median
from typing import Any

from analytics_pipeline.records import hour_of
from analytics_pipeline.settings import Settings
from benchmarks import bare_copy, seed_sink
from benchmarks.kafka import create_topic, produce_all
from benchmarks.payloads import Stream
from benchmarks.pipeline import (
    WARM_TOPIC,
    counts,
    derive_pending,
    drain_backlog,
    migrated,
    warm_up_stream,
)
from benchmarks.processes import SPAWN, Done, Worker
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.stack import Stack

RATE_PER_S = 2_000
EVENTS, EVENTS_QUICK = 400_000, 40_000
#: The sink takes the beginning of the same messages: its rate is the same from start to end.
SINK_SHARE = 4
#: COPY is over in a second or two, so that it is cheap to repeat and take the middle.
COPY_ROUNDS = 3
ROUNDS = 3

GOAL_TIMES_SINK, GOAL_SHARE_OF_COPY, GOAL_DRAIN_SHARE_OF_COPY = 3.0, 0.4, 0.7


@dataclass(frozen=True)
class Round:
    """One pass over the backlog."""

    duration_s: float
    drain: Done
    derive: Done | None = None


def backlog(count: int) -> Stream:
    """Readings at 2,000 a second from the beginning of the previous hour on."""
    return Stream(hour_of(datetime.now(UTC)) - timedelta(hours=1), RATE_PER_S, count)


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """The baselines, the drain alone, and all five assets."""
    stream, rounds = backlog(EVENTS_QUICK if quick else EVENTS), 1 if quick else ROUNDS
    with stack.broker() as brokers, stack.database("warm_up") as warm_database:
        create_topic(brokers, WARM_TOPIC)
        produce_all(brokers, warm_up_stream(), WARM_TOPIC)
        produced_s = produce_all(brokers, stream)
        say(f"{stream.count:,} messages produced at {stream.count / produced_s:,.0f}/s")
        sink = _seed_sink(stack, brokers, stream.count // SINK_SHARE)
        say(f"(a) seed sink: {sink.value:,.0f} events/s")
        copy = _bare_copy(stack, brokers, stream.count)
        say(f"(b) bare COPY: {copy.value:,.0f} rows/s")
        drains, wholes = _rounds(stack, brokers, migrated(stack, warm_database, brokers), stream.count, rounds)
        say(f"drain alone: {stream.count / _median_s(drains):,.0f} events/s")
        say(f"all five assets: {stream.count / _median_s(wholes):,.0f} events/s")
    return [sink, copy, *_figures(stream.count, sink.value, copy.value, drains, wholes)]


def _figures(count: int, sink: float, copy: float, drains: list[Round], wholes: list[Round]) -> list[Figure]:
    drain, whole = count / _median_s(drains), count / _median_s(wholes)
    derives = [one.derive for one in wholes if one.derive]
    peak = {"drain": [one.drain for one in drains + wholes], "derive worker": derives}
    return [
        Figure("drain alone", drain, "events/s", detail=_detail(count, drains)),
        Figure("drain alone / (b)", drain / copy, "x", GOAL_DRAIN_SHARE_OF_COPY),
        Figure("all five assets", whole, "events/s", detail=_detail(count, wholes)),
        Figure("all five assets / (a)", whole / sink, "x", GOAL_TIMES_SINK),
        Figure("all five assets / (b)", whole / copy, "x", GOAL_SHARE_OF_COPY),
        *(memory_figure(f"{who}, backlog", max(done.peak_bytes for done in dones)) for who, dones in peak.items()),
    ]


def _detail(count: int, rounds: list[Round]) -> dict[str, Any]:
    detail: dict[str, Any] = {
        "events": count,
        "duration_s": [one.duration_s for one in rounds],
        "drain_cpu_us_per_event": median(one.drain.cpu_s for one in rounds) / count * 1e6,
        "drain_batches": [one.drain.result for one in rounds],
    }
    if derives := [one.derive for one in rounds if one.derive]:
        detail["derive_cpu_us_per_event"] = median(one.cpu_s for one in derives) / count * 1e6
        detail["derive_hours"] = [one.result for one in derives]
    return detail


def _median_s(rounds: list[Round]) -> float:
    return median(one.duration_s for one in rounds)


# ------------------------------------------------------------------ the pipeline


def _rounds(
    stack: Stack, brokers: str, warm: Settings, count: int, rounds: int
) -> tuple[list[Round], list[Round]]:
    """The drain alone, then all five assets, each on fresh databases and with the same two warm processes."""
    with _workers(warm) as workers:
        alone = [_drain_alone(stack, brokers, count, workers.drain) for _ in range(rounds)]
        return alone, [_all_assets(stack, brokers, count, workers) for _ in range(rounds)]


def all_assets(
    stack: Stack, brokers: str, warm: Settings, count: int, rounds: int, domains: int
) -> list[Round]:
    """All five assets of so many domains, each round on a fresh database."""
    with _workers(warm) as workers:
        return [_all_assets(stack, brokers, count, workers, domains) for _ in range(rounds)]


@dataclass(frozen=True)
class _Workers:
    """Two warm processes. ``drained`` is set while nothing is left to drain."""

    drain: Worker
    derive: Worker
    drained: Event


@contextmanager
def _workers(warm: Settings) -> Iterator[_Workers]:
    drained = SPAWN.Event()
    with Worker(drain_backlog, warm, drained) as drain, Worker(derive_pending, warm, drained) as derive:
        drain.wait_ready()
        derive.wait_ready()
        yield _Workers(drain, derive, drained)


def _drain_alone(stack: Stack, brokers: str, count: int, drain: Worker) -> Round:
    with _fresh(stack, brokers) as (database, settings):
        drain.go(settings, count)
        done = drain.wait()
        if (found := counts(database).raw) != count:
            raise RuntimeError(f"the drain wrote {found} raw rows of {count} messages")
    return Round(done.duration_s, done)


def _all_assets(stack: Stack, brokers: str, count: int, workers: _Workers, domains: int = 1) -> Round:
    """The drain in one process and a derive loop in another, as in production, until nothing is pending."""
    workers.drained.clear()
    with _fresh(stack, brokers, domains) as (database, settings):
        workers.derive.go(settings, domains)
        workers.drain.go(settings, count, domains)
        drain_done, derive_done = workers.drain.wait(), workers.derive.wait()
        counts(database).hold_to(count)
    return Round(derive_done.ended_s - drain_done.began_s, drain_done, derive_done)


@contextmanager
def _fresh(stack: Stack, brokers: str, domains: int = 1) -> Iterator[tuple[dict[str, Any], Settings]]:
    with stack.database() as database:
        settings = migrated(stack, database, brokers, domains=domains)
        stack.checkpoint()
        yield database, settings


# ------------------------------------------------------------------ the baselines


def _seed_sink(stack: Stack, brokers: str, count: int) -> Figure:
    with stack.database() as database:
        sink = seed_sink.KafkaTimescaleSink(brokers, database)
        try:
            sink.create_table()
            duration_s = sink.run(count)
        finally:
            sink.close()
        if sink.inserted < count:
            raise RuntimeError(f"the seed sink inserted {sink.inserted} of {count}")
    return Figure(
        "(a) seed sink",
        sink.inserted / duration_s,
        "events/s",
        detail={"duration_s": duration_s, "events": sink.inserted},
    )


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
