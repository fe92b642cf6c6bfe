"""The pipeline's own log lines: from the level that is set on, and without the values of variables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from analytics_pipeline.orchestration.logs import configure_logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def fail(password: str) -> None:
    raise RuntimeError(f"no connection, after {len(password)} characters")


def test_a_traceback_shows_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("INFO", "plant-3")
    try:
        fail("".join(("hunter", "2")))
    except RuntimeError:
        structlog.get_logger().exception("warm-up failed")
    said = capsys.readouterr().out
    assert "warm-up failed" in said
    assert "RuntimeError: no connection, after 7 characters" in said
    assert "hunter2" not in said


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("WARNING", "plant-3")
    structlog.get_logger().info("tick")
    structlog.get_logger().warning("hour failed", hour="2026-01-01-10:00")
    said = capsys.readouterr().out
    assert "tick" not in said
    assert "hour failed" in said
    assert "2026-01-01-10:00" in said
    assert "env=plant-3" in said
