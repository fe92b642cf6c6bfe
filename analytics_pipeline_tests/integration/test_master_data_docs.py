"""The example of docs/master-data.md, as it is written there: files, commands and what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analytics_pipeline.cli import build_app
from analytics_pipeline.errors import PipelineError
from analytics_pipeline.master_data.catalog import BY_NAME, MASTER_TABLES
from analytics_pipeline.master_data.spec import MasterTable
from analytics_pipeline.settings import Settings, variable_names
from analytics_pipeline_tests.integration.test_migrate import fetch

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "master-data.md").read_text("utf-8")
_BLOCK = re.compile(r"```(csv|console)\n(.*?)```", re.DOTALL)
_FILE = re.compile(r"`(\w+\.csv)`")

_DATA = """
    INSERT INTO domain_number (domain_id, domain) VALUES (1, 'machine');
    INSERT INTO measurement_series (domain_id, tenant_id, factory_id, machine_id, sensor_id, metric, unit) VALUES
        (1, 't-1', 'brickworks', 'press-1', 't-1', 'temp', '°F'),
        (1, 't-1', 'brickworks', 'press-1', NULL, 'state', NULL),
        (1, 't-1', 'brickworks', 'cutter-1', NULL, 'count', NULL),
        (1, 't-1', 'brickworks', 'cutter-1', NULL, 'speed', 'strokes/min');
    INSERT INTO partition_state (asset, hour, domain_id, rows, rows_failed, status)
    SELECT asset, '2026-11-02Z'::timestamptz + h * interval '1 hour', 1, 1, 0, 'open'
    FROM generate_series(0, 47) h, unnest(ARRAY['normalized_measurements', 'window_aggregates']) asset;
"""


@pytest.fixture
def place(database_settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in, and a database with two days of data."""
    for field in ("db_host", "db_port", "db_name", "db_user"):
        monkeypatch.setenv(variable_names(field)[0], str(getattr(database_settings, field)))
    monkeypatch.setenv("DB_PASSWORD", database_settings.db_password.get_secret_value())
    fetch(database_settings, _DATA)
    (tmp_path / "brickworks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> str:
    """What a person sees of a command."""
    words = command.removeprefix("$ analytics-pipeline ").split()
    result = CliRunner().invoke(build_app(), words)
    if isinstance(result.exception, PipelineError):
        return f"error: {result.exception}\n"
    assert result.exception is None, result.exception
    return "".join(line.rstrip() + "\n" for line in result.stdout.splitlines())


def test_every_command_of_the_page_says_what_the_page_says(place: Path) -> None:
    written, begins = set(), 0
    for block in _BLOCK.finditer(PAGE):
        kind, text = block.groups()
        if kind == "csv":
            name = (_FILE.findall(PAGE[begins : block.start()]) or ["calibration.csv"])[-1]
            (place / "brickworks" / name).write_text(text, "utf-8")
            written.add(name)
        else:
            command, _, told = text.partition("\n")
            assert run(command) == told, command
        begins = block.end()
    assert written == {f"{name}.csv" for name in BY_NAME}


def reference(table: MasterTable) -> str:
    """A table as the page describes it."""
    stale = ", ".join(table.stale) or "nothing"
    lines = [
        f"### {table.name}",
        "",
        f"{table.description} Target: {', '.join(f'`{name}`' for name in table.target)}. Makes stale: {stale}.",
        "",
        "| column | takes | |",
        "|---|---|---|",
    ]
    for column in table.in_files:
        takes = " \\| ".join(column.choices) or column.kind
        unit = f", {column.unit}" if column.unit else ""
        empty = f" (empty: {column.default})" if column.default and "empty:" not in column.description else ""
        lines.append(f"| `{column.name}` | {takes}{unit} | {column.description}{empty} |")
    return "\n".join(lines) + "\n"


def test_the_page_describes_every_table_as_it_is_declared() -> None:
    described = PAGE.partition("## The tables\n\n")[2]
    assert described == "\n".join(reference(table) for table in MASTER_TABLES)
