"""Pending work: what must be computed again, as rows that are only inserted and deleted.

A run deletes exactly the rows that its snapshot saw, in the transaction that writes what they asked for. Not here:
who computes, and when.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from analytics_pipeline.records import DERIVED, HOUR_S, DerivedName, PendingHour
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.partition_state import RESTS

#: Above so many series, a scope names time only: the list would cost more than it spares.
MAX_SERIES = 1000
#: More spans of one hour than this become one that covers them.
MAX_SPANS = 16

#: What may be done now. What waits for longer than a minute was asked for by a clock that ran ahead.
DUE = "not_before NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 minute'"

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A superset of what is stale in one domain partition.

    Attributes:
        series: only these series; None: all of them.
        spans: only these seconds of the hour, half-open; None: the whole hour.
        batches: of normalized_measurements, only what these batches brought; None: the whole hour.
        above_base: of window_aggregates, only the windows above the base, whose base windows are up to date.
        states: of window_aggregates, only what is computed of states.
    """

    series: tuple[int, ...] | None = None
    spans: Spans | None = None
    batches: tuple[int, ...] | None = None
    above_base: bool = False
    states: bool = False


WHOLE = Scope()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalidation:
    """Work to ask for: this scope of this domain partition is stale, for this reason.

    Attributes:
        not_before: until then it waits unread; None: it may be done at once.
    """

    asset: DerivedName
    domain_id: int
    hour: datetime
    scope: Scope = WHOLE
    reason: str
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """The pending work of one domain partition that a snapshot saw, merged.

    Attributes:
        whole: at least one row asks for the whole hour; the other fields do not matter then.
        spans: stale for all series.
        series, series_spans: stale for these series only.
        whole_series: stale for all of the hour, of these series; none of them is in ``series``.
        above_base: stale for all series in the windows above the base.
        fresh: at least one row is not held.
        states: what is stale of states: all of this, and what was asked for of states alone; None: the same as this.
    """

    work_ids: tuple[int, ...]
    whole: bool
    spans: Spans = ()
    series: tuple[int, ...] = ()
    series_spans: Spans = ()
    whole_series: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    above_base: Spans = ()
    fresh: bool = True
    states: Pending | None = None

    def scopes(self) -> list[Scope]:
        """The union again as scopes, to be written as held work."""
        if self.whole:
            return [WHOLE]
        found = [Scope(batches=self.batches)] if self.batches else []
        if self.spans:
            found.append(Scope(spans=self.spans))
        if self.series:
            found.append(Scope(series=self.series, spans=self.series_spans))
        if self.whole_series:
            found.append(Scope(series=self.whole_series))
        if self.above_base:
            found.append(Scope(spans=self.above_base, above_base=True))
        of_states = self.states.scopes() if self.states else []
        return found + [replace(one, states=True) for one in of_states]


Key = tuple[int, datetime]


def merged_spans(spans: Iterable[tuple[int, int]], most: int = MAX_SPANS) -> Spans:
    """Sorted spans that neither touch nor overlap; one that covers all where they are more than ``most``.

    What lies before the hour stands for something else than seconds of it and stays apart.
    """
    joined: list[tuple[int, int]] = []
    apart: set[tuple[int, int]] = set()
    for begin, end in sorted(spans):
        if begin < 0:
            apart.add((begin, end))
        elif joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    if len(joined) > most:
        joined = [(joined[0][0], joined[-1][1])]
    return (*sorted(apart), *joined)


def add(connection: Connection, invalidations: Iterable[Invalidation], *, held: bool = False) -> None:
    """Ask for work."""
    lines = [_line(one, held=held) for one in invalidations]
    if not lines:
        return
    with connection.cursor() as cursor:
        cursor.copy_expert(
            "COPY pending_work (asset, domain_id, hour, series, spans, batches, above_base, states, not_before, "
            "held, reason) "
            "FROM STDIN",
            io.StringIO("".join(lines)),
        )


def _line(one: Invalidation, *, held: bool) -> str:
    scope = one.scope
    series = None if scope.series is None or len(scope.series) > MAX_SERIES else scope.series
    spans = None if scope.spans is None else [edge for span in merged_spans(scope.spans) for edge in span]
    fields = (one.asset, str(one.domain_id), one.hour.isoformat(), _array(series), _array(spans),
              _array(scope.batches), _flag(scope.above_base), _flag(scope.states),
              one.not_before.isoformat() if one.not_before else "-infinity", _flag(held), one.reason)  # fmt: skip
    return "\t".join(fields) + "\n"


def _flag(value: bool) -> str:
    return "t" if value else "f"


def _array(values: Sequence[int] | None) -> str:
    return "\\N" if values is None else "{" + ",".join(map(str, values)) + "}"


