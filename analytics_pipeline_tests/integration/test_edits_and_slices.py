"""Master data edited while a backfill computes: no edit waits for a slice, and none is lost on it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.assets.catalog import ASSETS
from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.domains import begin_anew
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.faulty import PHASES, happen, mend
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate, before
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import reading

HOURS = [hour_of(datetime.now(UTC)) - (9 - back) * HOUR for back in range(4)]
READS_MASTER_DATA = [spec.name for spec in ASSETS if spec.reads_master_data]
#: Held for milliseconds; a slice takes seconds.
EDIT_S = 2.0


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    opened.send([reading(hour + timedelta(minutes=m), 20.0 + m) for hour in HOURS for m in range(0, 60, 5)])
    opened.drain()
    opened.pipeline.settle()
    return opened


def limit(env: Environment, usl: float) -> None:
    """An upper limit from the second hour on: what is above is an anomaly."""
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO analytics_spec_limits (metric, usl, valid_from) VALUES ('temp', %s, %s) "
            "ON CONFLICT (tenant_id, factory_id, machine_id, sensor_id, metric, valid_from) DO UPDATE SET usl = %s",
            (usl, HOURS[1], usl),
        )
        conn.commit()


def out_of_limits(env: Environment) -> int:
    found = env.pipeline.query(
        "SELECT count(*) FROM anomalies WHERE detector = 'spec_limits' "
        "AND window_s = (SELECT min(window_s) FROM anomalies)"
    )
    return int(found[0][0])


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("asset", READS_MASTER_DATA)
def test_an_edit_during_a_backfills_slice_is_computed_after_it(env: Environment, asset: str, phase: str) -> None:
    deriver, edits = env.pipeline.deriver, []

    def edit(_: object) -> None:
        if not edits:
            began = time.monotonic()
            limit(env, 50.0)
            edits.append(time.monotonic() - began)

    happen(deriver, asset, "press", phase, edit)
    done = [deriver.derive_hours(name, HOURS, "full", "backfill") for name in DERIVED]
    mend(deriver)
    assert not any(one.errors for one in done)
    assert edits[0] < EDIT_S
    pending = "SELECT count(*) FROM pending_work WHERE asset = %s AND hour = ANY(%s)"
    assert env.pipeline.query(pending, asset, HOURS[1:])[0][0] >= 3
    env.pipeline.settle()
    assert out_of_limits(env) == 3 * 5  # above 50: the minutes 35 to 55 of three hours
    assert_live_equals_rebuild(env.pipeline)


def test_an_edit_between_look_and_commit_waits_for_the_commit(env: Environment) -> None:
    held, deriver = Gate(), Deriver(env.settings, env.pipeline.engine, env.pipeline.registry)
    before(deriver.protocol, "_commit", held.hold)
    with ThreadPoolExecutor(2) as threads:
        computing = threads.submit(deriver.derive_hours, "anomalies", HOURS, "full", "backfill")
        held.wait_until_reached()
        editing = threads.submit(limit, env, 50.0)
        with pytest.raises(TimeoutError):
            editing.result(timeout=0.5)
        held.let_go()
        computing.result(PATIENCE_S)
        editing.result(PATIENCE_S)
    env.pipeline.settle()
    assert out_of_limits(env) == 3 * 5
    assert_live_equals_rebuild(env.pipeline)
