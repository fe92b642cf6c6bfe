"""What a rebuild of an hour does to its dead letters: what is as it was stays as it is, the rest follows."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.records import HOUR, DeadLetter, hour_of, to_us
from analytics_pipeline.storage import dead_letters
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline_tests.domains import begin_anew
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.pipeline import reading

START = hour_of(datetime.now(UTC)) - 3 * HOUR
STAGE = "normalized_measurements"
LETTERS = 20_000

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


# ---------------------------------------------------------------------- very many of them


@pytest.fixture
def empty(opened: Environment) -> Environment:
    begin_anew(opened)
    return opened


def press_letter(offset: int) -> DeadLetter:
    return DeadLetter(
        topic="t", epoch=1, partition=0, offset=offset, ordinal=0, stage=STAGE, domain=PRESS.name, is_element=False,
        reason="r", error="e", payload=b"x", key=None, headers=None, kafka_time_us=to_us(START),
        event_time_us=to_us(START), arrived_at_us=to_us(START), batch_id=1,
    )  # fmt: skip


def replace(conn: Connection, number: int, letters: list[DeadLetter]) -> float:
    began = time.monotonic()
    dead_letters.replace_hours(conn, STAGE, [(number, START)], letters)
    conn.commit()
    return time.monotonic() - began


def test_the_cost_of_a_rebuilt_hour_grows_with_its_letters_not_their_square(empty: Environment) -> None:
    number = DomainNumbers(empty.pipeline.engine).numbers([PRESS.name])[PRESS.name]
    letters = [press_letter(offset) for offset in range(LETTERS)]
    with connection(empty.pipeline.engine) as conn:
        took = [replace(conn, number, letters) for _ in range(3)]
    assert max(took) < 5.0
