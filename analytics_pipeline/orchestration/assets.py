"""The five assets, all partitioned by hour of event time. What they compute is in ``flow``."""

# No "from __future__ import annotations" here: Dagster reads the annotations of ``context`` and of resources.

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import cast

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    BackfillPolicy,
    DagsterType,
    FreshnessPolicy,
    HourlyPartitionsDefinition,
    Nothing,
    ResourceParam,
    asset,
)

from analytics_pipeline.orchestration.checks import gate_check
from analytics_pipeline.orchestration.fingerprint import refuse_stale_code
from analytics_pipeline.orchestration.hourly import Event, materialize_hours, mode_of_run
from analytics_pipeline.orchestration.metadata import Metadata, definition_metadata, plot_metadata
from analytics_pipeline.orchestration.partitions import MAX_RANGE_HOURS, hourly_partitions
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.records import DERIVED, RAW_EVENTS, AssetName, DerivedName, HourOutcome
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.profile import rows_per_minute

OWNERS = ["team:analytics"]

#: Raised by hand when the same input gives other rows: Dagster then shows which partitions are outdated.
CODE_VERSIONS: Mapping[AssetName, str] = {
    "raw_events": "1",
    "normalized_measurements": "1",
    "window_aggregates": "1",
    "anomalies": "1",
    "kpis": "1",
}

GROUPS: Mapping[AssetName, str] = {
    "raw_events": "ingest",
    "normalized_measurements": "measurements",
    "window_aggregates": "measurements",
    "anomalies": "insight",
    "kpis": "insight",
}

KINDS: Mapping[AssetName, set[str]] = {
    "raw_events": {"kafka", "postgres"},
    "normalized_measurements": {"python", "postgres"},
    "window_aggregates": {"polars", "postgres"},
    "anomalies": {"numpy", "postgres"},
    "kpis": {"polars", "postgres"},
}

DESCRIPTIONS: Mapping[AssetName, str] = {
    "raw_events": (
        "Every message as it came, by hour of its event time. The sensor `drain_kafka` fills it. Materializing "
        "an hour by hand reads the offsets recorded for it again, and adds what is missing."
    ),
    "normalized_measurements": "One row per measurement, in canonical form, with its position in Kafka.",
    "window_aggregates": "Count, mean, deviation, extremes and percentiles per series and window.",
    "anomalies": "What the detectors found in the windows, with the figures that explain it.",
    "kpis": "Key figures per machine and hour. Unknown is NULL with a reason, never zero.",
}

UPSTREAM: Mapping[AssetName, list[str]] = {
    "raw_events": [],
    "normalized_measurements": ["raw_events"],
    "window_aggregates": ["normalized_measurements"],
    "anomalies": ["window_aggregates"],
    "kpis": ["window_aggregates", "anomalies"],
}

#: The live path refreshes every few seconds; silence this long means no data, or a stopped daemon.
FRESHNESS = FreshnessPolicy.time_window(fail_window=timedelta(hours=1), warn_window=timedelta(minutes=10))


def build_assets(settings: Settings) -> list[AssetsDefinition]:
    """``raw_events`` and the four derived assets."""
    partitions = hourly_partitions(settings.partitions_start)
    return [_raw_events(settings, partitions), *(_derived(name, settings, partitions) for name in DERIVED)]


def _raw_events(settings: Settings, partitions: HourlyPartitionsDefinition) -> AssetsDefinition:
    def raw_events(context: AssetExecutionContext, pipeline: ResourceParam[Pipeline]) -> Iterator[Event]:
        refuse_stale_code(context.run.tags)
        yield from materialize_hours(
            context,
            compute=lambda hour: pipeline.rebuild_raw(hour, context.run.run_id),
            extra=lambda outcome: _plot(pipeline, RAW_EVENTS, outcome),
        )

    return _as_asset(RAW_EVENTS, raw_events, settings, partitions)


def _derived(name: DerivedName, settings: Settings, partitions: HourlyPartitionsDefinition) -> AssetsDefinition:
    def derived(context: AssetExecutionContext, pipeline: ResourceParam[Pipeline]) -> Iterator[Event]:
        refuse_stale_code(context.run.tags)
        mode = mode_of_run(context.run.tags)
        yield from materialize_hours(
            context,
            compute=lambda hour: pipeline.derive(name, hour, mode, context.run.run_id),
            extra=lambda outcome: _plot(pipeline, name, outcome),
        )

    return _as_asset(name, derived, settings, partitions)


def _as_asset(
    name: AssetName,
    body: Callable[..., Iterator[Event]],
    settings: Settings,
    partitions: HourlyPartitionsDefinition,
) -> AssetsDefinition:
    decorate = asset(
        name=name,
        deps=UPSTREAM[name],
        partitions_def=partitions,
        check_specs=[gate_check(name, partitions)],
        backfill_policy=BackfillPolicy.multi_run(max_partitions_per_run=MAX_RANGE_HOURS),
        # The rows are in the database: nothing is handed from step to step.
        dagster_type=cast(DagsterType, Nothing),
        description=DESCRIPTIONS[name],
        group_name=GROUPS[name],
        kinds=KINDS[name],
        owners=OWNERS,
        metadata=definition_metadata(name, settings),
        code_version=CODE_VERSIONS[name],
        freshness_policy=FRESHNESS,
    )
    return decorate(body)


def _plot(pipeline: Pipeline, name: AssetName, outcome: HourOutcome) -> Metadata:
    """The small plot of a full recompute. None on the live path: it would be drawn every few seconds."""
    if outcome.mode != "full":
        return {}
    with pipeline.connection() as conn:
        return plot_metadata(rows_per_minute(conn, name, outcome.hour))
