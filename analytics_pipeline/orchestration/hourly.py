"""Runs one asset over the hours of a run, and reports each hour as it really is. Knows no asset's content.

Dagster reports a range run as a whole: every partition materialized, and one check result without a partition
that leaves the planned ones open. Here each hour is reported separately. What was committed by a run that did not live
to report it, the next tick of the sensor reports: see ``outcome_reports``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any, TypeAlias

import structlog
from dagster import (
    AssetCheckEvaluation,
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    Failure,
    MaterializeResult,
    Output,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from analytics_pipeline.errors import PipelineError
from analytics_pipeline.orchestration.checks import check_result, expired_check_result
from analytics_pipeline.orchestration.event_batches import event_batch
from analytics_pipeline.orchestration.metadata import Metadata, outcome_metadata
from analytics_pipeline.orchestration.partitions import key_of, range_of_run
from analytics_pipeline.orchestration.tags import (
    DOMAINS_TAG,
    INCREMENTAL,
    LIVE_QUEUE,
    MODE_TAG,
    PARENT_RUN_TAG,
    QUEUE_TAG,
    REQUEST_TAG,
)
from analytics_pipeline.records import AssetName, DerivedHours, DomainState, HourOutcome, Mode

log = structlog.get_logger(__name__)

Compute: TypeAlias = Callable[[Sequence[datetime]], DerivedHours]
States: TypeAlias = Callable[[Sequence[datetime]], Mapping[datetime, Sequence[DomainState]]]
Extra: TypeAlias = Callable[[Sequence[HourOutcome]], Mapping[datetime, Metadata]]
Event: TypeAlias = (
    AssetMaterialization | AssetObservation | AssetCheckEvaluation | MaterializeResult[Any] | Output[None]
)

#: Errors named in the message of a failed run; the log of the run has them all.
ERRORS_SHOWN = 3


def mode_of_run(tags: Mapping[str, str]) -> Mode:
    """Incremental only for the run that the drain sensor asked for. A re-execution inherits its tags: full."""
    asked_by_sensor = tags.get(MODE_TAG) == INCREMENTAL and bool(tags.get(REQUEST_TAG))
    return "incremental" if asked_by_sensor and PARENT_RUN_TAG not in tags else "full"


def is_live(tags: Mapping[str, str]) -> bool:
    """Whether the sensor asked for this run, for the hours in which data arrives now."""
    return mode_of_run(tags) == "incremental" and tags.get(QUEUE_TAG) == LIVE_QUEUE


def domains_of_run(tags: Mapping[str, str]) -> Sequence[str] | None:
    """The domains that a run is restricted to by its tag; None: all."""
    text = tags.get(DOMAINS_TAG, "")
    return tuple(part.strip() for part in text.split(",") if part.strip()) or None


def hours_of_run(tags: Mapping[str, str]) -> Sequence[datetime]:
    """The hours of a run, ascending.

    Raises:
        PipelineError: the run names no hours.
    """
    hours = range_of_run(tags)
    if hours is None:
        raise PipelineError("this run names no hours: choose a partition, or a range, when materializing")
    return list(hours)


def materialize_hours(
    context: AssetExecutionContext, asset: AssetName, *, compute: Compute, states: States, extra: Extra
) -> Iterator[Event]:
    """Compute the hours of the run for one asset and report them.

    A domain that is quarantined or fails holds back only itself. In a live run the hour is materialized with what was
    committed, and its check is red; in a run that a person started such an hour is not materialized, and the step
    fails and names it.

    Args:
        compute: commits slice by slice.
        states: what each hour holds afterwards, by domain.
        extra: adds metadata to the materializations of some hours.

    Raises:
        Failure: see above.
    """
    hours = hours_of_run(context.run.tags)
    done = compute(hours)
    yield from report_hours(context, asset, done, states(hours), extra)


def report_hours(
    context: AssetExecutionContext,
    asset: AssetName,
    done: DerivedHours,
    held: Mapping[datetime, Sequence[DomainState]],
    extra: Extra = lambda _outcomes: {},
) -> Iterator[Event]:
    """Report what was done to some hours of an asset, and fail where a run has to.

    Raises:
        Failure: see `materialize_hours`.
    """
    mode = mode_of_run(context.run.tags)
    hours = hours_of_run(context.run.tags)
    reported_by_dagster = False
    more = extra(done.outcomes)
    with event_batch(context.instance) if len(hours) > 1 else nullcontext():
        for outcome in done.outcomes:
            errors = {one.domain: one.error for one in done.errors if one.hour == outcome.hour}
            if mode == "incremental" and not outcome.domains and not errors:
                continue  # no pending work, nothing written: nothing to report
            metadata = outcome_metadata(outcome, held.get(outcome.hour, ())) | more.get(outcome.hour, {})
            alone = list(hours) == [outcome.hour]
            for event in _report(context, outcome, errors, held.get(outcome.hour, ()), metadata, alone=alone):
                reported_by_dagster |= isinstance(event, MaterializeResult)
                yield event
        for hour in done.expired:
            context.log.info(f"{asset} {key_of(hour)}: taken by retention; nothing was computed")
            yield expired_check_result(asset, hour)
    _raise_if_failed(done, mode, len(hours))
    yield from _outputs(context, asset, reported_by_dagster=reported_by_dagster)


def is_materialized(outcome: HourOutcome, errors: Mapping[str, Exception]) -> bool:
    """Whether the hour's content is what it should be, or, in a live run, at least some of it is."""
    committed = len(outcome.quarantined) < len(outcome.domains)
    if outcome.mode == "full":
        return not outcome.quarantined and not errors
    return committed


