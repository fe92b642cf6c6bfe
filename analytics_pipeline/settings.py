"""Every setting, and the only reader of environment variables.

Names follow the services this pipeline replaces, so that their deployments move over unchanged; where two of
them named one thing differently, both names work and the first one listed wins. No connection is opened here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property, reduce
from math import gcd
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values, load_dotenv
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL

from analytics_pipeline.errors import SettingsError
from analytics_pipeline.records import HOUR_S

ENV_FILE = ".env"


#: What a domain may be called.
DOMAIN_NAME = r"[a-z][a-z0-9_]*"
#: Names of tenants and factories: as long as the gate lets pass.
MAX_NAME_BYTES = 256


def _names(*names: str) -> AliasChoices:
    return AliasChoices(*names)


def _is_defaults(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and value.keys() <= {"tenant_id", "factory_id"}
        and all(isinstance(n, str) and "\0" not in n and 1 <= len(n.encode()) <= MAX_NAME_BYTES for n in value.values())
    )


def _json(value: Any) -> Any:
    """An object given as JSON; empty text is an empty one."""
    return json.loads(value.strip() or "{}") if isinstance(value, str) else value


def _split(value: Any) -> Any:
    """A list given as JSON (``["a","b"]``), or with commas (``a,b``)."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        return json.loads(text)
    return [part.strip() for part in text.split(",") if part.strip()]


