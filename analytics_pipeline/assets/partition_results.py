"""What becomes of each domain partition of a slice, from what its gate said and what was written. Pure.

Who computes, and in which transaction, is not decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from analytics_pipeline.assets.calculation import Key, Validated, Work, Written
from analytics_pipeline.assets.spec import AssetSpec
from analytics_pipeline.quality.gates import quarantines
from analytics_pipeline.records import DerivedName, DomainOutcome
from analytics_pipeline.storage.partition_state import PartitionState
from analytics_pipeline.storage.pending_work import WHOLE, Invalidation, Scope

#: Failing rows whose reasons are kept with a quarantined domain partition, for people.
SAMPLE_REASONS = 20


def must_quarantine(spec: AssetSpec, work: Work, validated: Validated) -> bool:
    """Whether nothing of a domain partition is written."""
    if spec.failed_rows == "withheld":
        # A derived figure that fails is a fault of ours: it is never written, whoever released it.
        return validated.refused or (bool(validated.rows_failed) and not validated.withheld_series)
    return not is_released(work) and quarantines(work.domain, validated.rows_seen, validated.rows_failed)


def held_work(
    asset: DerivedName, works: Sequence[Work], validated: Mapping[Key, Validated], quarantined: Collection[Key]
) -> list[Invalidation]:
    """What was quarantined stays pending, as held work: all of it, or the series that are withheld."""
    held: list[Invalidation] = []
    for work in works:
        series = validated[work.key].withheld_series
        if work.key in quarantined:
            scopes = work.pending.scopes() if work.pending and not work.whole else [WHOLE]
        elif series:
            scopes = [Scope(series=series)]
        else:
            continue
        held += [
            Invalidation(asset=asset, domain_id=work.domain_id, hour=work.hour, scope=scope, reason="quarantined")
            for scope in scopes
        ]
    return held


def is_released(work: Work) -> bool:
    return work.state.status == "released"


def holds_rows(written: Written | None) -> bool:
    return written is not None and bool(written.rows or written.rows_failed or written.rows_superseded)


def outcome_of(work: Work, validated: Validated, written: Written | None) -> DomainOutcome:
    return DomainOutcome(
        domain=work.domain.name,
        rows=work.state.rows if written is None else written.rows,
        written=0 if written is None else written.written,
        dead_letters=0 if written is None else validated.dead_letters,
        late_rows=validated.late_rows,
        gate=validated.gate,
        quarantined=written is None or bool(validated.withheld_series),
        rows_seen=validated.rows_seen,
        rows_failed=validated.rows_failed,
    )


def state_of(work: Work, validated: Validated, written: Written | None) -> PartitionState:
    detail = _detail(validated)
    if written is None:
        failed = validated.rows_failed
        return replace(work.state, status="quarantined", rows_failed=failed, detail=detail)
    failed = written.rows_failed or (validated.rows_failed if validated.withheld_series else 0)
    if validated.withheld_series:
        status = "quarantined"
    else:
        # A released domain partition stays released while rows of it fail.
        status = "released" if is_released(work) and validated.rows_failed else "open"
    return PartitionState(
        rows=written.rows,
        rows_failed=failed,
        rows_superseded=written.rows_superseded,
        status=status,
        detail=detail,
    )


def _detail(validated: Validated) -> dict[str, Any]:
    gate = validated.gate
    if not validated.rows_failed:
        return {}
    found: dict[str, Any] = {
        "rows": gate.rows,
        "rows_seen": validated.rows_seen,
        "rows_failed": validated.rows_failed,
        "expectations": {f"{one.name}({one.column})": one.failed for one in gate.outcomes if one.failed},
        "samples": dict(list(gate.reasons.items())[:SAMPLE_REASONS]),
    }
    if validated.withheld_series:
        found["withheld_series"] = list(validated.withheld_series)
    return found
