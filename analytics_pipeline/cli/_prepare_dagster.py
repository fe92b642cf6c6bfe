"""Makes Dagster's tables, and ends the runs of an earlier stack. A process of its own: it imports Dagster."""

from __future__ import annotations

from dagster import DagsterInstance, RunsFilter
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES, DagsterRunStatus

LEFT_BY_EARLIER_STACK = (*IN_PROGRESS_RUN_STATUSES, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.QUEUED)


def main() -> None:
    """Every worker of the earlier stack is gone with it, so that none of its runs can still be under way."""
    with DagsterInstance.get() as instance:
        for record in instance.get_run_records(RunsFilter(statuses=list(LEFT_BY_EARLIER_STACK))):
            instance.report_run_failed(record.dagster_run, "The stack that ran this was stopped.")
        for record in instance.get_run_records(RunsFilter(statuses=[DagsterRunStatus.CANCELING])):
            instance.report_run_canceled(record.dagster_run, "The stack that ran this was stopped.")


if __name__ == "__main__":
    main()
