"""Baseline (a): the sink that this pipeline replaces, built as its document describes it.

One consumer, ``json.loads`` and a pydantic model per message with aliases and validators, lists of 100
records written by ``execute_batch`` and committed one by one, one table with its key and its three indexes; a
hypertable where TimescaleDB is. Where it differs from the document, it is to its favour: librdkafka
(``confluent_kafka``) for kafka-python, partitions assigned instead of joined as a group, and the pydantic of
this project's lock. Its aliases are those of this project's sensor payload, so that all read the same
messages.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any

import psycopg2
from confluent_kafka import Consumer, TopicPartition
from psycopg2.extras import execute_batch
from pydantic import BaseModel, Field, ValidationError, field_validator

from benchmarks.kafka import PARTITIONS, READ_TIMEOUT_S
from benchmarks.payloads import TOPIC

logger = logging.getLogger("kafka_timescale_sink")

BATCH_SIZE = 100
BATCH_TIMEOUT_S = 5.0
#: What kafka-python's poll() returns at most.
POLL_RECORDS = 500

TABLE = """
CREATE TABLE IF NOT EXISTS iot_measurements (
    timestamp TIMESTAMPTZ NOT NULL,
    device_id VARCHAR(50) NOT NULL,
    connector_mode VARCHAR(50) NOT NULL,
    component_type VARCHAR(50) NOT NULL,
    pin_position VARCHAR(10),
    value DOUBLE PRECISION,
    unit VARCHAR(20),
    topic VARCHAR(255),
    PRIMARY KEY (timestamp, device_id, connector_mode, component_type, pin_position)
)
"""
HYPERTABLE = "SELECT create_hypertable('iot_measurements', 'timestamp', if_not_exists => TRUE)"
INDEXES = """
CREATE INDEX IF NOT EXISTS idx_iot_device_id ON iot_measurements (device_id, timestamp DESC);
CREATE INDEX IF NOT EXISTS idx_iot_component ON iot_measurements (component_type, timestamp DESC);
CREATE INDEX IF NOT EXISTS idx_iot_mode ON iot_measurements (connector_mode, timestamp DESC)
"""


class IotMeasurement(BaseModel):
    """Pydantic model for a measurement record."""

    timestamp: datetime = Field(alias="time")
    device_id: str = Field(alias="sensor_id")
    connector_mode: str = Field("unknown", alias="machine_id")
    component_type: str = Field("unknown", alias="metric")
    pin_position: str = Field("-1", alias="pin")
    value: float | None = None
    unit: str = ""
    topic: str = Field("", alias="original_topic")

    @field_validator("timestamp", mode="before")
    @classmethod
    def convert_timestamp(cls, v: Any) -> Any:
        """Seconds since the epoch, or ISO 8601."""
        if isinstance(v, int | float):
            return datetime.fromtimestamp(v, UTC)
        if isinstance(v, str):
            return datetime.fromisoformat(v)
        return v

    @field_validator("value", mode="before")
    @classmethod
    def convert_value_to_float(cls, v: Any) -> float | None:
        """A number, or nothing."""
        try:
            return float(v)
        except (TypeError, ValueError):
            return None


class KafkaTimescaleSink:
    """Orchestrates consumption and persistence."""

    def __init__(self, brokers: str, database: dict[str, Any]) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": "timescale_sink_group",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": True,
            }
        )
        self._connection = psycopg2.connect(**database)
        self._insert_statement = self._build_insert_statement()
        self._batch: list[tuple[Any, ...]] = []
        self._last_insert = time.monotonic()
        self.inserted = 0

    def create_table(self) -> None:
        """The table and its indexes; a hypertable where the server has such."""
        with self._connection.cursor() as cursor:
            cursor.execute(TABLE)
            cursor.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")
            if cursor.fetchone():
                cursor.execute(HYPERTABLE)
            cursor.execute(INDEXES)
        self._connection.commit()

    def run(self, count: int) -> float:
        """Persist ``count`` messages. Returns seconds, from the start of consumption to the last commit."""
        self._consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in range(PARTITIONS)])
        started = time.monotonic()
        seen = 0
        while seen < count:
            messages = self._consumer.consume(POLL_RECORDS, 1.0)
            for message in messages:
                seen += 1
                self._process_message(message)
            if self._batch and time.monotonic() - self._last_insert > BATCH_TIMEOUT_S:
                self._insert_batch()
            if not messages and time.monotonic() - started > READ_TIMEOUT_S:
                raise RuntimeError(f"{TOPIC}: {count - seen} messages did not arrive")
        self._insert_batch()
        return time.monotonic() - started

    def close(self) -> None:
        """Leave the broker and the database."""
        self._consumer.close()
        self._connection.close()

    def _process_message(self, message: Any) -> None:
        record = self._prepare_record(json.loads(message.value()))
        if record is not None:
            self._batch.append(record)
            if len(self._batch) >= BATCH_SIZE:
                self._insert_batch()

    @staticmethod
    def _prepare_record(data: dict[str, Any]) -> tuple[Any, ...] | None:
        try:
            return tuple(IotMeasurement(**data).model_dump().values())
        except ValidationError as error:
            logger.warning("invalid message: %s", error)
            return None

    @staticmethod
    def _build_insert_statement() -> str:
        fields = list(IotMeasurement.model_fields)
        placeholders = ", ".join(["%s"] * len(fields))
        return f"INSERT INTO iot_measurements ({', '.join(fields)}) VALUES ({placeholders})"

    def _insert_batch(self) -> None:
        if not self._batch:
            return
        try:
            with self._connection.cursor() as cursor:
                execute_batch(cursor, self._insert_statement, self._batch, page_size=BATCH_SIZE)
            self._connection.commit()
            self.inserted += len(self._batch)
        except psycopg2.Error:
            self._connection.rollback()
            logger.exception("batch of %d dropped", len(self._batch))
        self._batch = []
        self._last_insert = time.monotonic()
