"""Runs one asset over the hours of a run, each committed and reported by itself. Knows no asset's content.

Dagster reports a range run as a whole: every partition materialized, and one check result without a partition
that leaves the planned ones open. Here each hour is reported as soon as it is committed, so that a run that is
stopped, or fails in the middle, shows exactly what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

import psycopg2
import structlog
from dagster import (
    AssetCheckEvaluation,
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    Failure,
    MaterializeResult,
    Output,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from analytics_pipeline.errors import PipelineError
from analytics_pipeline.orchestration.checks import verdict
from analytics_pipeline.orchestration.metadata import Metadata, outcome_metadata
from analytics_pipeline.orchestration.partitions import key_of, range_of_run
from analytics_pipeline.orchestration.tags import CLAIM_TAG, INCREMENTAL, MODE_TAG, PARENT_RUN_TAG
from analytics_pipeline.records import HourOutcome, Mode

log = structlog.get_logger(__name__)

Compute: TypeAlias = Callable[[datetime], HourOutcome]
Extra: TypeAlias = Callable[[HourOutcome], Metadata]
Event: TypeAlias = AssetMaterialization | AssetCheckEvaluation | MaterializeResult[Any] | Output[None]

#: Errors named in the message of a failed range; the log of the run has them all.
ERRORS_SHOWN = 3


def mode_of_run(tags: Mapping[str, str]) -> Mode:
    """Incremental only for the run that the drain sensor asked for. A re-execution inherits its tags: full."""
    asked_by_sensor = tags.get(MODE_TAG) == INCREMENTAL and bool(tags.get(CLAIM_TAG))
    return "incremental" if asked_by_sensor and PARENT_RUN_TAG not in tags else "full"


def hours_of_run(tags: Mapping[str, str]) -> Sequence[datetime]:
    """The hours of a run, ascending.

    Raises:
        PipelineError: the run names no hours.
    """
    hours = range_of_run(tags)
    if hours is None:
        raise PipelineError("this run names no hours: choose a partition, or a range, when materializing")
    return list(hours)


def materialize_hours(context: AssetExecutionContext, compute: Compute, extra: Extra) -> Iterator[Event]:
    """Compute each hour of the run and report it. ``extra`` adds metadata to a materialization.

    An hour that fails does not stop the others; the step fails in the end. What a live run quarantines does not
    even stop the next assets: the other domains and hours of the run go on to them.

    Raises:
        Failure: hours were quarantined or failed; those are not materialized.
    """
    mode = mode_of_run(context.run.tags)
    hours = hours_of_run(context.run.tags)
    tally = _Tally(hours=len(hours))
    for hour in hours:
        try:
            outcome = compute(hour)
        except Exception as error:
            if len(hours) == 1 or isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
                raise  # the database is out of reach: the other hours would wait for it in vain
            context.log.exception(f"{key_of(hour)} failed")  # and is raised again as the step's failure
            tally.errors[key_of(hour)] = error
            continue
        tally.add(outcome)
        if mode == "incremental" and not outcome.domains:
            continue  # no marks, nothing written: nothing to report
        yield from _report(context, outcome, extra, alone=len(hours) == 1)
    tally.raise_if_failed(mode)
    yield from _outputs(context, reported_by_dagster=len(hours) == 1 and bool(tally.materialized))


def _report(context: AssetExecutionContext, outcome: HourOutcome, extra: Extra, *, alone: bool) -> Iterator[Event]:
    if outcome.quarantined:
        log.error("quarantined", asset=outcome.asset, hour=key_of(outcome.hour), domains=list(outcome.quarantined))
    elif alone:
        # Left to Dagster, which adds code and data versions. It does so for all partitions of a run alike,
        # hence not for ranges.
        yield MaterializeResult(metadata=outcome_metadata(outcome) | extra(outcome))
    else:
        yield _materialization(outcome, extra)
    yield verdict(outcome, context.instance)


def _materialization(outcome: HourOutcome, extra: Extra) -> AssetMaterialization:
    return AssetMaterialization(
        asset_key=AssetKey(outcome.asset),
        partition=key_of(outcome.hour),
        metadata=outcome_metadata(outcome) | extra(outcome),
    )


def _outputs(context: AssetExecutionContext, *, reported_by_dagster: bool) -> Iterator[Output[None]]:
    """The outputs that let the next steps start: the asset's, which reports nothing more, and its check's."""
    if not reported_by_dagster:
        # Dagster marks its own observations so: an output without a materialization.
        yield Output(None, metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})
    for key in context.selected_asset_check_keys:
        yield Output(None, output_name=f"{key.asset_key.to_python_identifier()}_{key.name}")


def _quarantine_text(key: str, domains: Sequence[str]) -> str:
    return (
        f"{key}: the gate quarantined {', '.join(domains)}; nothing of it was written. See the check's failing "
        "expectations; fix the data or the rule and materialize again, or accept the content with "
        "'analytics-pipeline gates release'"
    )


@dataclass
class _Tally:
    """What became of the hours of a run."""

    hours: int
    materialized: int = 0
    wrote: bool = False
    quarantined: dict[str, Sequence[str]] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)

    def add(self, outcome: HourOutcome) -> None:
        self.wrote = self.wrote or len(outcome.quarantined) < len(outcome.domains)
        if outcome.quarantined:
            self.quarantined[key_of(outcome.hour)] = outcome.quarantined
        elif outcome.mode == "full" or outcome.domains:
            self.materialized += 1

    def raise_if_failed(self, mode: Mode) -> None:
        if not self.quarantined and not self.errors:
            return
        if mode == "incremental" and self.wrote and not self.errors:
            return
        lines = [_quarantine_text(key, domains) for key, domains in self.quarantined.items()]
        lines += [f"{key}: {error}" for key, error in self.errors.items()]
        shown = "\n".join(lines[:ERRORS_SHOWN])
        if self.hours > 1:
            shown = f"{len(lines)} of {self.hours} hours were not materialized, the others were:\n{shown}"
        raise Failure(shown, allow_retries=False) from next(iter(self.errors.values()), None)