class Settings(BaseSettings):
    """Read from the environment and from ``.env`` in the working directory; the environment wins."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, extra="ignore", frozen=True, populate_by_name=True, arbitrary_types_allowed=True
    )

    # --- database
    db_host: str = Field("127.0.0.1", validation_alias=_names("DB_HOST", "TIMESCALE_HOST"))
    db_port: int = Field(5432, ge=1, le=65535, validation_alias=_names("DB_PORT", "TIMESCALE_PORT"))
    db_name: str = Field("sensor_cloud_db", validation_alias=_names("DB_NAME", "TIMESCALE_DB"))
    db_user: str = Field("postgres", validation_alias=_names("DB_USER", "TIMESCALE_USER"))
    db_password: SecretStr = Field(SecretStr(""), validation_alias=_names("DB_PASSWORD", "TIMESCALE_PASSWORD"))
    # 55 characters: Dagster's schema has the same name with "_dagster" behind it, and PostgreSQL's names have 63.
    db_schema: str = Field("analytics", pattern=r"^[a-z_][a-z0-9_]{0,54}$", validation_alias="DB_SCHEMA")
    db_pool_size: int = Field(4, ge=1, le=100, validation_alias="DB_POOL_SIZE")
    db_statement_timeout_s: int = Field(300, ge=1, validation_alias="DB_STATEMENT_TIMEOUT_S")

    # --- Kafka
    kafka_brokers: str = Field(
        "127.0.0.1:9092", validation_alias=_names("KAFKA_BROKERS", "KAFKA_BOOTSTRAP_SERVERS")
    )
    kafka_client_id: str = Field("analytics-pipeline", validation_alias="KAFKA_CLIENT_ID")
    consumer_group: str = Field(
        "analytics-pipeline.v1", validation_alias=_names("CONSUMER_GROUP", "KAFKA_GROUP_ID")
    )
    kafka_topics: Annotated[list[str], NoDecode] = Field(
        [], validation_alias=_names("KAFKA_TOPICS", "KAFKA_INPUT_TOPIC", "KAFKA_TOPIC")
    )
    domains_enabled: Annotated[list[str], NoDecode] = Field([], validation_alias="DOMAINS_ENABLED")
    #: Tenant and factory of payloads that name none, by domain: {"iot": {"tenant_id": "t1", "factory_id": "f1"}}.
    domain_defaults: Annotated[dict[str, dict[str, str]], NoDecode] = Field({}, validation_alias="DOMAIN_DEFAULTS")
    #: Further domains of plain events (domains/event_domains.py): topics by name.
    event_domains: Annotated[dict[str, list[str]], NoDecode] = Field({}, validation_alias="EVENT_DOMAINS")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", validation_alias="KAFKA_SECURITY_PROTOCOL"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, validation_alias="KAFKA_SASL_MECHANISM"
    )
    kafka_sasl_username: str | None = Field(None, validation_alias="KAFKA_SASL_USERNAME")
    kafka_sasl_password: SecretStr | None = Field(None, validation_alias="KAFKA_SASL_PASSWORD")
    kafka_ssl_ca_file: str | None = Field(
        None, validation_alias=_names("KAFKA_SSL_CA_FILE", "KAFKA_SSL_CA_LOCATION")
    )

    # --- drain: the bounds of one tick. A sensor evaluation has 60 s, so that 20 s of draining leave room.
    drain_batch_messages: int = Field(
        50_000, ge=1, le=1_000_000, validation_alias=_names("DRAIN_BATCH_MESSAGES", "BATCH_SIZE")
    )
    drain_batch_bytes: int = Field(64 * 1024**2, ge=1024, validation_alias="DRAIN_BATCH_BYTES")
    drain_max_seconds: float = Field(
        20.0, gt=0, le=45, validation_alias=_names("DRAIN_MAX_SECONDS", "BATCH_TIMEOUT", "FLUSH_INTERVAL")
    )
    drain_interval_s: int = Field(5, ge=1, le=3600, validation_alias="DRAIN_INTERVAL_S")
    #: How long a drain and a live run wait for what comes next; 0: each does what there is, and ends.
    linger_s: float = Field(10.0, ge=0, le=60, validation_alias="LINGER_S")
    #: How long the windows above the base may lag in live hours with many series; 0: never.
    windows_lag_s: float = Field(10.0, ge=0, le=30, validation_alias="WINDOWS_LAG_S")
    max_message_bytes: int = Field(1024**2, ge=1024, validation_alias="MAX_MESSAGE_BYTES")
    first_offset: Literal["earliest", "latest"] = Field(
        "earliest", validation_alias=_names("FIRST_OFFSET", "AUTO_OFFSET_RESET")
    )

    # --- event time and windows
    windows: Annotated[list[int], NoDecode] = Field([60, 300, 3600], validation_alias="WINDOWS")
    allowed_lateness_s: int = Field(60, ge=0, validation_alias="ALLOWED_LATENESS_S")
    idle_partition_s: int = Field(60, ge=1, validation_alias="IDLE_PARTITION_S")
    future_tolerance_s: int = Field(600, ge=0, le=HOUR_S, validation_alias="FUTURE_TOLERANCE_S")
    partitions_start: datetime = Field(datetime(2025, 1, 1, tzinfo=UTC), validation_alias="PARTITIONS_START")
    domain_time_zones: Annotated[dict[str, ZoneInfo], NoDecode] = Field({}, validation_alias="DOMAIN_TIME_ZONES")
    retention_days: int = Field(0, ge=0, validation_alias="RETENTION_DAYS")

    # --- Dagster, Celery and coordination
    celery_broker_url: str = Field("redis://127.0.0.1:6379/0", validation_alias="CELERY_BROKER_URL")
    celery_result_backend: str = Field("redis://127.0.0.1:6379/1", validation_alias="CELERY_RESULT_BACKEND")
    backpressure_pending: int = Field(2000, ge=1, validation_alias="BACKPRESSURE_PENDING")
    backfill_max_runs: int = Field(8, ge=1, le=1000, validation_alias="BACKFILL_MAX_RUNS")
    dagster_retention_days: int = Field(7, ge=1, validation_alias="DAGSTER_RETENTION_DAYS")

    env: str = Field("dev", validation_alias="ENV")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", validation_alias="LOG_LEVEL")

    @field_validator("kafka_topics", "domains_enabled", "windows", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return _split(value)

    @field_validator("domain_defaults", mode="before")
    @classmethod
    def _defaults_name_tenants_and_factories(cls, value: Any) -> Any:
        named = _json(value)
        if not isinstance(named, dict) or not all(_is_defaults(its) for its in named.values()):
            raise ValueError(
                'takes tenant and factory by domain, for example {"iot": {"tenant_id": "t1", "factory_id": "f1"}}; '
                f"names have 1 to {MAX_NAME_BYTES} bytes"
            )
        return named

    @field_validator("event_domains", mode="before")
    @classmethod
    def _event_domains_have_topics(cls, value: Any) -> Any:
        named = _json(value)
        if not isinstance(named, dict) or not all(re.fullmatch(DOMAIN_NAME, name) for name in named):
            raise ValueError('takes topics by name of the domain, for example {"safety": ["safety.events"]}')
        return {name: [topics] if isinstance(topics, str) else topics for name, topics in named.items()}

    @field_validator("domain_time_zones", mode="before")
    @classmethod
    def _zones_exist(cls, value: Any) -> Any:
        named = json.loads(value) if isinstance(value, str) else value
        try:
            return {domain: ZoneInfo(str(zone)) for domain, zone in named.items()}
        except (ZoneInfoNotFoundError, AttributeError, OSError) as error:
            raise ValueError(
                f'takes time zones by domain, for example {{"sensor": "Asia/Bangkok"}}: {error}'
            ) from None

    @field_validator("windows")
    @classmethod
    def _windows_divide_the_hour(cls, value: list[int]) -> list[int]:
        if not value:
            raise ValueError("takes at least one window size in seconds")
        for size_s in value:
            if size_s < 1 or (HOUR_S % size_s and size_s % HOUR_S):
                raise ValueError(f"{size_s} does not divide 3600 s and is no multiple of it")
        return sorted(set(value))

    @field_validator("partitions_start")
    @classmethod
    def _start_is_a_whole_hour(cls, value: datetime) -> datetime:
        value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if value != value.replace(minute=0, second=0, microsecond=0):
            raise ValueError("takes a whole hour, for example 2025-01-01T00:00:00Z")
        return value

    @field_validator("kafka_topics")
    @classmethod
    def _topics_are_named(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("names a topic twice")
        return value

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> Settings:
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_sasl_mechanism and self.kafka_sasl_username and self.kafka_sasl_password
        ):
            raise ValueError(
                "KAFKA_SECURITY_PROTOCOL: SASL takes KAFKA_SASL_MECHANISM, _USERNAME and _PASSWORD as well"
            )
        return self

    @property
    def dagster_schema(self) -> str:
        """Where Dagster keeps its runs and events: beside the pipeline's own schema, one for each."""
        return f"{self.db_schema}_dagster"

    @cached_property
    def base_window_s(self) -> int:
        """The window that is computed from measurements; every other one merges it. At most one hour."""
        return reduce(gcd, self.windows, HOUR_S)

    @cached_property
    def window_sizes_s(self) -> tuple[int, ...]:
        """All sizes that are stored, ascending: base, those asked for, the hour if longer ones need it."""
        sizes = {self.base_window_s, *self.windows}
        if max(self.windows) > HOUR_S:
            sizes.add(HOUR_S)
        return tuple(sorted(sizes))

    def __hash__(self) -> int:
        return hash(repr(self))

    def db_url(self, database: str | None = None) -> URL:
        """SQLAlchemy URL. ``str()`` of it masks the password."""
        return URL.create(
            "postgresql+psycopg2",
            username=self.db_user,
            password=self.db_password.get_secret_value() or None,
            host=self.db_host,
            port=self.db_port,
            database=database or self.db_name,
        )

    def kafka_config(self) -> dict[str, str]:
        """What every librdkafka client of this project needs to connect."""
        config = {
            "bootstrap.servers": self.kafka_brokers,
            "client.id": self.kafka_client_id,
            "security.protocol": self.kafka_security_protocol,
        }
        if self.kafka_sasl_mechanism:
            config["sasl.mechanism"] = self.kafka_sasl_mechanism
            config["sasl.username"] = self.kafka_sasl_username or ""
            secret = self.kafka_sasl_password
            config["sasl.password"] = secret.get_secret_value() if secret else ""
        if self.kafka_ssl_ca_file:
            config["ssl.ca.location"] = self.kafka_ssl_ca_file
        return config