def _report(
    context: AssetExecutionContext,
    outcome: HourOutcome,
    errors: Mapping[str, Exception],
    held: Sequence[DomainState],
    metadata: Metadata,
    *,
    alone: bool,
) -> Iterator[Event]:
    if outcome.quarantined:
        log.error("quarantined", asset=outcome.asset, hour=key_of(outcome.hour), domains=list(outcome.quarantined))
    materialized = is_materialized(outcome, errors)
    if not materialized:
        if len(outcome.domains) > len(outcome.quarantined):
            # What was committed is there, though the hour is not what was asked for.
            yield AssetObservation(AssetKey(outcome.asset), partition=key_of(outcome.hour), metadata=metadata)
    elif alone:
        # Left to Dagster, which adds code and data versions. It does so for all partitions of a run alike,
        # hence not for ranges.
        yield MaterializeResult(asset_key=AssetKey(outcome.asset), metadata=metadata)
    else:
        yield AssetMaterialization(AssetKey(outcome.asset), partition=key_of(outcome.hour), metadata=metadata)
    # In a batch, the evaluation is pointed to the materialization with which it is stored.
    yield check_result(outcome, held, errors, None if materialized and not alone else context.instance)


def _outputs(
    context: AssetExecutionContext, asset: AssetName, *, reported_by_dagster: bool
) -> Iterator[Output[None]]:
    """The outputs that say that the asset is done: its own, which reports nothing more, and its check's."""
    if not reported_by_dagster:
        # Dagster describes its own observations like this: an output without a materialization.
        metadata = {SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True}
        yield Output(None, output_name=asset, metadata=metadata)
    for key in context.selected_asset_check_keys:
        if key.asset_key == AssetKey(asset):
            yield Output(None, output_name=f"{asset}_{key.name}")


def _quarantine_text(key: str, domains: Sequence[str]) -> str:
    return (
        f"{key}: the gate quarantined {', '.join(domains)}; nothing of it was written. See the check's failing "
        "expectations; fix the data or the rule and materialize again, or accept the content with "
        "'analytics-pipeline gates release'"
    )


def _raise_if_failed(done: DerivedHours, mode: Mode, hours: int) -> None:
    quarantined = {key_of(one.hour): one.quarantined for one in done.outcomes if one.quarantined}
    if not quarantined and not done.errors:
        return
    if mode == "incremental" and any(is_materialized(one, {}) for one in done.outcomes):
        return
    lines = [_quarantine_text(key, domains) for key, domains in quarantined.items()]
    lines += [f"{key_of(one.hour)}: {one.domain}: {one.error}" for one in done.errors]
    shown = "\n".join(lines[:ERRORS_SHOWN])
    if hours > 1:
        bad = len(quarantined.keys() | {key_of(one.hour) for one in done.errors})
        shown = f"{bad} of {hours} hours were not materialized, the others were:\n{shown}"
    raise Failure(shown, allow_retries=False) from (done.errors[0].error if done.errors else None)
