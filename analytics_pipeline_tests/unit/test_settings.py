"""Settings: names of the services it replaces, one clear line for a wrong value, and no secret anywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analytics_pipeline.errors import SettingsError
from analytics_pipeline.settings import (
    UNUSED,
    Settings,
    known_variables,
    load_settings,
    unused_variables,
    variable_names,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in known_variables() | UNUSED.keys():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def from_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka:29092", "kafka_brokers", "kafka:29092"),
        ("TIMESCALE_HOST", "timescaledb", "db_host", "timescaledb"),
        ("TIMESCALE_DB", "timeseries", "db_name", "timeseries"),
        ("BATCH_SIZE", "100", "drain_batch_messages", 100),
        ("BATCH_TIMEOUT", "5", "drain_max_seconds", 5.0),
        ("KAFKA_INPUT_TOPIC", "decoded_iot_data", "kafka_topics", ["decoded_iot_data"]),
        ("KAFKA_TOPICS", '["a.b","c"]', "kafka_topics", ["a.b", "c"]),
        ("DOMAINS_ENABLED", "sensor,lab", "domains_enabled", ["sensor", "lab"]),
        ("WINDOWS", "[3600,60,300]", "windows", [60, 300, 3600]),
        ("KAFKA_GROUP_ID", "g", "consumer_group", "g"),
        ("KAFKA_TOPIC", "octane.events", "kafka_topics", ["octane.events"]),
        ("FLUSH_INTERVAL", "5", "drain_max_seconds", 5.0),
        ("DOMAIN_DEFAULTS", '{"iot": {"tenant_id": "t1"}}', "domain_defaults", {"iot": {"tenant_id": "t1"}}),
        ("DOMAIN_DEFAULTS", "", "domain_defaults", {}),
        ("EVENT_DOMAINS", " ", "event_domains", {}),
        ("EVENT_DOMAINS", '{"safety": "safety.events"}', "event_domains", {"safety": ["safety.events"]}),
    ],
)
def test_the_variables_of_the_services_it_replaces_work(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, expected: object
) -> None:
    assert getattr(from_environment(monkeypatch, **{variable: value}), field) == expected


def test_of_two_names_for_one_setting_the_first_listed_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_environment(monkeypatch, TIMESCALE_HOST="old", DB_HOST="new").db_host == "new"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("DB_PORT", "abc", r"^DB_PORT: got 'abc', .*integer"),
        ("DB_PORT", "70000", r"^DB_PORT: got '70000', .*65535"),
        ("WINDOWS", "[60,7]", r"^WINDOWS: got '\[60,7\]', 7 does not divide 3600"),
        ("WINDOWS", "[60,5400]", r"5400 does not divide 3600"),
        ("WINDOWS", "[]", r"at least one window"),
        ("WINDOWS", "[60", r"^WINDOWS: got '\[60'"),
        ("PARTITIONS_START", "2025-01-01T00:30:00Z", r"^PARTITIONS_START: .*whole hour"),
        ("DB_SCHEMA", "Robert'); DROP", r"^DB_SCHEMA: got "),
        ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL", r"KAFKA_SASL_MECHANISM"),
        ("FIRST_OFFSET", "newest", r"^FIRST_OFFSET: got 'newest', .*'earliest' or 'latest'"),
        ("DOMAIN_TIME_ZONES", '{"sensor": "Mars/Base"}', r"^DOMAIN_TIME_ZONES: .*Asia/Bangkok"),
        ("DOMAIN_TIME_ZONES", "Asia/Bangkok", r"^DOMAIN_TIME_ZONES: got 'Asia/Bangkok'"),
        ("KAFKA_TOPICS", "a,a", r"^KAFKA_TOPICS: .*twice"),
        ("DOMAIN_DEFAULTS", '{"iot": "t1"}', r"^DOMAIN_DEFAULTS: got .*takes tenant and factory"),
        ("DOMAIN_DEFAULTS", '{"iot": {"tenant": "t1"}}', r"^DOMAIN_DEFAULTS: .*tenant_id"),
        ("DOMAIN_DEFAULTS", '{"iot": {"tenant_id": ""}}', r"^DOMAIN_DEFAULTS: .*1 to 256 bytes"),
        ("DOMAIN_DEFAULTS", "{", r"^DOMAIN_DEFAULTS: got '\{'"),
        ("DOMAIN_DEFAULTS", "[]", r"^DOMAIN_DEFAULTS: got '\[\]'"),
        ("EVENT_DOMAINS", '{"Safety!": ["a"]}', r"^EVENT_DOMAINS: .*safety\.events"),
        ("EVENT_DOMAINS", "[]", r"^EVENT_DOMAINS: got '\[\]'"),
    ],
)
def test_a_wrong_value_is_one_line_with_variable_value_and_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    with pytest.raises(SettingsError) as error:
        from_environment(monkeypatch, **{variable: value})
    assert re.search(says, str(error.value))
    assert "\n" not in str(error.value)


def test_no_secret_in_representations_urls_or_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hunter2-xyzzy"
    settings = from_environment(
        monkeypatch,
        DB_PASSWORD=secret,
        KAFKA_SECURITY_PROTOCOL="SASL_SSL",
        KAFKA_SASL_MECHANISM="PLAIN",
        KAFKA_SASL_USERNAME="u",
        KAFKA_SASL_PASSWORD=secret,
    )
    shown = [
        repr(settings),
        str(settings),
        str(settings.db_url()),
        repr(settings.db_url()),
        settings.model_dump_json(),
    ]
    assert not [text for text in shown if secret in text]
    assert settings.db_url().password == secret
    assert settings.kafka_config()["sasl.password"] == secret
    monkeypatch.setenv("DB_PORT", "x")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert secret not in str(error.value)


def test_the_base_window_is_the_greatest_common_divisor_within_the_hour() -> None:
    def base(*windows: int) -> tuple[int, tuple[int, ...]]:
        settings = Settings(windows=list(windows))
        return settings.base_window_s, settings.window_sizes_s

    assert base(60, 300, 3600) == (60, (60, 300, 3600))
    assert base(60, 90) == (30, (30, 60, 90))
    assert base(86400) == (3600, (3600, 86400))
    assert base(300, 7200) == (300, (300, 3600, 7200))


def test_the_example_file_names_every_setting_and_only_variables_that_are_read() -> None:
    text = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"^#?\s?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))
    assert named
    assert named <= known_variables()
    assert not [field for field in Settings.model_fields if not named & set(variable_names(field))]
    assert load_settings(_env_file=ROOT / ".env.example").windows == [60, 300, 3600]


#: Every variable that one of the five seeds names.
SEEDS = """
DB_HOST DB_PORT DB_NAME DB_USER DB_PASSWORD DB_SCHEMA KAFKA_BROKERS KAFKA_CLIENT_ID CONSUMER_GROUP KAFKA_TOPICS
DOMAINS_ENABLED WINDOWS ENABLE_WORKER ENABLE_SCHEDULER API_HOST ANALYTICS_WORKER_PORT ENV
DYNAMO_ENDPOINT AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY RECENT_EVENTS_TABLE_NAME MINIO_ENDPOINT MINIO_ACCESS_KEY
MINIO_SECRET_KEY ARCHIVE_BUCKET_NAME HEALTH_PORT
KAFKA_BOOTSTRAP_SERVERS KAFKA_INPUT_TOPIC TIMESCALE_HOST TIMESCALE_DB TIMESCALE_USER TIMESCALE_PASSWORD TIMESCALE_PORT
BATCH_SIZE BATCH_TIMEOUT KAFKA_TOPIC KAFKA_GROUP_ID CLICKHOUSE_HOST CLICKHOUSE_PORT FLUSH_INTERVAL LOG_LEVEL
"""


def test_every_setting_that_a_seed_names_is_read_or_said_to_have_no_effect() -> None:
    named = set(SEEDS.split())
    assert named <= known_variables() | UNUSED.keys()
    assert not known_variables() & UNUSED.keys()
    assert UNUSED.keys() <= named


def test_a_setting_without_effect_is_one_line_without_its_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert unused_variables() == []
    monkeypatch.setenv("MINIO_SECRET_KEY", "hunter2-xyzzy")
    (tmp_path / ".env").write_text("CLICKHOUSE_HOST=clickhouse\nENABLE_WORKER=\n")
    lines = unused_variables()
    assert [line.partition(" ")[0] for line in lines] == ["MINIO_SECRET_KEY", "CLICKHOUSE_HOST"]
    assert all("has no effect: " in line and "\n" not in line for line in lines)
    assert "hunter2" not in "".join(lines)


def test_what_has_no_effect_is_said_when_the_code_location_starts(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", "import analytics_pipeline.definitions"],
        env=kept | {"PYTHONPATH": str(ROOT), "CLICKHOUSE_HOST": "clickhouse"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert (done.stdout + done.stderr).count("CLICKHOUSE_HOST has no effect") == 1
