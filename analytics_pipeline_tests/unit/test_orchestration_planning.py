"""Which runs the sensor asks for: hours, requests, failures and pauses as a table of situations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from analytics_pipeline.orchestration.partitions import HourRange
from analytics_pipeline.orchestration.planning import (
    LEFT_PENDING_WORK,
    LONGEST_PAUSE,
    LOST,
    MAX_RANGES_UNDER_WAY,
    Plan,
    RequestedRun,
    RunState,
    Situation,
    make_plan,
    pause_after,
)
from analytics_pipeline.records import DERIVED, HOUR, DerivedName, PendingHour
from analytics_pipeline.storage.run_requests import HourRequest

NOW = datetime(2026, 11, 21, 10, 57, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
CURRENT = datetime(2026, 11, 21, 10, tzinfo=UTC)


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


def waits(hour: datetime, *assets: DerivedName, newest: datetime = NOW) -> PendingHour:
    return PendingHour(
        hour=hour,
        assets=assets or ("normalized_measurements",),
        domains=("sensor",),
        pending_items=1,
        oldest_pending_at=newest,
        newest_pending_at=newest,
    )


def request(hour: datetime, word: str = "c1", attempt: int = 1, at: datetime | None = None) -> HourRequest:
    at = at or ago(minutes=1)
    return HourRequest(
        hour=hour, request_id=word, attempt=attempt, requested_at=at, next_try_at=at + timedelta(seconds=30)
    )


def plan(
    *pending: PendingHour,
    requested: list[HourRequest] | None = None,
    runs: dict[str, RequestedRun] | None = None,
    busy: set[datetime] | None = None,
    ranges_under_way: int = 0,
    **live: bool,
) -> Plan:
    words = (f"new{n}" for n in count(1))
    situation = Situation(
        now=NOW,
        first_hour=START,
        pending=pending,
        hour_requests={one.hour: one for one in requested or []},
        runs=runs or {},
        busy=frozenset(busy or ()),
        ranges_under_way=ranges_under_way,
        **live,
    )
    return make_plan(situation, lambda: next(words))


def asked(made: Plan) -> list[tuple[str, datetime, int]]:
    return [(request.queue, request.hours.first, len(request.hours)) for request in made.requests]


def test_the_live_hours_run_together_on_the_live_queue() -> None:
    made = plan(waits(CURRENT - HOUR), waits(CURRENT), waits(CURRENT + HOUR))
    assert asked(made) == [("live", CURRENT - HOUR, 3)]
    assert [request.assets for request in made.requests] == [DERIVED]


def test_a_live_run_that_waits_to_begin_is_enough() -> None:
    made = plan(waits(CURRENT), live_waiting=True)
    assert asked(made) == []
    assert made.busy == 1


def test_a_lingering_run_makes_room_for_a_successor_and_one_that_does_not_linger_is_awaited() -> None:
    runs = {"c1": RequestedRun(RunState.UNDER_WAY)}
    assert asked(plan(waits(CURRENT), requested=[request(CURRENT)], runs=runs, linger=True)) == [("live", CURRENT, 1)]
    assert asked(plan(waits(CURRENT), requested=[request(CURRENT)], runs=runs)) == []


def test_live_data_that_is_computed_already_asks_for_a_successor_where_runs_linger() -> None:
    assert asked(plan(linger=True, drained_live=True)) == [("live", CURRENT, 1)]
    assert asked(plan(linger=True)) == []
    assert asked(plan(drained_live=True)) == []


def test_a_live_run_that_failed_pauses_also_where_runs_linger() -> None:
    runs = {"c1": RequestedRun(RunState.FAILED, NOW, "boom")}
    assert asked(plan(waits(CURRENT), requested=[request(CURRENT)], runs=runs, linger=True)) == []


def test_older_hours_run_as_ranges_of_at_most_a_day_on_the_backfill_queue() -> None:
    first = CURRENT - 100 * HOUR
    made = plan(*(waits(first + HOUR * step) for step in range(30)), waits(first + 40 * HOUR))
    assert asked(made) == [
        ("backfill", first, 24),
        ("backfill", first + 24 * HOUR, 6),
        ("backfill", first + 40 * HOUR, 1),
    ]
    assert {one.request_id for one in made.hour_requests if one.hour < first + 24 * HOUR} == {"new1"}


def test_the_oldest_come_first_and_only_so_many_at_once() -> None:
    hours = [CURRENT - 1000 * HOUR + 5 * HOUR * step for step in range(10)]
    made = plan(*map(waits, hours), ranges_under_way=1)
    assert [request.hours.first for request in made.requests] == hours[: MAX_RANGES_UNDER_WAY - 1]
    assert made.beyond_cap == 10 - (MAX_RANGES_UNDER_WAY - 1)


def test_a_run_takes_the_assets_from_the_first_pending_one_on() -> None:
    old = CURRENT - 10 * HOUR
    made = plan(waits(old, "anomalies"), waits(old + HOUR, "window_aggregates", "kpis"))
    assert made.requests[0].hours == HourRange(old, old + HOUR)
    assert made.requests[0].assets == ("window_aggregates", "anomalies", "kpis")


def test_busy_hours_are_left_alone() -> None:
    made = plan(waits(CURRENT), waits(CURRENT - 5 * HOUR), busy={CURRENT, CURRENT - 5 * HOUR})
    assert not made.requests
    assert made.busy == 2


@pytest.mark.parametrize("hour", [START - HOUR, CURRENT + 2 * HOUR], ids=["before the start", "beyond the end"])
def test_an_hour_without_a_partition_is_named_and_never_asked_for(hour: datetime) -> None:
    made = plan(waits(hour), waits(CURRENT))
    assert made.outside == [hour]
    assert asked(made) == [("live", CURRENT, 1)]


def test_a_request_whose_run_is_still_to_appear_is_awaited() -> None:
    made = plan(waits(CURRENT), requested=[request(CURRENT, at=ago(seconds=29))])
    assert (made.requests, made.busy) == ([], 1)


def test_a_request_whose_run_never_appeared_is_made_again() -> None:
    made = plan(waits(CURRENT), requested=[request(CURRENT, at=ago(seconds=31))])
    assert made.requests[0].attempt == 2
    assert made.hour_requests[0].last_error == LOST


def test_a_run_under_way_is_awaited_however_long_it_takes() -> None:
    made = plan(
        waits(CURRENT), requested=[request(CURRENT, at=ago(hours=2))], runs={"c1": RequestedRun(RunState.UNDER_WAY)}
    )
    assert (made.requests, made.busy) == ([], 1)


def test_what_arrived_during_a_run_that_succeeded_starts_over_with_the_first_attempt() -> None:
    made = plan(
        waits(CURRENT, newest=ago(seconds=3)),
        requested=[request(CURRENT, attempt=4)],
        runs={"c1": RequestedRun(RunState.SUCCEEDED, ago(seconds=1))},
    )
    assert made.requests[0].attempt == 1
    assert made.hour_requests[0].last_error is None


def test_a_run_that_succeeds_and_leaves_its_pending_work_is_no_reason_to_go_round_in_circles() -> None:
    made = plan(
        waits(CURRENT, newest=ago(minutes=5)),
        requested=[request(CURRENT)],
        runs={"c1": RequestedRun(RunState.SUCCEEDED, ago(seconds=1))},
    )
    assert not made.requests
    assert made.waiting[0].last_error == LEFT_PENDING_WORK


def test_a_failed_hour_waits_and_says_until_when_and_why() -> None:
    failed = RequestedRun(RunState.FAILED, ago(seconds=4), "run x failed")
    made = plan(waits(CURRENT), requested=[request(CURRENT)], runs={"c1": failed})
    assert not made.requests
    assert made.waiting == made.hour_requests
    assert made.hour_requests[0].next_try_at == NOW + timedelta(seconds=1)
    assert made.hour_requests[0].last_error == "run x failed"


def test_a_failed_hour_is_asked_for_again_after_its_pause_with_the_next_attempt() -> None:
    failed = RequestedRun(RunState.FAILED, ago(seconds=5), "run x failed")
    made = plan(waits(CURRENT), requested=[request(CURRENT)], runs={"c1": failed})
    assert [(one.attempt, one.request_id) for one in made.requests] == [(2, "new1")]
    assert made.hour_requests[0].last_error == "run x failed"  # stays in sight until the hour is done


def test_a_run_that_was_terminated_is_no_failure_of_its_hours() -> None:
    """A range that a clean stop of the stack interrupted is asked for again as a range."""
    hours = [CURRENT - HOUR * back for back in (10, 9)]
    runs = {"c1": RequestedRun(RunState.CANCELED, ago(seconds=30), "run x was terminated")}
    made = plan(*map(waits, hours), requested=[request(hour) for hour in hours], runs=runs)
    assert asked(made) == [("backfill", hours[0], 2)]
    assert [request.attempt for request in made.requests] == [1]


def test_pauses_double_up_to_ten_minutes() -> None:
    assert [pause_after(n).total_seconds() for n in range(1, 9)] == [5, 10, 20, 40, 80, 160, 320, 600]
    assert pause_after(1000) == LONGEST_PAUSE


def test_a_failed_hour_of_a_range_is_tried_again_alone_so_that_it_takes_no_neighbour_down() -> None:
    first = CURRENT - 50 * HOUR
    hours = [first + HOUR * step for step in range(3)]
    made = plan(
        *map(waits, hours),
        requested=[request(hours[0]), request(hours[1])],
        runs={"c1": RequestedRun(RunState.FAILED, ago(minutes=1), "run x failed")},
    )
    assert [(request.hours.first, len(request.hours), request.attempt) for request in made.requests] == [
        (hours[0], 1, 2),
        (hours[1], 1, 2),
        (hours[2], 1, 1),
    ]


def test_requests_of_done_hours_are_forgotten_but_not_while_their_run_continues() -> None:
    done, running = request(CURRENT - 3 * HOUR, "c1"), request(CURRENT - 4 * HOUR, "c2")
    made = plan(
        requested=[done, running],
        runs={"c1": RequestedRun(RunState.SUCCEEDED), "c2": RequestedRun(RunState.UNDER_WAY)},
    )
    assert made.settled == [done.hour]


# ---------------------------------------------------------------------- a clock that was set back


def test_a_request_from_before_the_clock_was_set_back_is_not_awaited_for_hours() -> None:
    ahead = NOW + 2 * HOUR
    made = plan(waits(CURRENT), requested=[request(CURRENT, at=ahead)])
    assert asked(made) == [("live", CURRENT, 1)]
    assert made.requests[0].attempt == 2


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELED, RunState.SUCCEEDED])
def test_a_pause_that_began_before_the_clock_was_set_back_is_over(state: RunState) -> None:
    ahead = NOW + 2 * HOUR
    old = CURRENT - 5 * HOUR
    made = plan(
        waits(old), requested=[request(old, at=ahead)], runs={"c1": RequestedRun(state, ahead, "boom")}
    )
    assert asked(made) == [("backfill", old, 1)]


def test_a_clock_a_second_ahead_of_anothers_changes_no_pause() -> None:
    second = NOW + timedelta(seconds=1)
    runs = {"c1": RequestedRun(RunState.FAILED, second, "boom")}
    assert asked(plan(waits(CURRENT), requested=[request(CURRENT, at=second)], runs=runs)) == []
    assert asked(plan(waits(CURRENT), requested=[request(CURRENT, at=second)])) == []
