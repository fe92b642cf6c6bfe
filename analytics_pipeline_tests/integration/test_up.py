"""``analytics-pipeline up``, as a user runs it: data flows, and SIGTERM leaves no process behind."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

START_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 40.0


@pytest.mark.timeout(START_TIMEOUT_S + STOP_TIMEOUT_S + 30)
def test_up_serves_the_page_streams_data_and_leaves_no_process_on_sigterm(state_dir: Path) -> None:
    state = state_dir / "up"
    command = [sys.executable, "-c", "from analytics_pipeline.cli import main; main()"]
    environment = {**os.environ, "DB_HOST": "not.this.one", "KAFKA_BROKERS": "nor-this-one:9092"}
    out_file = state_dir / "up.out"
    with out_file.open("wb") as out:
        up = subprocess.Popen([*command, "up", "--state-dir", str(state)], stdout=out, stderr=out, env=environment)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while "everything runs" not in out_file.read_text():
            assert up.poll() is None, out_file.read_text()
            assert time.monotonic() < deadline, out_file.read_text()
            time.sleep(0.2)
        page = re.search(r"Dagster\s+(http://\S+)", out_file.read_text())
        assert page, out_file.read_text()
        with urllib.request.urlopen(f"{page[1]}/server_info", timeout=10) as answer:
            assert answer.status == 200
        found = subprocess.run(
            [*command, "--env-file", str(state / "environment"), "doctor"],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout + found.stderr
        assert stat.S_IMODE((state / "environment").stat().st_mode) == 0o600
        family = [psutil.Process(up.pid), *psutil.Process(up.pid).children(recursive=True)]
        names = {process.name() for process in family if process.is_running()}
        assert {"postgres", "tansu", "valkey-server"} <= names
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(STOP_TIMEOUT_S)
    assert up.returncode == 0, out_file.read_text()
    assert "1268 hourly readings" in out_file.read_text()
    _, left = psutil.wait_procs(family, timeout=5)
    assert not left
