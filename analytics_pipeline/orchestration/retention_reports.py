"""Reports hours that retention takes: otherwise Dagster's pages would keep showing their last figures as if current.

An observation and a result of the gate. Not a materialization: that would make an asset look fresh that gets no data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from dagster import AssetKey, AssetObservation, DagsterInstance

from analytics_pipeline.orchestration.checks import expired_check_result, forget_check_results
from analytics_pipeline.orchestration.event_batches import event_batch
from analytics_pipeline.orchestration.metadata import EXPIRED_METADATA
from analytics_pipeline.orchestration.partitions import key_of


def report_expired(
    instance: DagsterInstance, expired: Sequence[tuple[str, datetime]], *, valid: Callable[[datetime], bool]
) -> None:
    """Say of each (asset, hour) that it holds no rows any more.

    Args:
        valid: whether an hour is a partition; Dagster has no place for others.
    """
    hours: dict[str, list[datetime]] = {}
    for asset, hour in expired:
        if valid(hour):
            hours.setdefault(asset, []).append(hour)
    with event_batch(instance):
        for asset, its in hours.items():
            forget_check_results(instance, asset, [key_of(hour) for hour in its])
            for hour in its:
                instance.report_runless_asset_event(
                    AssetObservation(AssetKey(asset), partition=key_of(hour), metadata=EXPIRED_METADATA)
                )
                instance.report_runless_asset_event(expired_check_result(asset, hour))
