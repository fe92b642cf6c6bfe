"""How pending work is merged when it is read: always a superset of what was asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_pipeline.assets.calculation import LONGER_WINDOWS, Work
from analytics_pipeline.domains.sensor import DOMAIN
from analytics_pipeline.records import HOUR_S, to_us
from analytics_pipeline.storage.partition_state import PartitionState
from analytics_pipeline.storage.pending_work import MAX_SPANS, Pending, _merge, merged_spans

HOUR = datetime(2026, 1, 1, 6, tzinfo=UTC)

#: (series, spans as edges) of one row of pending work, as it is stored.
rows = st.tuples(
    st.none() | st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True),
    st.none()
    | st.just([*LONGER_WINDOWS])
    | st.lists(st.integers(0, 59), min_size=2, max_size=2, unique=True).map(lambda e: [60 * x for x in sorted(e)]),
)


def merged(*asked: tuple[list[int] | None, list[int] | None], of_states: Any = ()) -> Pending:
    rows = [*((one, False) for one in asked), *((one, True) for one in of_states)]
    return _merge([(n, series, spans, None, False, False, states) for n, ((series, spans), states) in enumerate(rows)])


def work(pending: Pending) -> Work:
    state = PartitionState()
    return Work(domain=DOMAIN, domain_id=1, hour=HOUR, pending=pending, whole=pending.whole, state=state)


def covers(found: Work, series: int, second: int) -> bool:
    moment = to_us(HOUR) + second * 1_000_000
    return any(
        one.begins_us <= moment < one.ends_us and (one.series is None or series in one.series)
        for one in found.regions()
    )


@given(st.lists(rows, min_size=1, max_size=30))
def test_whatever_was_asked_for_is_in_the_regions_of_the_merged_work(asked: list[Any]) -> None:
    found = work(merged(*asked))
    for series, edges in asked:
        if edges == [*LONGER_WINDOWS]:
            continue
        begin, end = edges or (0, HOUR_S)
        for one in series or [1, 99]:
            assert all(covers(found, one, second) for second in (begin, end - 1)), (series, edges)


@pytest.mark.parametrize("spans", [[(0, 60)], [(0, HOUR_S)], [(60 * n, 60 * n + 30) for n in range(MAX_SPANS + 1)]])
def test_longer_windows_are_asked_for_beside_the_first_window_of_the_hour(spans: list[tuple[int, int]]) -> None:
    found = merged((None, [*LONGER_WINDOWS]), *((None, [*span]) for span in spans))
    assert found.whole or LONGER_WINDOWS in found.spans
    assert covers(work(found), 1, spans[0][0])
    assert covers(work(found), 1, spans[-1][1] - 1)


def test_windows_above_the_base_are_asked_for_apart_from_the_base() -> None:
    found = _merge([(1, None, [0, 60], None, True, False, False), (2, None, [60, 120], None, True, True, False)])
    assert (found.above_base, found.spans, found.whole, found.fresh) == (((0, 120),), (), False, True)
    assert work(found).regions() == []
    (region,) = work(found).above_base
    assert (region.begins_us, region.ends_us) == (to_us(HOUR), to_us(HOUR) + 120_000_000)
    (scope,) = found.scopes()
    again = _merge([(3, scope.series, [*(scope.spans or ())[0]], None, scope.above_base, True, scope.states)])
    assert (again.above_base, again.fresh) == (found.above_base, False)


def test_an_hour_asked_for_in_pieces_is_asked_for_as_a_whole() -> None:
    assert merged((None, [0, 1800]), (None, [1800, 3600])).whole


@pytest.mark.parametrize(("known", "named"), [(999, 999), (1000, 1000), (1001, 0)])
def test_above_a_thousand_series_merged_work_names_time_only(known: int, named: int) -> None:
    half = known // 2
    found = merged(([*range(half)], [0, 60]), ([*range(half, known)], [120, 180]))
    assert len(found.series) == named
    assert (found.spans, found.series_spans)[bool(named)] == ((0, 60), (120, 180))
    for series in (0, known - 1):
        assert covers(work(found), series, 0)
        assert covers(work(found), series, 179)


def test_series_that_are_stale_for_the_whole_hour_widen_no_others_spans() -> None:
    found = work(merged(([1, 3], [0, 60]), ([2, 3], [0, HOUR_S]), ([4], None)))
    assert covers(found, 1, 59)
    assert not covers(found, 1, 60)
    assert all(covers(found, series, HOUR_S - 1) for series in (2, 3, 4))
    held = [(one.series, one.spans) for one in found.pending.scopes()]  # type: ignore[union-attr]
    assert held == [((1,), ((0, 60),)), ((2, 3, 4), None)]


@pytest.mark.parametrize(("known", "whole"), [(1000, False), (1001, True)])
def test_above_a_thousand_whole_series_the_hour_is_asked_for(known: int, *, whole: bool) -> None:
    found = merged(([*range(known)], [0, HOUR_S]), ([5000], [0, 60]))
    assert found.whole is whole
    assert (found.series, found.spans) == ((), ((0, HOUR_S),) if whole else ((0, 60),))


def test_more_than_sixteen_spans_become_one_that_covers_them() -> None:
    spans = [(60 * n, 60 * n + 1) for n in range(MAX_SPANS + 1)]
    assert merged_spans(spans[:-1]) == tuple(spans[:-1])
    assert merged_spans(spans) == ((0, 60 * MAX_SPANS + 1),)
    assert all(begin >= 0 and end <= HOUR_S for begin, end in merged_spans(spans))


def test_what_is_asked_for_of_states_alone_is_asked_for_of_nothing_else() -> None:
    found = merged(([1], [0, 60]), of_states=[(None, None)])
    assert not found.whole
    assert found.work_ids == (0, 1)
    assert not covers(work(found), 1, 60)
    assert covers(work(found).of_states(), 99, HOUR_S - 1)
    assert [(one.series, one.spans, one.states) for one in found.scopes()] == [
        ((1,), ((0, 60),), False),
        (None, None, True),
    ]


@given(st.lists(rows, min_size=1, max_size=20), st.lists(rows, max_size=20))
def test_what_is_asked_for_of_all_is_asked_for_of_states_too(asked: list[Any], of_states: list[Any]) -> None:
    found = work(merged(*asked, of_states=of_states))
    for series, edges in [*asked, *of_states]:
        if edges != [*LONGER_WINDOWS]:
            begin, _ = edges or (0, HOUR_S)
            assert all(covers(found.of_states(), one, begin) for one in series or [1, 99]), (series, edges)
    if not of_states:
        assert found.of_states() is found


def test_series_of_more_than_a_thousand_states_widen_no_samples_of_the_hour() -> None:
    halves = [([*range(600)], None), ([*range(600, 1200)], None)]
    found = merged(([1], [0, 60]), of_states=halves)
    assert (found.whole, found.series, found.spans) == (False, (1,), ())
    assert work(found).of_states().whole
