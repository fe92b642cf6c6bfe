"""The benchmark still runs: its own checks of what the tables hold pass, and it says what it measured."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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
