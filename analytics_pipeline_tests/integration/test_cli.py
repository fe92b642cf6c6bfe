"""The command line against real servers: what a person sees, what it changes, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from analytics_pipeline.cli import build_app, main
from analytics_pipeline.domains import Registry
from analytics_pipeline.embedded import ValkeyServer
from analytics_pipeline.errors import OffsetConflictError, PipelineError
from analytics_pipeline.settings import Settings, variable_names
from analytics_pipeline.storage import operator_actions
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.conftest import KafkaServer
from analytics_pipeline_tests.integration.test_migrate import fetch
from analytics_pipeline_tests.pipeline import Pipeline, reading, send

HOUR = "2026-01-01T10:00Z"
APP = build_app()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts settings where the command line looks for them: into the environment."""

    def put(settings: Settings) -> None:
        values = settings.model_dump()
        for field in ("db_host", "db_port", "db_name", "db_user", "kafka_brokers", "celery_broker_url"):
            monkeypatch.setenv(variable_names(field)[0], str(values[field]))
        monkeypatch.setenv("CELERY_RESULT_BACKEND", settings.celery_result_backend)
        monkeypatch.setenv("DB_PASSWORD", settings.db_password.get_secret_value())
        monkeypatch.setenv("KAFKA_TOPICS", ",".join(settings.kafka_topics))

    return put


def run(*words: str | int) -> Result:
    return CliRunner().invoke(APP, [str(word) for word in words])


def succeed(*words: str | int) -> str:
    result = run(*words)
    assert result.exception is None, result.exception
    assert result.exit_code == 0
    return result.stdout


def refuse(*words: str | int) -> str:
    result = run(*words)
    assert isinstance(result.exception, PipelineError), result.exception
    return str(result.exception)


@pytest.fixture
def pipeline(settings: Settings, engine: Engine, registry: Registry) -> Iterator[Pipeline]:
    it = Pipeline(settings, engine, registry)
    yield it
    it.close()


@pytest.fixture
def drained(settings: Settings, pipeline: Pipeline, topic: str, producer: Producer, use: Any) -> Settings:
    """Ten readings in partition 0, read into the database."""
    use(settings)
    send(producer, topic, [reading(f"2026-01-01T10:00:{number:02}Z") for number in range(10)])
    pipeline.tick()
    pipeline.settle()
    return settings


def next_offset(settings: Settings) -> int:
    return int(fetch(settings, "SELECT next_offset FROM kafka_offset WHERE partition = 0")[0][0])


def gaps(settings: Settings) -> list[tuple[Any, ...]]:
    return fetch(settings, "SELECT from_offset, to_offset FROM offset_gap ORDER BY gap_id")


# ---------------------------------------------------------------------- migrate


def test_migrate_says_what_it_applied_and_then_that_nothing_is_left(bare_settings: Settings, use: Any) -> None:
    use(bare_settings)
    assert "applied 01_kafka.sql, 02_derived.sql" in succeed("migrate")
    assert "nothing to apply" in succeed("migrate")
    topics = fetch(bare_settings, "SELECT topic FROM domain_topic WHERE domain = 'sensor'")
    assert topics == [("sensors.device.readings",)]


def test_a_command_before_migrate_says_so(bare_settings: Settings, use: Any) -> None:
    use(bare_settings)
    assert "run 'analytics-pipeline migrate'" in refuse("status")


