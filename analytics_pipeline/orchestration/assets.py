"""Dagster's assets, all partitioned by hour of event time, made from the catalogue of ``assets``."""

# No "from __future__ import annotations" here: Dagster reads the annotations of ``context`` and of resources.

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import cast

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    BackfillPolicy,
    FreshnessPolicy,
    HourlyPartitionsDefinition,
    ResourceParam,
    multi_asset,
)
from dagster import AssetSpec as DagsterAssetSpec

from analytics_pipeline.assets.catalog import BY_NAME
from analytics_pipeline.assets.spec import AssetSpec
from analytics_pipeline.orchestration.checks import gate_check
from analytics_pipeline.orchestration.fingerprint import refuse_stale_code
from analytics_pipeline.orchestration.hourly import Event, domains_of_run, is_live, materialize_hours, mode_of_run
from analytics_pipeline.orchestration.live_run import run_live
from analytics_pipeline.orchestration.metadata import Metadata, definition_metadata, plot_metadata
from analytics_pipeline.orchestration.partitions import MAX_RANGE_HOURS, hourly_partitions
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.records import DERIVED, RAW_EVENTS, AssetName, DerivedHours, DerivedName, HourOutcome
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.row_counts import rows_per_minute

OWNERS = ["team:analytics"]

#: Name of the step that computes the derived assets.
DERIVED_STEP = "derived"

#: The live path refreshes every few seconds; silence this long means no data, or a stopped daemon.
FRESHNESS = FreshnessPolicy.time_window(fail_window=timedelta(hours=1), warn_window=timedelta(minutes=10))


def build_assets(settings: Settings) -> list[AssetsDefinition]:
    """Every asset of the catalogue: raw events by themselves, the derived ones in one step that takes any of them."""
    partitions = hourly_partitions(settings.partitions_start)
    return [_raw_events(settings, partitions), _derived(settings, partitions)]


def _spec(spec: AssetSpec, settings: Settings, partitions: HourlyPartitionsDefinition) -> DagsterAssetSpec:
    return DagsterAssetSpec(
        spec.name,
        deps=list(spec.reads),
        partitions_def=partitions,
        description=spec.description,
        group_name=spec.group,
        kinds=set(spec.kinds),
        owners=OWNERS,
        metadata=definition_metadata(spec.name, settings),
        code_version=spec.code_version,
        freshness_policy=FRESHNESS,
    )


def _raw_events(settings: Settings, partitions: HourlyPartitionsDefinition) -> AssetsDefinition:
    raw = BY_NAME[RAW_EVENTS]

    @multi_asset(
        name=RAW_EVENTS,
        specs=[_spec(raw, settings, partitions)],
        check_specs=[gate_check(RAW_EVENTS, partitions)],
        partitions_def=partitions,
        backfill_policy=BackfillPolicy.multi_run(max_partitions_per_run=MAX_RANGE_HOURS),
    )
    def raw_events(context: AssetExecutionContext, pipeline: ResourceParam[Pipeline]) -> Iterator[Event]:
        refuse_stale_code(context.run.tags)
        yield from _materialize(context, pipeline, raw)

    return raw_events


def _derived(settings: Settings, partitions: HourlyPartitionsDefinition) -> AssetsDefinition:
    """One step for all derived assets. Any of them can be selected and materialized alone; only a re-execution
    "from failure" begins with the first of those that the run had selected."""

    @multi_asset(
        name=DERIVED_STEP,
        specs=[_spec(BY_NAME[name], settings, partitions) for name in DERIVED],
        check_specs=[gate_check(name, partitions) for name in DERIVED],
        can_subset=True,
        partitions_def=partitions,
        backfill_policy=BackfillPolicy.multi_run(max_partitions_per_run=MAX_RANGE_HOURS),
    )
    def derived(context: AssetExecutionContext, pipeline: ResourceParam[Pipeline]) -> Iterator[Event]:
        refuse_stale_code(context.run.tags)
        selected = {key.to_user_string() for key in context.selected_asset_keys}
        if is_live(context.run.tags) and selected == set(DERIVED):
            yield from run_live(context, pipeline)
            return
        for name in DERIVED:
            if name in selected:
                yield from _materialize(context, pipeline, BY_NAME[name])

    return derived


def _materialize(context: AssetExecutionContext, pipeline: Pipeline, spec: AssetSpec) -> Iterator[Event]:
    yield from materialize_hours(
        context,
        spec.name,
        compute=lambda hours: _compute(context, pipeline, spec, hours),
        states=lambda hours: pipeline.hour_states(spec.name, hours),
        extra=lambda outcomes: _plots(pipeline, spec.name, outcomes),
    )


def _compute(
    context: AssetExecutionContext, pipeline: Pipeline, spec: AssetSpec, hours: Sequence[datetime]
) -> DerivedHours:
    run = context.run
    if spec.name == RAW_EVENTS:
        return pipeline.rebuild_raw_hours(hours, run.run_id)
    return pipeline.derive_hours(
        cast(DerivedName, spec.name), hours, mode_of_run(run.tags), run.run_id, domains_of_run(run.tags)
    )


def _plots(pipeline: Pipeline, name: AssetName, outcomes: Sequence[HourOutcome]) -> dict[datetime, Metadata]:
    """The small plots of a full recompute. None on the live path: they would be drawn every few seconds."""
    hours = [outcome.hour for outcome in outcomes if outcome.mode == "full"]
    if not hours:
        return {}
    with pipeline.connection() as conn:
        return {hour: plot_metadata(counts) for hour, counts in rows_per_minute(conn, name, hours).items()}
