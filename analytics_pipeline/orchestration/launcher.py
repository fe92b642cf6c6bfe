"""Sends runs to warm Celery workers, and knows when a run's worker is dead. Named in ``dagster.yaml``.

The stock launcher believes Celery, which calls the task of a killed worker "started" for ever, and ends a run by
killing the worker's child, which leaves the run "canceling". This one goes by the signs of life of the run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self, cast

from dagster import DagsterRun, DagsterRunStatus
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._serdes import ConfigurableClassData
from dagster_celery.launcher import CeleryRunLauncher

from analytics_pipeline.orchestration import heartbeat
from analytics_pipeline.orchestration.celery_settings import CELERY_CONFIG
from analytics_pipeline.orchestration.tags import BACKFILL_QUEUE, TASK_ID_TAG
from analytics_pipeline.settings import load_settings

#: A run without a sign of life is dead only if it is so at two looks: Valkey may just have come back.
SECOND_LOOK_AFTER_S = 4.0


class WarmCeleryRunLauncher(CeleryRunLauncher):
    """``CeleryRunLauncher`` with signs of life, and with a termination that ends.

    Broker, result backend and queue come from the pipeline's settings where the configuration leaves them out.
    """

    def __init__(
        self,
        default_queue: str = BACKFILL_QUEUE,
        broker: str | None = None,
        backend: str | None = None,
        include: list[str] | None = None,
        config_source: dict[str, Any] | None = None,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        settings = load_settings()
        super().__init__(
            default_queue=default_queue,
            broker=broker or settings.celery_broker_url,
            backend=backend or settings.celery_result_backend,
            include=include,
            config_source=CELERY_CONFIG | (config_source or {}),
            inst_data=inst_data,
        )
        self._valkey = heartbeat.connect(str(self.broker))
        self._missed_since: dict[str, float] = {}

    @classmethod
    def config_type(cls) -> Any:
        """As the stock launcher's, but the result backend has no default of its own (it would be ``rpc://``)."""
        fields = dict(cast("Mapping[str, Any]", super().config_type()))
        return {name: field for name, field in fields.items() if name != "backend"} | {
            "backend": fields["broker"],
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        return cls(inst_data=inst_data, **config_value)

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Asked by run monitoring for runs that have begun."""
        if heartbeat.is_alive(self._valkey, run.run_id):
            self._missed_since.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if self._task_state(run) == "FAILURE":
            return CheckRunHealthResult(WorkerStatus.FAILED, "The worker process that had this run died.")
        now = time.monotonic()
        if now - self._missed_since.setdefault(run.run_id, now) < SECOND_LOOK_AFTER_S:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        del self._missed_since[run.run_id]
        return CheckRunHealthResult(
            WorkerStatus.FAILED,
            f"No sign of life of this run for more than {heartbeat.TIME_TO_LIVE_S} s: its worker is dead.",
        )

    def terminate(self, run_id: str) -> bool:
        """Interrupt a run that a worker has; a run that none has is canceled at once."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        heartbeat.ask_to_stop(self._valkey, run_id)
        if not heartbeat.is_alive(self._valkey, run_id):
            # Still queued: the worker that fetches it finds it ended, and leaves it.
            self._instance.report_run_canceled(run)
        return True

    def is_lost(self, run: DagsterRun) -> bool:
        """Whether a run that was sent to the queue is neither there nor with a worker any more."""
        task_id = run.tags.get(TASK_ID_TAG)
        if task_id is None or run.status is not DagsterRunStatus.STARTING:
            return False
        return not heartbeat.is_alive(self._valkey, run.run_id) and not self._is_queued(task_id)

    def _is_queued(self, task_id: str) -> bool:
        needle = task_id.encode()
        if any(needle in message for message in self._valkey.hvals("unacked")):
            return True
        queues = (key for key in self._valkey.scan_iter(_type="LIST") if b"kombu" not in key)
        return any(needle in message for key in queues for message in self._valkey.lrange(key, 0, -1))

    def _task_state(self, run: DagsterRun) -> str | None:
        task_id = run.tags.get(TASK_ID_TAG)
        return str(self.celery.AsyncResult(task_id).state) if task_id else None
