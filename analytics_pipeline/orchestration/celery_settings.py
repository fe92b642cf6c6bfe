"""How Celery is set up, on both sides: the launcher that sends runs, and the workers that take them."""

from __future__ import annotations

from typing import Any, Final, cast

from dagster_celery.config import DEFAULT_CONFIG
from dagster_celery.defaults import broker_transport_options

from analytics_pipeline.orchestration.tags import BACKFILL_QUEUE

#: A message that a worker fetched and lost before it began goes back into its queue after this. Runs that have
#: begun do not depend on it: they are acknowledged when they begin, and their signs of life tell the rest.
VISIBILITY_TIMEOUT_S: Final = 120

#: Warm-up of a worker's child: imports are inherited, connections and a first gate are not.
CHILD_START_TIMEOUT_S: Final = 120.0

CELERY_CONFIG: Final[dict[str, Any]] = {
    **cast("dict[str, Any]", DEFAULT_CONFIG),
    "task_default_queue": BACKFILL_QUEUE,
    # A message is fetched only when a slot is free: a run waits in Valkey, where every worker sees it, and a
    # worker that dies takes along no run but the one it works on.
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    # Acknowledged when it begins: a killed worker's run is failed by run monitoring, and its hour is asked for
    # again from the ledger. Delivering the message again would start a run that Dagster holds for ended.
    "task_acks_late": False,
    "task_ignore_result": False,
    "result_expires": 24 * 3600,
    "worker_proc_alive_timeout": CHILD_START_TIMEOUT_S,
    "worker_hijack_root_logger": False,
    "worker_send_task_events": False,
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {
        **broker_transport_options,
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
    },
}
