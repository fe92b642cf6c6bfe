"""What a rebuild of an hour does to its dead letters: what is as it was stays as it is, the rest follows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.domains import begin_anew
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.pipeline import reading

START = hour_of(datetime.now(UTC)) - 3 * HOUR

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    opened.send([reading(START + timedelta(minutes=minute), 20.0) for minute in range(50)])
    opened.send([reading(START + timedelta(minutes=minute), value="high") for minute in range(50, 53)], rejected=True)
    opened.drain()
    opened.pipeline.settle()
    assert len(letters(opened)) == 3
    return opened


def letters(env: Environment) -> dict[int, tuple[str, str]]:
    """By offset, the reason and where the row lies: another place means that it was written again."""
    rows = env.pipeline.query('SELECT "offset", reason, ctid::text FROM dead_letters')
    return {offset: (reason, place) for offset, reason, place in rows}


def execute(env: Environment, statement: str) -> None:
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute(statement)
        assert cursor.rowcount == 1
        conn.commit()


def test_dead_letters_that_are_as_they_were_are_not_written_again(env: Environment) -> None:
    before = letters(env)
    env.pipeline.rebuild([START])
    assert letters(env) == before


def test_a_dead_letter_whose_payload_is_gone_goes_with_it(env: Environment) -> None:
    before = letters(env)
    gone = min(before)
    execute(env, f'DELETE FROM raw_events WHERE "offset" = {gone}')
    env.pipeline.rebuild([START])
    assert letters(env) == {offset: its for offset, its in before.items() if offset != gone}


def test_a_dead_letter_that_says_something_else_is_written_again(env: Environment) -> None:
    before = letters(env)
    changed = min(before)
    execute(env, f"UPDATE dead_letters SET reason = 'other' WHERE \"offset\" = {changed}")
    env.pipeline.rebuild([START])
    after = letters(env)
    assert {offset: reason for offset, (reason, _) in after.items()} == {o: reason for o, (reason, _) in before.items()}
    assert after[changed] != before[changed]
