"""Stores the events that report many hours together: a few statements per batch, where Dagster takes six per event.

Dagster batches only the materializations of a single result over a range; a report per hour has one event each. Only
materializations and evaluations of checks are held back; any other event is stored at once, after those before it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from dagster import AssetCheckEvaluation, DagsterEventType, DagsterInstance
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._serdes import serialize_value
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_shared.record import replace
from sqlalchemy import Connection, and_, bindparam, select

#: Held back at most, then stored: about 5 kB each.
MAX_EVENTS = 1000

#: (check, run): what planned evaluations are looked up by.
_CheckOfRun = tuple[str, str, str]
#: (asset, partition, run) of a materialization.
_Materialized = tuple[str, str | None, str]


def event_batch(instance: DagsterInstance) -> AbstractContextManager[None]:
    """While it is open, this thread's reports are stored together; at its end all of them are.

    An instance with another storage stores them one by one.
    """
    storage = instance.event_log_storage
    return storage.batch() if isinstance(storage, BatchingEventLogStorage) else nullcontext()


class BatchingEventLogStorage(PostgresEventLogStorage):
    """Dagster's event log in PostgreSQL, which stores reports in batches if it is asked to."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._held = threading.local()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """See `event_batch`. A batch within a batch is part of it."""
        if self._events() is not None:
            yield
            return
        self._held.events = []
        try:
            yield
        finally:
            events, self._held.events = self._held.events, None
            self._store_together(events)

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event, or hold it back until its batch ends."""
        events = self._events()
        if events is None:
            super().store_event(event)
            return
        if _is_report(event):
            events.append(event)
            if len(events) < MAX_EVENTS:
                return
        self._held.events = []
        self._store_together(events)
        if not _is_report(event):
            super().store_event(event)

    def _events(self) -> list[EventLogEntry] | None:
        return getattr(self._held, "events", None)

    def _store_together(self, events: Sequence[EventLogEntry]) -> None:
        """In one transaction: the materializations, then the evaluations, which point to them."""
        if not events:
            return
        made = [event for event in events if event.get_dagster_event().is_step_materialization]
        evaluated = [event for event in events if not event.get_dagster_event().is_step_materialization]
        with self.index_transaction() as conn:
            ids = self._store_materializations(conn, made) if made else {}
            if evaluated:
                self._store_evaluations(conn, [_pointing_to(event, ids) for event in evaluated])

    def _store_materializations(self, conn: Connection, events: Sequence[EventLogEntry]) -> dict[_Materialized, int]:
        ids = self._insert(conn, events)
        self._store_asset_event_tags(conn, events, ids)
        newest = {event.get_dagster_event().asset_key: at for at, event in enumerate(events)}
        for at in newest.values():
            self._store_asset_event(conn, events[at], ids[at])
        return {_materialized(event): event_id for event, event_id in zip(events, ids, strict=True)}

    def _store_evaluations(self, conn: Connection, events: Sequence[EventLogEntry]) -> None:
        """An evaluation that was planned takes its row in the table of executions, any other one a row of its own."""
        rows = [
            self._execution(event, event_id)
            for event, event_id in zip(events, self._insert(conn, events), strict=True)
        ]
        table = AssetCheckExecutionsTable.c
        planned = self._planned(conn, {(row["asset_key"], row["check_name"], row["run_id"]) for row in rows})
        known = [row for row in rows if _execution_key(row) in planned]
        new = [row for row in rows if _execution_key(row) not in planned]
        if known:
            names = ("asset_key", "check_name", "run_id", "partition")
            one = and_(*(table[name] == bindparam(f"key_{name}") for name in names))
            conn.execute(
                AssetCheckExecutionsTable.update().where(one),
                [row | {f"key_{name}": row[name] for name in names} for row in known],
            )
        if new:
            conn.execute(AssetCheckExecutionsTable.insert(), new)

    def _planned(self, conn: Connection, wanted: set[_CheckOfRun]) -> set[tuple[str, str, str, str | None]]:
        table, found = AssetCheckExecutionsTable.c, set()
        for asset_key, check_name, run_id in sorted(wanted):
            query = select(table.partition).where(
                table.asset_key == asset_key, table.check_name == check_name, table.run_id == run_id
            )
            found |= {(asset_key, check_name, run_id, row[0]) for row in conn.execute(query)}
        return found

    def _execution(self, event: EventLogEntry, event_id: int) -> dict[str, Any]:
        evaluation = _evaluation(event)
        status = AssetCheckExecutionRecordStatus
        target = evaluation.target_materialization_data
        return {
            "asset_key": evaluation.asset_key.to_string(),
            "check_name": evaluation.check_name,
            "run_id": event.run_id,
            "partition": evaluation.partition,
            "execution_status": (status.SUCCEEDED if evaluation.passed else status.FAILED).value,
            "evaluation_event": serialize_value(event),
            "evaluation_event_timestamp": self._event_insert_timestamp(event),  # type: ignore[no-untyped-call]
            "evaluation_event_storage_id": event_id,
            "materialization_event_storage_id": target.storage_id if target else None,
        }

    def _insert(self, conn: Connection, events: Sequence[EventLogEntry]) -> list[int]:
        statement = SqlEventLogStorageTable.insert().returning(
            SqlEventLogStorageTable.c.id, sort_by_parameter_order=True
        )
        return [int(row[0]) for row in conn.execute(statement, [self._event_to_row(event) for event in events])]


def _is_report(event: EventLogEntry) -> bool:
    """A materialization of a partition, or the evaluation of a check about one."""
    dagster_event = event.dagster_event
    if dagster_event is None:
        return False
    if dagster_event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
        return _evaluation(event).partition is not None
    return dagster_event.is_step_materialization and dagster_event.asset_key is not None


def _evaluation(event: EventLogEntry) -> AssetCheckEvaluation:
    data = event.get_dagster_event().event_specific_data
    assert isinstance(data, AssetCheckEvaluation)
    return data


def _materialized(event: EventLogEntry) -> _Materialized:
    made = event.get_dagster_event()
    assert made.asset_key is not None
    return made.asset_key.to_string(), made.partition, event.run_id


def _execution_key(row: dict[str, Any]) -> tuple[str, str, str, str | None]:
    return row["asset_key"], row["check_name"], row["run_id"], row["partition"]


def _pointing_to(event: EventLogEntry, ids: dict[_Materialized, int]) -> EventLogEntry:
    """The evaluation of what the same batch materialized, with a pointer to it."""
    evaluation = _evaluation(event)
    storage_id = ids.get((evaluation.asset_key.to_string(), evaluation.partition, event.run_id))
    if storage_id is None or evaluation.target_materialization_data is not None:
        return event
    target = AssetCheckEvaluationTargetMaterializationData(
        run_id=event.run_id, storage_id=storage_id, timestamp=event.timestamp
    )
    data = replace(evaluation, target_materialization_data=target)
    return event._replace(dagster_event=event.get_dagster_event()._replace(event_specific_data=data))
