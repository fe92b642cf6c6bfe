"""Names of run tags and queues: what the sensor, the launcher and the assets tell each other through a run."""

from __future__ import annotations

from typing import Final

#: ``incremental``: the run computes pending work. Anything else, or none: the whole hour is replaced.
MODE_TAG: Final = "analytics_pipeline/mode"
#: Which request of the drain sensor a run is; an hour's run request in the database has the same id.
REQUEST_TAG: Final = "analytics_pipeline/run_request"
#: Fingerprint of the sources that the code location had loaded when it asked for the run.
CODE_TAG: Final = "analytics_pipeline/code"

#: Restricts a rerun to some domains, named with commas between.
DOMAINS_TAG: Final = "analytics_pipeline/domains"

QUEUE_TAG: Final = "dagster-celery/queue"
#: One worker slot serves nothing else, so that no backfill ever stands before live data.
LIVE_QUEUE: Final = "live"
#: Also where runs without a queue tag go: those of the UI, and backfills.
BACKFILL_QUEUE: Final = "backfill"

BACKFILL_TAG: Final = "dagster/backfill"
#: Seconds after which Dagster's run monitoring ends a run.
LONGEST_TIME_TAG: Final = "dagster/max_runtime"

PARTITION_TAG: Final = "dagster/partition"
RANGE_START_TAG: Final = "dagster/asset_partition_range_start"
RANGE_END_TAG: Final = "dagster/asset_partition_range_end"
PARENT_RUN_TAG: Final = "dagster/parent_run_id"
TASK_ID_TAG: Final = "dagster-celery/task_id"

INCREMENTAL: Final = "incremental"
