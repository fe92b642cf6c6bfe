"""The benchmark still runs: its own checks of what the tables hold pass, and it says what it measured."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.domains import registry_for
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline_tests.environments import Environment
from benchmarks.stored import Fill, Filler

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report(state_dir: Path) -> str:
    """What a quick run of the throughput writes."""
    results = state_dir / "benchmark-results"
    options = ("--quick", "--server", "embedded", "--only", "throughput")
    where = ("--state", str(state_dir / "benchmark"), "--results", str(results))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, *where],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (results / "embedded.json").read_text(encoding="utf-8")


def test_a_quick_run_reports_both_baselines_the_pipeline_and_its_goals(report: str) -> None:
    figures = {figure["name"]: figure for figure in json.loads(report)["figures"]}

    assert {"(a) seed sink", "(b) bare COPY", "drain alone", "all five assets"} <= figures.keys()
    assert all(figure["value"] > 0 for figure in figures.values())
    whole, copy = figures["all five assets"]["value"], figures["(b) bare COPY"]["value"]
    ratio = figures["all five assets / (b)"]
    assert ratio["value"] == pytest.approx(whole / copy)
    assert ratio["met"] is (ratio["value"] >= ratio["goal"])


def test_a_report_names_the_machine_by_what_it_has_and_not_by_name(report: str) -> None:
    assert json.loads(report)["machine"]["cores"] > 0
    assert socket.gethostname() not in report
    assert str(CHECKOUT) not in report


def test_what_benchmarks_store_beforehand_is_what_the_pipeline_computes(opened: Environment) -> None:
    of = opened.settings
    database = {
        "host": of.db_host,
        "port": of.db_port,
        "user": of.db_user,
        "password": of.db_password.get_secret_value(),
        "dbname": of.db_name,
    }
    fill = Fill(hour_of(datetime.now(UTC)) - 5 * HOUR, 100, 0)
    filler = Filler(database, 0, 7)
    filler.raw(fill)
    filler.normalized(fill)
    rows = "SELECT event_time, series_id, sample_key, value, log_id, \"offset\", ordinal FROM normalized_measurements"
    stored = sorted(opened.pipeline.query(rows))
    domains = registry_for(of.model_copy(update={"kafka_topics": ()}))
    Deriver(of, opened.pipeline.engine, domains).derive("normalized_measurements", fill.hour, "full", "test")
    assert sorted(opened.pipeline.query(rows)) == stored
    assert len(stored) == 100
