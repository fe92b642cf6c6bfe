"""Dagster's assets, all partitioned by hour of event time, made from the catalogue of ``assets``."""

# No "from __future__ import annotations" here: Dagster reads the annotations of ``context`` and of resources.

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
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

from analytics_pipeline.assets.catalog import ASSETS
from analytics_pipeline.assets.spec import AssetSpec
from analytics_pipeline.orchestration.checks import gate_check
from analytics_pipeline.orchestration.fingerprint import refuse_stale_code
from analytics_pipeline.orchestration.hourly import Event, domains_of_run, materialize_hours, mode_of_run
from analytics_pipeline.orchestration.metadata import Metadata, definition_metadata, plot_metadata
from analytics_pipeline.orchestration.partitions import MAX_RANGE_HOURS, hourly_partitions
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.records import RAW_EVENTS, AssetName, DerivedHours, DerivedName, HourOutcome
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.profile import rows_per_minute

OWNERS = ["team:analytics"]

#: The live path refreshes every few seconds; silence this long means no data, or a stopped daemon.
FRESHNESS = FreshnessPolicy.time_window(fail_window=timedelta(hours=1), warn_window=timedelta(minutes=10))


def build_assets(settings: Settings) -> list[AssetsDefinition]:
    """Every asset of the catalogue."""
    partitions = hourly_partitions(settings.partitions_start)
    return [_as_asset(spec, settings, partitions) for spec in ASSETS]


def _as_asset(spec: AssetSpec, settings: Settings, partitions: HourlyPartitionsDefinition) -> AssetsDefinition:
    decorate = asset(
        name=spec.name,
        deps=list(spec.reads),
        partitions_def=partitions,
        check_specs=[gate_check(spec.name, partitions)],
        backfill_policy=BackfillPolicy.multi_run(max_partitions_per_run=MAX_RANGE_HOURS),
        # The rows are in the database: nothing is handed from step to step.
        dagster_type=cast(DagsterType, Nothing),
        description=spec.description,
        group_name=spec.group,
        kinds=set(spec.kinds),
        owners=OWNERS,
        metadata=definition_metadata(spec.name, settings),
        code_version=spec.code_version,
        freshness_policy=FRESHNESS,
    )
    return decorate(_body(spec))


def _body(spec: AssetSpec) -> Callable[..., Iterator[Event]]:
    def materialize(context: AssetExecutionContext, pipeline: ResourceParam[Pipeline]) -> Iterator[Event]:
        refuse_stale_code(context.run.tags)
        yield from materialize_hours(
            context,
            compute=lambda hours: _compute(context, pipeline, spec, hours),
            states=lambda hours: pipeline.hour_states(spec.name, hours),
            extra=lambda outcome: _plot(pipeline, spec.name, outcome),
        )

    return materialize


def _compute(
    context: AssetExecutionContext, pipeline: Pipeline, spec: AssetSpec, hours: Sequence[datetime]
) -> DerivedHours:
    run = context.run
    if spec.name == RAW_EVENTS:
        return pipeline.rebuild_raw_hours(hours, run.run_id)
    return pipeline.derive_hours(
        cast(DerivedName, spec.name), hours, mode_of_run(run.tags), run.run_id, domains_of_run(run.tags)
    )


def _plot(pipeline: Pipeline, name: AssetName, outcome: HourOutcome) -> Metadata:
    """The small plot of a full recompute. None on the live path: it would be drawn every few seconds."""
    if outcome.mode != "full":
        return {}
    with pipeline.connection() as conn:
        return plot_metadata(rows_per_minute(conn, name, outcome.hour))