def variable_names(field: str) -> tuple[str, ...]:
    """The environment variables that set a field, the preferred one first."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (str(alias),)


def known_variables() -> frozenset[str]:
    """Every environment variable that this project reads."""
    return frozenset(name for field in Settings.model_fields for name in variable_names(field))


_NO_API = "there is no HTTP API yet: Dagster's page and 'analytics-pipeline status' show how the pipeline stands"
_ONE_DATABASE = "recent events are in the view recent_events of this database"
_NO_ARCHIVE = "there is no archive yet: raw events stay in the database for RETENTION_DAYS"
_NO_CLICKHOUSE = "events are in the view ai_analytics_events of this database: set DB_HOST and DB_PORT"
#: Settings of the services that this pipeline replaces which have no effect here, and why.
UNUSED: Mapping[str, str] = {
    "ENABLE_WORKER": "Dagster's sensor drain_kafka is the worker: turn it on and off under Automation",
    "ENABLE_SCHEDULER": "Dagster's daemon is the scheduler: turn schedules on and off under Automation",
    "API_HOST": _NO_API,
    "ANALYTICS_WORKER_PORT": _NO_API,
    "HEALTH_PORT": _NO_API,
    "DYNAMO_ENDPOINT": _ONE_DATABASE,
    "RECENT_EVENTS_TABLE_NAME": _ONE_DATABASE,
    "AWS_ACCESS_KEY_ID": _NO_ARCHIVE,
    "AWS_SECRET_ACCESS_KEY": _NO_ARCHIVE,
    "MINIO_ENDPOINT": _NO_ARCHIVE,
    "MINIO_ACCESS_KEY": _NO_ARCHIVE,
    "MINIO_SECRET_KEY": _NO_ARCHIVE,
    "ARCHIVE_BUCKET_NAME": _NO_ARCHIVE,
    "CLICKHOUSE_HOST": _NO_CLICKHOUSE,
    "CLICKHOUSE_PORT": _NO_CLICKHOUSE,
}


def unused_variables() -> list[str]:
    """A line per variable that is set, in the environment or in ``.env``, and has no effect; never its value."""
    given = {**dotenv_values(ENV_FILE), **os.environ}
    return [f"{name} has no effect: {why}" for name, why in UNUSED.items() if given.get(name)]


def adopt_working_directory() -> None:
    """Make of the working directory what ``dagster dev`` makes of it: its ``.env`` joins the environment, which
    wins, and where it has a ``dagster.yaml`` it is the Dagster home, unless ``DAGSTER_HOME`` names another.

    For processes that Dagster's commands do not start. Its instance is configured from the environment alone.
    """
    load_dotenv(Path.cwd() / ENV_FILE)
    if Path("dagster.yaml").is_file():
        os.environ.setdefault("DAGSTER_HOME", str(Path.cwd()))


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment.

    Raises:
        SettingsError: a line per wrong value: the variable, what it got, what it takes; no secrets.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "settings"
    text = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return text
    shown = "(hidden)" if "PASSWORD" in where.upper() else repr(problem.get("input"))
    return f"{where}: got {shown}, {text[0].lower()}{text[1:]}"
