"""What time alone asks for: the daily pruning of Dagster's storage, the hourly retention. Glue only."""

# No "from __future__ import annotations" here: Dagster reads the annotations of ``context`` and of resources.

from datetime import UTC, datetime, timedelta

from dagster import (
    DagsterInstance,
    DefaultScheduleStatus,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    ResourceParam,
    ScheduleDefinition,
    in_process_executor,
    job,
    op,
)
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import SensorInstigatorData

from analytics_pipeline.domains import discover
from analytics_pipeline.orchestration.partitions import last_partition_hour
from analytics_pipeline.orchestration.prune import prune, summary
from analytics_pipeline.orchestration.reporting import Cursor
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.orchestration.retention_reports import report_expired
from analytics_pipeline.orchestration.sensors import SENSOR_NAME
from analytics_pipeline.storage import outcomes
from analytics_pipeline.storage.batches import coalesce
from analytics_pipeline.storage.pending_work import batches_named
from analytics_pipeline.storage.retention import expire

#: At night and off the full hour, when schedules of other systems run.
PRUNE_CRON = "37 3 * * *"
RETENTION_CRON = "23 * * * *"
TIDY_CRON = "41 * * * *"


@op(description="Deletes what the live path left in Dagster's storage and no page needs any more.")
def prune_storage(context: OpExecutionContext, pipeline: ResourceParam[Pipeline]) -> None:
    """See ``orchestration.prune``."""
    keep = timedelta(days=pipeline.settings.dagster_retention_days)
    lines = summary(prune(context.instance, datetime.now(UTC) - keep))
    context.add_output_metadata({"figures": MetadataValue.md("\n".join(f"- {line}" for line in lines))})


@op(description="Deletes hours that are older than RETENTION_DAYS, and writes down the floor.")
def expire_hours(context: OpExecutionContext, pipeline: ResourceParam[Pipeline]) -> None:
    """See ``storage.retention``."""
    now, first = datetime.now(UTC), pipeline.settings.partitions_start
    with pipeline.connection() as conn:
        expired = expire(
            conn,
            pipeline.domains.by_name,
            now,
            pipeline.settings.retention_days,
            # Also of domains that are not enabled: their rows go as well, and they may come back.
            look_back=max(domain.history for domain in (*pipeline.domains, *discover())),
            announce=lambda expired: report_expired(
                context.instance, expired, valid=lambda hour: first <= hour <= last_partition_hour(now)
            ),
        )
    context.add_output_metadata(
        {"floor": str(expired.floor), "hours": expired.hours, "rows": MetadataValue.json(expired.rows)}
    )


@job(executor_def=in_process_executor)
def prune_dagster_storage() -> None:
    """Keeps Dagster's database small."""
    prune_storage()


@op(description="Coalesces records of reported batches by the hour; drops outcomes that were reported long ago.")
def tidy_records(context: OpExecutionContext, pipeline: ResourceParam[Pipeline]) -> None:
    """See ``storage.batches.coalesce`` and ``storage.outcomes.prune``."""
    reported = _reported_batch_id(context.instance)
    with pipeline.connection() as conn:
        batches_coalesced = coalesce(conn, reported, batches_named(conn)) if reported else 0
        outcomes_dropped = outcomes.prune(conn, datetime.now(UTC))
        conn.commit()
    context.add_output_metadata({"batches_coalesced": batches_coalesced, "outcomes_dropped": outcomes_dropped})


def _reported_batch_id(instance: DagsterInstance) -> int:
    """The newest batch that the sensor has reported wholly; 0 where that is not known."""
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        data = state.instigator_data
        if state.instigator_name == SENSOR_NAME and isinstance(data, SensorInstigatorData):
            return Cursor.parse(data.cursor).batch_id
    return 0


@job(executor_def=in_process_executor)
def tidy() -> None:
    """Keeps the pipeline's own records small."""
    tidy_records()


@job(executor_def=in_process_executor)
def retention() -> None:
    """Keeps the pipeline's tables to RETENTION_DAYS."""
    expire_hours()


def build_jobs() -> list[JobDefinition]:
    """The jobs of the schedules: they can also be started by hand."""
    return [prune_dagster_storage, tidy, retention]


def build_schedules(retention_days: int) -> list[ScheduleDefinition]:
    """Pruning runs by default; retention where there is one."""
    on, off = DefaultScheduleStatus.RUNNING, DefaultScheduleStatus.STOPPED
    return [
        ScheduleDefinition(job=prune_dagster_storage, cron_schedule=PRUNE_CRON, default_status=on),
        ScheduleDefinition(job=tidy, cron_schedule=TIDY_CRON, default_status=on),
        ScheduleDefinition(
            job=retention, cron_schedule=RETENTION_CRON, default_status=on if retention_days else off
        ),
    ]
