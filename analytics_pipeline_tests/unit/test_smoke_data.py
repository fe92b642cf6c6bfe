"""The fixed set of the smoke run: what it holds, so that its counts can be compared exactly."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from analytics_pipeline.cli import _demo_data as demo
from analytics_pipeline.cli._smoke_data import MESSAGES, MESSAGES_PER_S, Payloads, plan, warm_up
from analytics_pipeline.cli._smoke_watch import Track

STARTED = datetime(2026, 11, 21, 10, 59, 50, tzinfo=UTC)


def test_the_set_is_the_same_each_time_and_has_its_fixed_shares() -> None:
    kinds = Counter(planned.kind for planned in [*warm_up(), *plan()])
    assert sum(kinds.values()) == MESSAGES
    assert (kinds["bad"], kinds["duplicate"], kinds["late"]) == (199, 199, 398)
    first, again = Payloads(STARTED), Payloads(STARTED)
    assert [first.of(planned) for planned in plan()] == [again.of(planned) for planned in plan()]


def test_no_two_readings_share_sensor_and_time_but_for_the_duplicates() -> None:
    identities: Counter[tuple[str, str, str]] = Counter()
    payloads = Payloads(STARTED)
    for planned in plan():
        payload = payloads.of(planned)
        if planned.kind != "bad" and payload is not None:
            fields = msgspec.json.decode(payload)
            identities[fields["factory_id"], fields["sensor_id"], fields["time"]] += 1
    kinds = Counter(planned.kind for planned in plan())
    assert len(identities) == kinds["live"] + kinds["late"]
    assert sum(identities.values()) - len(identities) == kinds["duplicate"]


def test_a_duplicate_has_the_turn_of_its_first_so_that_both_go_to_one_log() -> None:
    payloads, turns = Payloads(STARTED), {}
    for planned in plan():
        payload = payloads.of(planned)
        if planned.kind == "live":
            turns[payload] = (planned.turn, planned.key)
        elif planned.kind == "duplicate":
            assert turns[payload] == (planned.turn, planned.key)


def test_messages_are_due_at_the_rate_that_is_announced() -> None:
    due_s = [planned.after_s for planned in plan()]
    assert due_s == sorted(due_s)
    assert due_s[-1] == pytest.approx(len(due_s) / MESSAGES_PER_S, abs=0.01)


def test_a_track_gives_the_first_time_a_count_was_reached_and_infinity_for_never() -> None:
    track = Track()
    for value, time_s in ((0, 10.0), (5, 11.0), (5, 12.0), (9, 13.0)):
        track.note(value, time_s)
    assert track.when_at_least(1) == 11.0
    assert track.when_at_least(5) == 11.0
    assert track.when_at_least(6) == 13.0
    assert track.when_at_least(10) == float("inf")


def test_the_history_of_the_demo_is_the_real_series_moved_to_end_now() -> None:
    now = datetime(2026, 11, 21, 21, 43, 7, 5, tzinfo=UTC)
    readings = [msgspec.json.decode(payload) for payload in demo.history(demo.load_flow(), now)]
    assert len(readings) == 1268
    assert readings[0]["value"] == 100.59
    assert readings[-1]["time"] == "2026-11-21T21:43:07Z"
    assert datetime.fromisoformat(readings[1]["time"]) - datetime.fromisoformat(readings[0]["time"]) == timedelta(
        hours=1
    )


def test_the_live_tail_sends_each_message_once_however_often_it_is_asked() -> None:
    flow = demo.load_flow()
    often, once = demo.LiveTail(flow, STARTED), demo.LiveTail(flow, STARTED)
    steps = [STARTED + timedelta(seconds=0.37 * step) for step in range(101)]
    in_steps = [message for moment in steps for message in often.due(moment)]
    assert in_steps == list(once.due(steps[-1]))
    assert len(in_steps) == 37 * demo.MESSAGES_PER_S
