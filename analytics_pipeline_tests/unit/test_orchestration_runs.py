"""Small pieces around runs: their hours, their mode, their code, and the cursor of what was reported."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import AssetCheckEvaluation, AssetKey, AssetMaterialization, DagsterRun, DagsterRunStatus

from analytics_pipeline.errors import PipelineError, StaleCodeError
from analytics_pipeline.orchestration.fingerprint import fingerprint, refuse_stale_code
from analytics_pipeline.orchestration.hourly import hours_of_run, mode_of_run
from analytics_pipeline.orchestration.partitions import (
    HourRange,
    hourly_partitions,
    key_of,
    last_partition_hour,
    range_of_run,
)
from analytics_pipeline.orchestration.reporting import MAX_HOURS_PER_TICK, Cursor, Live, events, is_behind, select
from analytics_pipeline.orchestration.runs import UnfinishedRun, busy_hours, why_not_to_run
from analytics_pipeline.orchestration.tags import CODE_TAG, MODE_TAG, PARENT_RUN_TAG, REQUEST_TAG
from analytics_pipeline.records import HOUR, BatchHour, BatchReport
from analytics_pipeline.storage.row_counts import RawTotals

H = datetime(2026, 11, 21, 10, tzinfo=UTC)


# ---------------------------------------------------------------------- partitions


def test_at_10_57_the_hour_of_an_event_at_11_03_has_a_partition_and_no_later_one() -> None:
    now = datetime(2026, 11, 21, 10, 57, tzinfo=UTC)
    keys = hourly_partitions(datetime(2026, 11, 20, tzinfo=UTC)).get_partition_keys(current_time=now)
    assert keys[0] == "2026-11-20-00:00"
    assert keys[-1] == key_of(last_partition_hour(now)) == "2026-11-21-11:00"


@pytest.mark.parametrize(
    ("tags", "hours"),
    [
        ({"dagster/partition": "2026-11-21-10:00"}, HourRange(H, H)),
        (
            {
                "dagster/asset_partition_range_start": "2026-11-21-10:00",
                "dagster/asset_partition_range_end": "2026-11-21-12:00",
            },
            HourRange(H, H + 2 * HOUR),
        ),
        ({}, None),
        ({"dagster/partition": "blue"}, None),
    ],
    ids=["single", "range", "none", "of another partitioning"],
)
def test_a_runs_hours_come_from_its_partition_tags(tags: dict[str, str], hours: HourRange | None) -> None:
    assert range_of_run(tags) == hours
    if hours is not None:
        assert hours.tags == tags
        assert list(hours_of_run(tags)) == list(hours)
    else:
        with pytest.raises(PipelineError, match="choose a partition"):
            hours_of_run(tags)


@pytest.mark.parametrize(
    ("tags", "mode"),
    [
        ({MODE_TAG: "incremental", REQUEST_TAG: "c"}, "incremental"),
        ({MODE_TAG: "incremental", REQUEST_TAG: "c", PARENT_RUN_TAG: "r"}, "full"),
        ({MODE_TAG: "incremental"}, "full"),
        ({REQUEST_TAG: "c"}, "full"),
        ({}, "full"),
    ],
    ids=["asked for by the sensor", "re-executed", "no request", "no mode", "a person's"],
)
def test_only_the_sensors_own_run_is_incremental(tags: dict[str, str], mode: str) -> None:
    assert mode_of_run(tags) == mode


def run(hours: HourRange, status: DagsterRunStatus, request_id: str | None = None) -> UnfinishedRun:
    return UnfinishedRun(run_id="r", status=status, hours=hours, request_id=request_id, queue="backfill", created_at=H)


def test_a_live_hour_waits_for_no_backfill_but_for_a_run_of_its_own_that_has_begun() -> None:
    day = HourRange(H - 23 * HOUR, H)
    starting, started = DagsterRunStatus.STARTING, DagsterRunStatus.STARTED
    live_from = H - HOUR
    older = frozenset(hour for hour in day if hour < live_from)
    assert busy_hours([run(day, started)], live_from) == older
    assert busy_hours([run(HourRange(H, H), starting)], live_from) == frozenset()
    assert busy_hours([run(HourRange(H, H), started)], live_from) == {H}
    assert busy_hours([run(HourRange(H, H), starting, request_id="c")], live_from) == {H}


# ---------------------------------------------------------------------- code


def test_a_worker_with_other_code_than_the_code_location_refuses_with_the_remedy() -> None:
    refuse_stale_code({CODE_TAG: "new"}, loaded="new", on_disk="newer")  # both were reloaded alike
    with pytest.raises(StaleCodeError, match=r"runs code old, .* asked with code new: restart the Celery workers"):
        refuse_stale_code({CODE_TAG: "new"}, loaded="old")


def test_a_persons_run_is_held_against_the_sources_on_disk() -> None:
    refuse_stale_code({}, loaded="same", on_disk="same")
    with pytest.raises(StaleCodeError, match="sources on disk are new: restart"):
        refuse_stale_code({}, loaded="old", on_disk="new")


def test_a_fingerprint_changes_with_a_source_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "note.txt").write_text("one")
    before = fingerprint(tmp_path)
    (tmp_path / "note.txt").write_text("two")
    assert fingerprint(tmp_path) == before
    (tmp_path / "a.py").write_text("x = 22")
    assert fingerprint(tmp_path) != before


# ---------------------------------------------------------------------- reports


def batch(batch_id: int, *hours: datetime, dead_letters: int = 0) -> BatchReport:
    reasons = {"not_json": dead_letters} if dead_letters else {}
    samples = ["topic[0]@7 not_json"] if dead_letters else []
    batch_hours = tuple(BatchHour(
        hour=hour,
        domain="sensor",
        raw_rows=10,
        dead_letters=dead_letters,
        late_rows=1,
        reasons=reasons,
        samples=samples,
    ) for hour in hours)
    return BatchReport(batch_id, H, 0.1, batch_hours)


def test_batches_of_one_hour_are_reported_as_one_materialization_and_one_check_result() -> None:
    selection = select(Cursor(), [batch(1, H), batch(2, H, dead_letters=3)], H, H)
    made = events(selection, {H: RawTotals(120, 3)})
    materialization, check = made
    assert isinstance(materialization, AssetMaterialization)
    assert isinstance(check, AssetCheckEvaluation)
    assert materialization.partition == check.partition == "2026-11-21-10:00"
    assert materialization.metadata["rows_written"].value == 20
    assert materialization.metadata["dagster/row_count"].value == 120
    assert materialization.metadata["batches"].value == "1-2"
    assert not check.passed
    assert check.metadata["failing_expectations"].value == {"not_json": 3}
    assert str(selection.cursor) == "2"


def test_an_hour_without_a_partition_is_not_reported_and_the_cursor_passes_it() -> None:
    selection = select(Cursor(), [batch(1, H - HOUR, H, H + HOUR)], H, H)
    assert list(selection.batch_hours) == [H]
    assert selection.cursor == Cursor(1)


def test_more_hours_than_a_tick_takes_are_reported_by_the_next_ticks_and_none_twice() -> None:
    hours = [H + HOUR * step for step in range(2 * MAX_HOURS_PER_TICK + 5)]
    batches = [batch(1, *hours[:100]), batch(2, *hours[50:])]
    cursor, reported = Cursor(), []
    for _ in range(3):
        selection = select(Cursor.parse(str(cursor)), batches, H, hours[-1])
        reported += selection.batch_hours
        cursor = selection.cursor
        batches = [*batches, batch(batches[-1].batch_id + 1, H)]  # what arrives meanwhile waits for its turn
    assert reported == hours
    assert cursor == Cursor(2)


@pytest.mark.parametrize("seed", range(5))
def test_while_reports_are_behind_live_hours_go_first_and_nothing_twice(seed: int) -> None:
    rng = random.Random(seed)
    history = [H - HOUR * back for back in range(2, 300)]
    live = Live(0, H - HOUR)
    stored = [batch(number, *sorted({*rng.sample(history, 9), H})) for number in range(1, 31)]
    reported: list[tuple[int, datetime]] = []
    cursor = Cursor()
    for tick in range(40):
        if tick < 10:  # more arrives meanwhile
            stored.append(batch(len(stored) + 1, rng.choice(history), H, H + HOUR))
        after = [one for one in stored if one.batch_id > cursor.batch_id][:7]
        if is_behind(cursor, after, 7):
            known = cursor.live or replace(live, batch_id=cursor.batch_id)
            ahead = [batch(one.batch_id, *(h.hour for h in one.hours if h.hour >= live.hour))
                     for one in stored if one.batch_id > known.batch_id]  # fmt: skip
            selection = select(
                cursor, after, history[-1], H + HOUR, live=Live(len(stored), live.hour), live_batches=ahead
            )
        else:
            selection = select(cursor, after, history[-1], H + HOUR)
        reported += [(number, hour) for hour, its in selection.batch_hours.items() for number, _ in its]
        cursor = Cursor.parse(f"{selection.cursor} words for people")
        assert cursor == selection.cursor
        waiting = {(one.batch_id, h.hour) for one in stored for h in one.hours} - set(reported)
        assert not {hour for _, hour in waiting if hour >= live.hour}
    expected = {(one.batch_id, h.hour) for one in stored for h in one.hours}
    assert sorted(reported) == sorted(expected)
    assert cursor == Cursor(len(stored))


@pytest.mark.parametrize(
    ("text", "possible"),
    [
        ("7", "7"),
        ("9", "0"),
        ("3|5|2026-11-21-09:00", "3|5|2026-11-21-09:00"),
        ("3|5|2999-01-01-00:00", "3"),
        ("3|live|7|2026-11-21-09:00", "3|live|7|2026-11-21-09:00"),
        ("3|live|9|2026-11-21-09:00", "3"),
        ("3|live|7|2999-01-01-00:00", "3"),
        ("3|live|x", "0"),
    ],
)
def test_a_cursor_that_cannot_be_skips_no_report(text: str, possible: str) -> None:
    assert str(Cursor.parse(text).possible(7, H)) == possible


@pytest.mark.parametrize("text", [None, "", "blue", "1|2", "1|x|2026-11-21-10:00"])
def test_an_unreadable_cursor_begins_anew(text: str | None) -> None:
    assert Cursor.parse(text).batch_id in (0, 1)
    assert Cursor.parse(text).until is None


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"dagster/partition": "2026-01-01-10:00"}, None),
        ({"dagster/asset_partition_range_start": "2026-01-01-10:00",
          "dagster/asset_partition_range_end": "2026-01-01-12:00"}, None),
        ({}, "no partition tag; choose partitions from 2026-01-01-00:00"),
        ({"dagster/partition": "2026-01-01"}, "names no hour that is a partition"),
        ({"dagster/partition": "2025-12-31-23:00"}, "that have no partition"),
        ({"dagster/partition": "2026-01-02-00:00"}, "to 2026-01-01-13:00"),
        ({"dagster/asset_partition_range_start": "2026-01-01-10:00",
          "dagster/asset_partition_range_end": "2026-01-01-09:00"}, "that have no partition"),
    ],
)  # fmt: skip
def test_a_run_without_an_hour_that_exists_is_refused_with_the_remedy(
    tags: dict[str, str], said: str | None
) -> None:
    run = DagsterRun("job", tags=tags, asset_selection=frozenset({AssetKey("kpis")}))
    start, now = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
    found = why_not_to_run(run, start, now)
    assert (found is None) if said is None else (found is not None and said in found)
    assert why_not_to_run(DagsterRun("prune", tags=tags), start, now) is None
