"""A stack of one's own for the length of a command: locked, migrated, with topics; stopped whatever happens."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from analytics_pipeline.embedded import Stack, StopSignals, Supervisor, forget_connections
from analytics_pipeline.errors import EmbeddedServerError, PipelineError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from analytics_pipeline.domains import Registry
    from analytics_pipeline.settings import Settings

#: How long a stack that is just stopping may take before another refuses to start on the same state.
LOCK_WAIT_S = 30.0

TOPIC_PARTITIONS = 2

#: How far back the demo's data reaches, and a day.
DEMO_HISTORY = timedelta(days=58)
TOPIC_TIMEOUT_S = 20.0

#: Where dagster.yaml is when the working directory is elsewhere.
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Session:
    """What a command needs to talk to the stack that it started."""

    stack: Stack
    settings: Settings
    registry: Registry
    engine: Engine


@contextmanager
def open_session(state_dir: Path, say: Callable[[str], None], *, fresh: bool = False) -> Iterator[Session]:
    """Servers, schema and topics, ready; on leaving, everything stops. Ctrl-C, SIGTERM raise KeyboardInterrupt.

    ``fresh``: begin with an empty database.

    Raises:
        EmbeddedServerError: a server did not start, or another stack uses the same folder.
    """
    ignored = forget_connections()
    if ignored:
        say(f"ignored variables, because this command starts its own servers: {', '.join(ignored)}")
    state_dir.mkdir(parents=True, exist_ok=True)
    signals = StopSignals()
    with signals.installed(), _locked(state_dir / "lock", say) as lock:
        if fresh:
            shutil.rmtree(state_dir / "postgres", ignore_errors=True)
            (state_dir / "partitions-start").unlink(missing_ok=True)
        supervisor = Supervisor(state_dir / "logs", signals=signals, until_all_gone=[lock])
        try:
            yield _start(supervisor, state_dir, say)
        finally:
            signals.ignore()
            say("stopping")
            supervisor.close()


def _start(supervisor: Supervisor, state_dir: Path, say: Callable[[str], None]) -> Session:
    say("starting PostgreSQL, the Kafka broker and Valkey")
    partitions = {"PARTITIONS_START": _partitions_start(state_dir, datetime.now(UTC))}
    stack = Stack(supervisor, state_dir, _dagster_yaml(), say=say, extra_env=partitions)
    stack.start_servers()
    os.environ.update(stack.environment)

    from analytics_pipeline.domains import registry_for
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage.engine import engine_for
    from analytics_pipeline.storage.migrate import migrate

    settings = load_settings(_env_file=None)
    registry = registry_for(settings)
    applied = migrate(settings, registry.domain_topics, on_notice=say)
    if applied:
        say(f"applied {', '.join(applied)}")
    create_topics(settings, registry.topics)
    return Session(stack, settings, registry, engine_for(settings))


def _partitions_start(state_dir: Path, now: datetime) -> str:
    """The setting where it is given; else a month that begins before the demo's data does, the same at each start of
    one state folder, so that Dagster's bars are not one grey stretch of years without data."""
    given = os.environ.get("PARTITIONS_START")
    if given:
        return given
    kept = state_dir / "partitions-start"
    if not kept.is_file():
        kept.write_text((now - DEMO_HISTORY).strftime("%Y-%m-01T00:00:00+00:00\n"), encoding="ascii")
    return kept.read_text(encoding="ascii").strip()


def create_topics(settings: Settings, topics: Iterable[str]) -> None:
    """Create the topics that do not exist."""
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    wanted = [NewTopic(topic, TOPIC_PARTITIONS, 1) for topic in topics]
    admin = AdminClient({**settings.kafka_config(), "log_level": 0})  # kept: its answers die with it
    for topic, future in admin.create_topics(wanted).items():
        try:
            future.result(timeout=TOPIC_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise PipelineError(f"topic {topic} was not created: {error.args[0].str()}") from error


def _dagster_yaml() -> Path:
    for folder in (Path.cwd(), CHECKOUT):
        if (folder / "dagster.yaml").is_file():
            return folder / "dagster.yaml"
    raise EmbeddedServerError(f"no dagster.yaml in {Path.cwd()} or {CHECKOUT}; run this in a checkout of the project")


@contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[int]:
    """An exclusive lock on the state. The guard inherits it, so that it outlives a killed supervisor's stack."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(lock, path, say)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _take(lock: int, path: Path, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            owner = os.pread(lock, 32, 0).decode().strip() or "unknown"
            if time.monotonic() > deadline or (owner.isdigit() and Path(f"/proc/{owner}").exists()):
                raise EmbeddedServerError(
                    f"{path.parent} is in use by process {owner}; stop that process, or choose another --state-dir"
                ) from None
        if not told:
            say("waiting for the previous stack to stop")
            told = True
        time.sleep(0.2)
