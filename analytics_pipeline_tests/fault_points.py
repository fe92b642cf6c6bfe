"""A database and a broker that fail at the n-th call from now on, as the pipeline's own clients would see it.

Every statement, COPY, commit and connect of an engine counts, and every call of a Kafka client. A fault happens before
the server has done what it was asked, or after: then the server did it, and the client does not know. What a faulty
call leaves behind is real: a lost connection is closed, and a refused statement leaves an aborted transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

import psycopg2
import pytest
from confluent_kafka import KafkaError, KafkaException
from psycopg2.extensions import connection as PsycopgConnection
from psycopg2.extensions import cursor as PsycopgCursor
from sqlalchemy import Engine, event

from analytics_pipeline.settings import Settings
from analytics_pipeline.sources import cluster, kafka
from analytics_pipeline.storage.engine import make_engine

Moment = Literal["before", "after"]
DatabaseFault = Literal["lost", "deadlock", "canceled", "interrupted"]
BrokerFault = Literal["error", "silence", "partition error", "interrupted"]

_SQLSTATES = {"deadlock": "40P01", "canceled": "57014"}
#: A broker that is silent answers one call in vain for so long …
_SILENT_S = 0.1
#: … and a reader gives up sooner than in production, and waits less for a chunk to fill.
PATIENCE_S, CHUNK_WAIT_S = 0.25, 0.01


class InterruptedByTestError(BaseException):
    """A run that is stopped from outside: no ``except Exception`` may swallow it."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong once so many calls have passed, and for how many calls in a row."""

    kind: str
    after_calls: int
    moment: Moment = "before"
    lasts: int = 1


@dataclass
class FaultPoint:
    """Counts the calls of one kind of server, and says which of them fail. Safe to use from several threads."""

    calls: int = 0
    happened: list[str] = field(default_factory=list)
    _fault: Fault | None = None
    _first: int = 0
    _lock: Lock = field(default_factory=Lock)

    def arm(self, fault: Fault) -> None:
        with self._lock:
            self._fault, self._first = fault, self.calls + fault.after_calls

    def heal(self) -> None:
        with self._lock:
            self._fault = None

    def due(self, what: str) -> Fault | None:
        """Counts a call; returns the fault that happens to it."""
        with self._lock:
            at, fault = self.calls, self._fault
            self.calls += 1
            if fault is None or at < self._first:
                return None
            if at + 1 >= self._first + fault.lasts:
                self._fault = None
            self.happened.append(f"{fault.kind} {fault.moment} {what}")
            return fault


# ---------------------------------------------------------------------- the database


class FaultyConnection(PsycopgConnection):
    """A connection whose statements and commits pass a fault point."""

    faults: FaultPoint

    def commit(self) -> None:
        _pass(self, "commit", super().commit)


class FaultyCursor(PsycopgCursor):
    """A cursor of a `FaultyConnection`."""

    def execute(self, query: Any, vars: Any = None) -> None:
        _pass(self.connection, _name(query), lambda: super(FaultyCursor, self).execute(query, vars))

    def executemany(self, query: Any, vars_list: Any) -> None:
        _pass(self.connection, _name(query), lambda: super(FaultyCursor, self).executemany(query, vars_list))

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        _pass(self.connection, _name(sql), lambda: super(FaultyCursor, self).copy_expert(sql, file, size))


def faulty_engine(settings: Settings, faults: FaultPoint) -> Engine:
    """An engine as the pipeline's own, whose connections pass a fault point. The caller disposes of it."""
    engine = make_engine(settings)

    def make(dsn: str, is_async: int = 0) -> FaultyConnection:
        connection = FaultyConnection(dsn, is_async)
        connection.faults, connection.cursor_factory = faults, FaultyCursor
        return connection

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        fault = faults.due("connect")
        if fault is not None:
            raise psycopg2.OperationalError("could not connect to server: a fault of the test")
        parameters["connection_factory"] = make

    return engine


def _pass(connection: Any, what: str, call: Callable[[], None]) -> None:
    fault = connection.faults.due(what)
    if fault is None:
        call()
        return
    if fault.kind in _SQLSTATES:  # the server itself refuses, and has done nothing
        with PsycopgCursor(connection) as cursor:
            cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{_SQLSTATES[fault.kind]}'; END $$")
        raise AssertionError("unreachable")
    if fault.moment == "after":
        call()
    if fault.kind == "interrupted":
        raise InterruptedByTestError(what)
    connection.close()
    raise psycopg2.OperationalError("server closed the connection unexpectedly: a fault of the test")


def _name(query: Any) -> str:
    text = query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)
    return " ".join(text.split())[:60]


# ---------------------------------------------------------------------- the broker


class PartitionError:
    """What a client hands out in place of a message when one partition is in trouble."""

    def __init__(self, topic: str, partition: int) -> None:
        self._where = topic, partition

    def topic(self) -> str:
        return self._where[0]

    def partition(self) -> int:
        return self._where[1]

    def error(self) -> KafkaError:
        return KafkaError(KafkaError.LEADER_NOT_AVAILABLE, "a fault of the test")

    def value(self) -> bytes:
        return b"the words of an error"


class FaultyClient:
    """A client of Kafka whose calls pass a fault point; `close` never fails."""

    def __init__(self, real: Any, faults: FaultPoint) -> None:
        self._real, self._faults = real, faults

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name == "close" or not callable(real):
            return real

        def call(*arguments: Any, **more: Any) -> Any:
            fault = self._faults.due(name)
            return real(*arguments, **more) if fault is None else _fail(fault, name, real, arguments, more)

        return call


def _fail(fault: Fault, name: str, real: Callable[..., Any], arguments: Any, more: Any) -> Any:
    if fault.kind == "interrupted":
        if fault.moment == "after":
            real(*arguments, **more)
        raise InterruptedByTestError(name)
    if name == "describe_topics":  # it answers with promises, and those fail
        return {topic: _broken() for topic in real(*arguments, **more)}
    if name == "consume" and fault.kind == "silence":
        time.sleep(_SILENT_S)
        return []
    if name == "consume" and fault.kind == "partition error":
        chunk = real(*arguments, **more)
        named = [one for one in chunk if one.topic() is not None]
        return [PartitionError(named[0].topic(), named[0].partition()), *chunk] if named else chunk
    if fault.moment == "after":
        real(*arguments, **more)
    raise KafkaException(KafkaError(KafkaError._TRANSPORT, "a fault of the test"))


def _broken() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT, "a fault of the test")))
    return future


def use_faulty_clients(patch: pytest.MonkeyPatch, faults: FaultPoint) -> None:
    """Clients that the pipeline makes from now on pass a fault point; its patience with silence is short."""
    patch.setattr(kafka, "SILENCE_S", PATIENCE_S)
    patch.setattr(kafka, "CHUNK_WAIT_S", CHUNK_WAIT_S)
    quick = {"fetch.wait.max.ms": 5}
    for module, name, more in ((kafka, "Consumer", quick), (cluster, "Consumer", quick), (cluster, "AdminClient", {})):
        real = getattr(module, name)
        patch.setattr(
            module, name, lambda config, real=real, more=more: FaultyClient(real({**config, **more}), faults)
        )
