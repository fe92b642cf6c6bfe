"""Live runs are launched at once, all others wait in Dagster's queue. Named in ``dagster.yaml``.

A run that was launched and waits for a worker has the status STARTING, and Dagster cancels no such run: of a
canceled backfill nearly everything would still be computed. A run that is QUEUED is canceled at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from dagster import DagsterRun, QueuedRunCoordinator, SubmitRunContext
from dagster._core.run_coordinator import DefaultRunCoordinator
from dagster._serdes import ConfigurableClassData

from analytics_pipeline.orchestration.tags import BACKFILL_QUEUE, LIVE_QUEUE, QUEUE_TAG
from analytics_pipeline.settings import load_settings


class LiveFirstRunCoordinator(QueuedRunCoordinator):
    """``QueuedRunCoordinator`` that passes live runs on.

    Of the others, ``BACKFILL_MAX_RUNS`` are launched at once. Live runs do not count, so that no number of them
    holds up the rest.
    """

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """From the section ``config`` of ``dagster.yaml``; the limit comes from the settings."""
        limit = {"key": QUEUE_TAG, "value": BACKFILL_QUEUE, "limit": load_settings().backfill_max_runs}
        given = dict(config_value) | {"max_concurrent_runs": -1, "tag_concurrency_limits": [limit]}
        return cls(inst_data=inst_data, **given)

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Launch a live run; queue any other, under the name of its workers' queue, which the limit counts by."""
        run = context.dagster_run
        queue = run.tags.get(QUEUE_TAG)
        if queue == LIVE_QUEUE:
            return self._launch(context)
        if queue is None:
            self._instance.add_run_tags(run.run_id, {QUEUE_TAG: BACKFILL_QUEUE})
        return super().submit_run(context)

    def _launch(self, context: SubmitRunContext) -> DagsterRun:
        at_once = DefaultRunCoordinator()
        at_once.register_instance(self._instance)
        return at_once.submit_run(context)
