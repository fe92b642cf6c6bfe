"""The pipeline as its users meet it: through a real webserver, daemon, code server, workers, Kafka, PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.records import DERIVED, HOUR, RAW_EVENTS, hour_of
from analytics_pipeline_tests.dagster_ui import wait_for
from analytics_pipeline_tests.integration.conftest import TOPIC, Environment
from analytics_pipeline_tests.pipeline import reading, send

pytestmark = pytest.mark.timeout(300)

ALL_ASSETS = (RAW_EVENTS, *DERIVED)


def test_live_data_reaches_every_asset_and_its_run_is_incremental_on_the_live_queue(env: Environment) -> None:
    hour = hour_of(datetime.now(UTC))
    key = key_of(hour)
    send(env.producer, TOPIC, [reading(datetime.now(UTC) - timedelta(seconds=step)) for step in range(50)])
    env.wait_until_settled(hour)

    for asset in ALL_ASSETS:
        materialization = wait_for(lambda a=asset: env.ui.materialization(a, key), 20, f"{asset} reported")
        assert materialization["dagster/row_count"] > 0 or asset == "anomalies"
        check = wait_for(lambda a=asset: env.ui.check(a, key), 20, f"check of {asset}")
        assert check["status"] == "SUCCEEDED"
    run = env.ui.run(env.ui.materialization("kpis", key)["runId"])
    assert run["tags"]["dagster-celery/queue"] == "live"
    assert run["tags"]["analytics_pipeline/mode"] == "incremental"
    assert env.ui.materialization("kpis", key)["mode"] == "incremental"
    assert "rows_per_minute" not in env.ui.materialization("window_aggregates", key)


def test_a_batch_that_was_reported_once_is_reported_again_with_the_next_batch_of_its_hour(env: Environment) -> None:
    hour = env.fresh_hours(1)[0]
    env.send_readings(hour, 10)
    first = wait_for(lambda: env.ui.materialization(RAW_EVENTS, key_of(hour)), 30, "the first report")
    env.send_readings(hour, 5, machine_id="mc-02")
    second = wait_for(
        lambda: m if (m := env.ui.materialization(RAW_EVENTS, key_of(hour)))["batches"] != first["batches"] else None,
        30,
        "the second report",
    )
    assert (first["rows_written"], second["rows_written"]) == (10, 5)
    assert (first["dagster/row_count"], second["dagster/row_count"]) == (10, 15)
    assert env.ui.last_tick()["status"] != "FAILURE"


def test_materializing_one_partition_recomputes_the_whole_hour_and_shows_a_plot(env: Environment) -> None:
    hour = env.fresh_hours(1)[0]
    key = key_of(hour)
    env.send_readings(hour, 120)
    env.wait_until_settled(hour)
    before = env.counts(hour)
    with env.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM normalized_measurements WHERE event_time >= %s AND event_time < %s", (hour, hour + HOUR)
        )

    run = env.ui.wait(env.ui.materialize(ALL_ASSETS, key))

    assert run["status"] == "SUCCESS"
    env.wait_until_settled(hour)
    assert env.counts(hour) == before
    assert env.query(
        "SELECT count(*) FROM normalized_measurements WHERE event_time >= %s AND event_time < %s",
        hour,
        hour + HOUR,
    ) == [(120,)]
    for asset in ALL_ASSETS:
        materialization = env.ui.materialization(asset, key)
        assert materialization["runId"] == run["runId"]
        assert materialization["mode"] == "full"
        assert env.ui.check(asset, key, run["runId"])["status"] == "SUCCEEDED"
    assert "data:image/svg+xml" in env.ui.materialization("normalized_measurements", key)["rows_per_minute"]


def test_a_selection_of_assets_leaves_pending_work_that_the_sensor_requests(env: Environment) -> None:
    hour = env.fresh_hours(1)[0]
    env.send_readings(hour, 60)
    env.wait_until_settled(hour)

    run = env.ui.wait(env.ui.materialize(["normalized_measurements"], key_of(hour)))

    assert run["status"] == "SUCCESS"
    env.wait_until_settled(hour)


def test_a_backfill_over_hours_reports_each_hour_and_leaves_nothing_planned(env: Environment) -> None:
    hours = env.fresh_hours(6)
    for hour in hours:
        env.send_readings(hour, 30)
    for hour in hours:
        env.wait_until_settled(hour)

    backfill = env.ui.backfill(list(DERIVED), [key_of(hour) for hour in hours])

    assert env.ui.wait_backfill(backfill) == "COMPLETED_SUCCESS"
    runs = env.ui.runs({"dagster/backfill": backfill})
    assert [run["status"] for run in runs] == ["SUCCESS"]
    assert runs[0]["tags"]["dagster/asset_partition_range_start"] == key_of(hours[0])
    assert runs[0]["tags"]["dagster/asset_partition_range_end"] == key_of(hours[-1])
    run_id = runs[0]["runId"]
    for asset in DERIVED:
        for hour in hours:
            materialization = env.ui.materialization(asset, key_of(hour))
            assert materialization["runId"] == run_id
            assert materialization["mode"] == "full"
        executions = [one for one in env.ui.checks(asset) if one["runId"] == run_id]
        assert {one["status"] for one in executions} == {"SUCCEEDED"}
        assert {one["evaluation"]["partition"] for one in executions} == {key_of(hour) for hour in hours}


def test_reexecuting_a_run_of_the_sensor_recomputes_the_whole_hour(env: Environment) -> None:
    hour = env.fresh_hours(1)[0]
    key = key_of(hour)
    env.send_readings(hour, 40)
    env.wait_until_settled(hour)
    first = env.ui.materialization("kpis", key)
    assert first["mode"] == "incremental"

    run = env.ui.wait(env.ui.reexecute(first["runId"]))

    assert run["status"] == "SUCCESS"
    assert run["tags"]["analytics_pipeline/mode"] == "incremental"  # inherited, and rightly not believed
    assert env.ui.materialization("kpis", key)["mode"] == "full"


def test_a_terminated_run_ends_as_canceled_and_the_worker_goes_on(env: Environment) -> None:
    hour, other = env.fresh_hours(2)
    env.send_readings(hour, 20)
    env.send_readings(other, 20)
    env.wait_until_settled(hour)
    env.wait_until_settled(other)
    env.wait_until_idle()
    with env.connect() as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE window_aggregates IN ACCESS EXCLUSIVE MODE")  # the run waits in C code
        run_id = env.ui.materialize(["kpis"], key_of(hour))
        wait_for(lambda: env.ui.run(run_id)["status"] == "STARTED", 20, "the start")
        assert env.ui.terminate(run_id) == "TerminateRunSuccess"
        assert env.ui.wait(run_id, timeout_s=30)["status"] == "CANCELED"
        blocker.rollback()

    assert env.ui.wait(env.ui.materialize(["kpis"], key_of(other)))["status"] == "SUCCESS"


def test_a_run_that_waits_in_the_queue_can_be_terminated(env: Environment) -> None:
    first, second = env.fresh_hours(2)
    env.wait_until_idle()
    with env.connect() as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE window_aggregates IN ACCESS EXCLUSIVE MODE")
        running = env.ui.materialize(["kpis"], key_of(first))
        wait_for(lambda: env.ui.run(running)["status"] == "STARTED", 20, "the start")
        queued = env.ui.materialize(["kpis"], key_of(second))
        wait_for(lambda: env.ui.run(queued)["status"] == "STARTING", 20, "its place behind the other")
        # Dagster offers only the forced way for a run that has not started.
        assert env.ui.terminate(queued, force=True) == "TerminateRunSuccess"
        assert env.ui.wait(queued, timeout_s=5)["status"] == "CANCELED"
        blocker.rollback()
    assert env.ui.wait(running)["status"] == "SUCCESS"
    assert env.ui.run(queued)["status"] == "CANCELED"


def test_a_check_that_fails_is_fixed_and_passes(env: Environment) -> None:
    hour = env.fresh_hours(1)[0]
    key = key_of(hour)
    asset = "normalized_measurements"
    env.send_readings(hour, 150, machine_id="")  # more bad rows than the domain's limit

    failed = wait_for(lambda: env.ui.check(asset, key), 60, "the check result")
    assert failed["status"] == "FAILED"
    assert failed["evaluation"]["severity"] == "ERROR"
    metadata = failed["evaluation"]["metadata"]
    assert metadata["rows_failed"] == 150
    assert metadata["failing_expectations"][0]["reason"] == "name_empty"
    assert metadata["failing_expectations"][0]["sample_rows"]
    assert env.ui.materialization(asset, key) is None
    assert env.ui.wait(failed["runId"])["status"] == "FAILURE"
    assert env.query(
        "SELECT count(*) FROM normalized_measurements WHERE event_time >= %s AND event_time < %s",
        hour,
        hour + HOUR,
    ) == [(0,)]
    again = env.ui.wait(env.ui.materialize([asset], key))
    assert again["status"] == "FAILURE"  # a person who asks without a fix is told the same

    env.send_readings(hour, 200)  # the gateway was fixed: good rows outweigh the bad

    wait_for(lambda: env.ui.materialization(asset, key), 60, "the materialization")
    # 150 rows are in the dead letters, and stay in sight.
    wait_for(
        lambda: env.ui.check(asset, key)["evaluation"]["severity"] == "WARN",
        10,
        "the check result about what is there now",
    )
    env.wait_until_settled(hour)
    assert env.query(
        "SELECT count(*) FROM normalized_measurements WHERE event_time >= %s AND event_time < %s",
        hour,
        hour + HOUR,
    ) == [(200,)]


def test_a_tick_without_work_says_that_it_is_idle(env: Environment) -> None:
    wait_for(
        lambda: (tick := env.ui.last_tick())["status"] == "SKIPPED" and (tick["skipReason"] or "").startswith("idle"),
        60,
        "an idle tick",
    )
