"""What it costs to rebuild an hour of many dead letters."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from analytics_pipeline.records import HOUR, DeadLetter, hour_of, to_us
from analytics_pipeline.storage import dead_letters
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline_tests.domains import begin_anew
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.environments import Environment

START = hour_of(datetime.now(UTC)) - 3 * HOUR
STAGE = "normalized_measurements"
LETTERS = 20_000


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    return opened


def letter(offset: int) -> DeadLetter:
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


def test_the_cost_of_a_rebuilt_hour_grows_with_its_letters_not_their_square(env: Environment) -> None:
    number = DomainNumbers(env.pipeline.engine).numbers([PRESS.name])[PRESS.name]
    letters = [letter(offset) for offset in range(LETTERS)]
    with connection(env.pipeline.engine) as conn:
        took = [replace(conn, number, letters) for _ in range(3)]
    assert max(took) < 5.0