def test_main_prints_one_line_and_no_stack_trace(
    bare_settings: Settings, use: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(bare_settings.model_copy(update={"db_host": "127.0.0.1", "db_port": 1}))
    monkeypatch.setattr("sys.argv", ["analytics-pipeline", "status"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: database ")
    assert "check DB_HOST" in said


def test_a_wrong_setting_is_named_with_what_it_got(
    bare_settings: Settings, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bare_settings)
    monkeypatch.setenv("WINDOWS", "70")
    assert refuse("status").startswith("WINDOWS: got '70'")


# ---------------------------------------------------------------------- status


def test_status_of_a_new_database_says_that_nothing_happened(database_settings: Settings, use: Any) -> None:
    use(database_settings)
    said = succeed("status")
    assert "last tick of drain_kafka: never; start" in said
    assert "last batch committed: never" in said
    assert "pending work: none" in said


def test_status_shows_lag_pending_quarantine_failures_gaps_and_dead_letters(drained: Settings, topic: str) -> None:
    fetch(drained, "UPDATE kafka_offset SET high_offset = next_offset + 7 WHERE partition = 0")
    fetch(drained, "DELETE FROM pending_work")
    fetch(drained, "INSERT INTO pending_work (asset, hour, domain_id, reason) VALUES ('kpis', %s, 1, 'test')", HOUR)
    quarantine(drained)
    fetch(drained, "INSERT INTO run_request VALUES (%s, 'c', 3, now(), now(), 'disk full')", HOUR)
    fetch(
        drained, "INSERT INTO offset_gap (topic, epoch, partition, from_offset, reason) VALUES ('t', 1, 0, 4, 'x')"
    )
    report = json.loads(succeed("status", "--json"))
    seen = report["overview"]
    assert report["lag_messages"] == 7
    assert report["pending_domain_partitions"] == 1
    assert [(one["asset"], one["domain_partitions"], one["pending_items"]) for one in seen["pending"]] == [
        ("kpis", 1, 1)
    ]
    assert [(one["asset"], one["rows_failed"]) for one in seen["quarantined"]] == [("anomalies", 150)]
    assert [(one["asset"], one["domain"], one["attempts"], one["error"]) for one in seen["failed"]] == [
        ("run", None, 3, "disk full")
    ]
    assert seen["open_gaps"] == 1
    for words in (topic[:12], "Pending work", "domain partitions", "Quarantined", "disk full", "open gaps: 1;"):
        assert words in succeed("status")


def test_status_says_how_much_waits_in_kafka_and_null_where_nobody_knows(drained: Settings) -> None:
    assert json.loads(succeed("status", "--json"))["lag_messages"] == 0
    fetch(drained, "UPDATE kafka_offset SET high_offset = NULL WHERE partition = 0")
    assert json.loads(succeed("status", "--json"))["lag_messages"] is None


def test_a_file_of_variables_wins_over_the_environment(
    drained: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "environment"
    file.write_text(f"DB_NAME='{drained.db_name}'\n")
    monkeypatch.setenv("DB_NAME", "not_this_one")
    assert "not_this_one" in refuse("status")
    assert "Lag" in succeed("--env-file", str(file), "status")


# ---------------------------------------------------------------------- offsets


def test_offsets_show_lists_what_was_drained(drained: Settings, topic: str) -> None:
    shown = json.loads(succeed("offsets", "show", "--json"))
    assert [(one["topic"], one["partition"], one["next_offset"]) for one in shown] == [
        (topic, 0, 10),
        (topic, 1, 0),
    ]
    assert "Offsets" in succeed("offsets", "show")


def more(producer: Producer, topic: str, count: int) -> None:
    send(producer, topic, [reading(f"2026-01-01T10:01:{number:02}Z") for number in range(count)])


def test_seek_without_yes_changes_nothing(drained: Settings, topic: str) -> None:
    assert "add --yes" in refuse("offsets", "seek", topic, 0, 5)
    assert next_offset(drained) == 10


def test_seek_forward_records_a_gap_and_the_drain_goes_on_from_there(
    drained: Settings, topic: str, producer: Producer, pipeline: Pipeline
) -> None:
    more(producer, topic, 6)
    assert "offsets 10 to 13 are recorded as a gap" in succeed("offsets", "seek", topic, 0, 14, "--yes")
    assert gaps(drained) == [(10, 14)]
    pipeline.tick()
    stored = fetch(drained, 'SELECT "offset" FROM raw_events WHERE partition = 0 ORDER BY 1')
    assert [row[0] for row in stored] == [*range(10), 14, 15]


def test_seek_back_into_what_was_skipped_reads_it_after_all(
    drained: Settings, topic: str, producer: Producer, pipeline: Pipeline
) -> None:
    more(producer, topic, 6)
    succeed("offsets", "seek", topic, 0, 15, "--yes")
    succeed("offsets", "seek", topic, 0, 12, "--yes")
    assert gaps(drained) == [(10, 12)]
    pipeline.tick()
    stored = fetch(drained, 'SELECT "offset" FROM raw_events WHERE partition = 0 ORDER BY 1')
    assert [row[0] for row in stored] == [*range(10), *range(12, 16)]


def test_seek_back_over_stored_messages_is_refused_with_the_remedy(drained: Settings, topic: str) -> None:
    said = refuse("offsets", "seek", topic, 0, 5, "--yes")
    assert "offsets 5 to 9 are stored already" in said
    assert "materialize raw_events" in said
    assert next_offset(drained) == 10


def test_seek_beyond_the_end_of_the_log_is_refused(drained: Settings, topic: str) -> None:
    assert "takes 0 to" in refuse("offsets", "seek", topic, 0, 999, "--yes")
    assert next_offset(drained) == 10


def test_seek_loses_against_a_drain_that_moves_meanwhile(
    drained: Settings, topic: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connection(engine) as conn:
        before = operator_actions.read_offsets(conn, [topic])
        conn.rollback()
        fetch(drained, "UPDATE kafka_offset SET next_offset = 11 WHERE partition = 0")
        monkeypatch.setattr(operator_actions, "read_offsets", lambda *_: before)
        with pytest.raises(OffsetConflictError, match="try again"):
            operator_actions.seek(conn, topic, 0, 14)
    assert next_offset(drained) == 11
    assert gaps(drained) == []


def test_a_drain_that_holds_old_positions_does_not_undo_a_seek(
    drained: Settings, topic: str, producer: Producer, pipeline: Pipeline
) -> None:
    more(producer, topic, 6)
    succeed("offsets", "seek", topic, 0, 13, "--yes")
    pipeline.tick()
    stored = fetch(drained, 'SELECT count(*), max("offset") FROM raw_events WHERE partition = 0')
    assert stored == [(13, 15)]


# ---------------------------------------------------------------------- gaps


def test_gaps_are_listed_until_they_are_accepted(database_settings: Settings, use: Any) -> None:
    use(database_settings)
    assert "open gaps: none" in succeed("gaps", "list")
    insert = "INSERT INTO offset_gap (topic, epoch, partition, from_offset, to_offset, reason) VALUES "
    fetch(database_settings, insert + "('t', 1, 0, 4, 9, 'expired'), ('t', 1, 1, 4, NULL, 'log ended')")
    listed = json.loads(succeed("gaps", "list", "--json"))
    assert [(gap["from_offset"], gap["to_offset"]) for gap in listed] == [(4, 9), (4, None)]
    assert "end of log" in succeed("gaps", "list")
    first = listed[0]["gap_id"]
    assert succeed("gaps", "accept", first, "--by", "ann") == f"accepted: {first}\n"
    assert [gap["reason"] for gap in json.loads(succeed("gaps", "list", "--json"))] == ["log ended"]
    succeed("gaps", "accept", "--all")
    assert succeed("gaps", "accept", first) == "accepted: none, no such gap is open\n"
    accepted = json.loads(succeed("gaps", "list", "--all", "--json"))
    assert accepted[0]["accepted_by"] == "ann"
    assert accepted[1]["accepted_by"]
    assert "no such gap: 999" in refuse("gaps", "accept", 999)
    assert "gap numbers or --all" in refuse("gaps", "accept")


# ---------------------------------------------------------------------- gates


def quarantine(settings: Settings, asset: str = "anomalies") -> None:
    detail = json.dumps({"rows_seen": 200, "expectations": {"expect_column_values_to_be_between(score)": 150}})
    fetch(settings, "INSERT INTO domain_number (domain_id, domain) VALUES (1, 'sensor') ON CONFLICT DO NOTHING")
    fetch(
        settings,
        "INSERT INTO partition_state (asset, hour, domain_id, rows, rows_failed, status, detail) "
        "VALUES (%s, %s, 1, 0, 150, 'quarantined', %s) ON CONFLICT (asset, hour, domain_id) DO UPDATE "
        "SET rows_failed = 150, status = 'quarantined', detail = EXCLUDED.detail",
        asset, HOUR, detail,
    )  # fmt: skip


def test_a_quarantined_domain_partition_is_listed_and_released(database_settings: Settings, use: Any) -> None:
    use(database_settings)
    assert "quarantined domain partitions: none" in succeed("gates", "list")
    quarantine(database_settings)
    listed = json.loads(succeed("gates", "list", "--json"))
    assert [(one["rows_failed"], one["pending_items"]) for one in listed] == [(150, 0)]
    assert "quarantined" in succeed("gates", "list")
    assert "released: anomalies, 2026-01-01T10:00:00Z, sensor" in succeed(
        "gates", "release", "anomalies", HOUR, "sensor"
    )
    rows = fetch(
        database_settings,
        "SELECT s.status, w.spans, w.reason FROM partition_state s "
        "JOIN pending_work w USING (asset, hour, domain_id)",
    )
    assert rows == [("released", None, "released")]
    assert "not in quarantine: " in refuse("gates", "release", "anomalies", HOUR, "sensor")


@pytest.mark.parametrize("hour", ["2026-01-01-10:00", "2026-01-01T10:00:00Z", "2026-01-01 10:00"])
def test_an_hour_may_be_written_as_dagster_writes_it(database_settings: Settings, use: Any, hour: str) -> None:
    use(database_settings)
    quarantine(database_settings)
    succeed("gates", "release", "anomalies", hour, "sensor")


def test_half_an_hour_is_not_an_hour(database_settings: Settings, use: Any) -> None:
    use(database_settings)
    assert "takes a whole hour" in refuse("gates", "release", "kpis", "2026-01-01T10:30Z", "sensor")


# ---------------------------------------------------------------------- doctor


def findings(expected_exit_code: int) -> dict[str, dict[str, Any]]:
    result = run("doctor", "--json")
    assert result.exit_code == expected_exit_code, result.output
    return {finding["check"]: finding for finding in json.loads(result.stdout)}


def test_doctor_finds_everything_in_order(
    settings: Settings, valkey_server: ValkeyServer, topic: str, use: Any
) -> None:
    use(settings.model_copy(update=celery(valkey_server)))
    succeed("migrate")
    found = findings(0)
    assert {name for name, one in found.items() if one["level"] == "fail"} == set()
    assert found["database"]["found"].startswith("PostgreSQL ")
    assert topic in found["topics"]["found"]
    assert "ok" in run("doctor").stdout


def celery(valkey: ValkeyServer) -> dict[str, str]:
    return {"celery_broker_url": valkey.url(0), "celery_result_backend": valkey.url(1)}


def test_doctor_says_what_is_out_of_reach_and_what_mends_it(bare_settings: Settings, use: Any) -> None:
    nowhere = "redis://:secret@127.0.0.1:1/0"
    use(bare_settings.model_copy(update={"celery_broker_url": nowhere, "celery_result_backend": nowhere}))
    found = findings(1)
    failed = {name for name, one in found.items() if one["level"] == "fail"}
    assert failed == {"schema", "Kafka", "Celery broker", "Celery result backend"}
    assert all(found[name]["remedy"] for name in failed)
    assert "analytics-pipeline migrate" in found["schema"]["remedy"]
    assert found["permissions"]["level"] == "note"  # not "ok": there is nothing yet to have them on
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize(
    "url", ["http://:secret@127.0.0.1:1", "redis://:sec#ret@127.0.0.1:1/0", "redis://127.0.0.1:secret/0", "secret:6379"]
)
def test_doctor_says_how_to_write_an_address_of_celery_that_cannot_be_read(
    bare_settings: Settings, use: Any, url: str
) -> None:
    use(bare_settings.model_copy(update={"celery_broker_url": url, "celery_result_backend": url}))
    found = findings(1)
    assert "CELERY_BROKER_URL as redis://" in found["Celery broker"]["remedy"]
    assert "CELERY_RESULT_BACKEND as redis://" in found["Celery result backend"]["remedy"]
    assert "sec" not in found["Celery broker"]["found"]


def test_doctor_without_a_database_goes_on_with_the_rest(bare_settings: Settings, use: Any) -> None:
    use(bare_settings.model_copy(update={"db_host": "127.0.0.1", "db_port": 1}))
    found = findings(1)
    assert "DB_HOST" in found["database"]["remedy"]
    assert "Kafka" in found


def test_doctor_names_a_topic_that_is_not_there(settings: Settings, use: Any) -> None:
    use(settings.model_copy(update={"kafka_topics": ["no.such.topic"]}))
    assert "no.such.topic" in findings(1)["topics"]["found"]


def test_doctor_takes_it_calmly_where_only_some_topics_of_all_domains_are_there(
    settings: Settings, kafka_broker: KafkaServer, use: Any
) -> None:
    kafka_broker.create_topic("sensors.device.readings", 1)
    use(settings.model_copy(update={"kafka_topics": []}))
    found = findings(1)["topics"]
    assert found["level"] == "note"
    assert "sensors.device.readings (" in found["found"]
    assert "missing topics: " in found["found"]
    assert "lab.results" in found["found"]
    assert "DOMAINS_ENABLED" in found["remedy"]


def test_doctor_names_settings_of_the_seeds_that_have_no_effect(settings: Settings, use: Any, monkeypatch: Any) -> None:
    use(settings)
    monkeypatch.setenv("CLICKHOUSE_HOST", "clickhouse")
    found = findings(1)["settings without effect"]
    assert (found["level"], found["found"].partition(" ")[0]) == ("note", "CLICKHOUSE_HOST")


def test_doctor_names_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PORT", "many")
    assert "DB_PORT: got 'many'" in findings(1)["settings"]["found"]