def read(
    connection: Connection, asset: DerivedName, hours: Sequence[datetime], *, waiting: bool = False
) -> dict[Key, Pending]:
    """The pending work of an asset in some hours, by (domain number, hour).

    Args:
        waiting: also what need not be done yet.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT domain_id, hour, work_id, series, spans, batches, above_base, held, states FROM pending_work "
            f"WHERE hour = ANY(%s::timestamptz[]) AND asset = %s AND (%s OR {DUE})",
            (list(hours), asset, waiting),
        )
        rows: dict[Key, list[Any]] = {}
        for domain_id, hour, *rest in cursor.fetchall():
            rows.setdefault((domain_id, hour), []).append(rest)
    return {key: _merge(its) for key, its in rows.items()}


def _merge(rows: Sequence[Any]) -> Pending:
    """What is asked for of states alone stays apart: it is all of an hour, and would be asked for of every sample."""
    merged, others = _merged(rows), [row for row in rows if not row[6]]
    if len(others) == len(rows):
        return merged
    return replace(_merged(others), work_ids=merged.work_ids, fresh=merged.fresh, states=merged)


def _merged(rows: Sequence[Any]) -> Pending:
    ids = tuple(row[0] for row in rows)
    fresh = any(not row[5] for row in rows)
    above_base = merged_spans(pair for row in rows if row[4] for pair in _pairs(row[2]))
    rows = [row for row in rows if not row[4]]
    if any(row[1] is None and row[2] is None and row[3] is None for row in rows):
        return Pending(work_ids=ids, whole=True, fresh=fresh)
    batches = {batch for row in rows for batch in row[3] or ()}
    by_time = merged_spans(pair for row in rows if row[1] is None and row[3] is None for pair in _pairs(row[2]))
    # Apart, or what is asked for of one series, which is all of the hour, would be asked for of every other.
    named = [(row[1], [(0, HOUR_S)] if row[2] is None else list(_pairs(row[2]))) for row in rows if row[1]]
    whole_series = {one for its, spans in named if spans == [(0, HOUR_S)] for one in its}
    parts = [(left, spans) for its, spans in named if (left := set(its) - whole_series)]
    series = {one for its, _ in parts for one in its}
    spans = merged_spans(span for _, its in parts for span in its)
    if len(series) + len(whole_series) > MAX_SERIES:
        by_time, series, spans = merged_spans((*by_time, *spans)), set(), ()
    if len(whole_series) > MAX_SERIES:
        by_time, whole_series = merged_spans((*by_time, (0, HOUR_S))), set()
    return Pending(
        work_ids=ids,
        whole=by_time == ((0, HOUR_S),),
        spans=by_time,
        series=tuple(sorted(series)),
        series_spans=spans,
        whole_series=tuple(sorted(whole_series)),
        batches=tuple(sorted(batches)),
        above_base=above_base,
        fresh=fresh,
    )


def _pairs(edges: Sequence[int] | None) -> Iterable[tuple[int, int]]:
    return zip(edges[::2], edges[1::2], strict=True) if edges else ()


def batches_named(connection: Connection) -> set[int]:
    """Batches whose rows are still to be decoded: their records must stay as they are."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT unnest(batches) FROM pending_work WHERE batches IS NOT NULL")
        return {row[0] for row in cursor.fetchall()}


def delete(connection: Connection, work_ids: Sequence[int]) -> None:
    """What these rows asked for is done in this transaction."""
    if work_ids:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM pending_work WHERE work_id = ANY(%s)", (list(work_ids),))


#: Domain partitions with something to do now: work that is not held, no failure that still rests, and an hour that
#: retention has not taken.
ACTIONABLE = (
    "FROM (SELECT hour, asset, domain_id, count(*) AS items, min(created_at) AS oldest_at, "
    "max(created_at) AS newest_at FROM pending_work "
    f"WHERE {DUE} GROUP BY 1, 2, 3 HAVING NOT bool_and(held)) w "
    "JOIN domain_number d USING (domain_id) "
    "LEFT JOIN partition_failure f USING (hour, asset, domain_id) "
    f"WHERE (f.next_try_at IS NULL OR NOT ({RESTS}) OR f.code_version <> %(code_version)s) "
    "AND (%(domains)s::text[] IS NULL OR d.domain = ANY(%(domains)s)) "
    "AND w.hour >= coalesce(%(since)s, '-infinity'::timestamptz) "
    "AND NOT EXISTS (SELECT FROM retention_floor r WHERE r.domain = d.domain AND r.asset = w.asset "
    "AND w.hour < r.floor_hour)"
)


def actionable_hours(
    connection: Connection,
    *,
    domains: Sequence[str] | None = None,
    since: datetime | None = None,
    code_version: str = "",
) -> list[PendingHour]:
    """Hours with work that can be done now, oldest first.

    Args:
        domains: only of these, the enabled ones; None: of all.
        since: only from this hour on.
        code_version: a failure of other code does not rest any more.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT w.hour, array_agg(DISTINCT w.asset), array_agg(DISTINCT d.domain), sum(w.items)::bigint, "
            f"min(w.oldest_at), max(w.newest_at) {ACTIONABLE} GROUP BY w.hour ORDER BY w.hour",
            _parameters(domains, since, code_version),
        )
        return [
            PendingHour(
                hour=hour,
                assets=tuple(name for name in DERIVED if name in assets),
                domains=tuple(sorted(names)),
                pending_items=items,
                oldest_pending_at=oldest,
                newest_pending_at=newest,
            )
            for hour, assets, names, items, oldest, newest in cursor.fetchall()
        ]


def _parameters(domains: Sequence[str] | None, since: datetime | None, code_version: str) -> dict[str, Any]:
    return {
        "domains": None if domains is None else list(domains),
        "since": since,
        "code_version": code_version,
    }


def live_items(
    connection: Connection, since: datetime, *, domains: Sequence[str] | None = None, code_version: str = ""
) -> int:
    """Rows of pending work of live hours that can be done now: what backpressure is measured by.

    Older hours do not count: a late gateway or an edit of master data must not pause what is live.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT coalesce(sum(w.items), 0)::bigint {ACTIONABLE}", _parameters(domains, since, code_version)
        )
        return int(cursor.fetchone()[0])
