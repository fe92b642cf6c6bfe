"""normalized_measurements, declared."""

from __future__ import annotations

from analytics_pipeline.assets.spec import AssetSpec, Edge
from analytics_pipeline.tables import Column, TableSpec

TABLE = TableSpec(
    name="normalized_measurements",
    description="One row per measurement; fixed width and free of NULL, so that COPY needs no parsing.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("event_time", "timestamptz", "", "when it was measured"),
        Column("series_id", "int8", "", "number of the series: see measurement_series"),
        Column(
            "sample_key", "int8", "", "ordinal or sample, where one series has several values at one time; else 0"
        ),
        Column("value", "float8", "value", "the measured value, in the unit of the series"),
        Column("kafka_time", "timestamptz", "", "Kafka timestamp of the message: the later of one identity wins"),
        Column("log_id", "int4", "", "number of the log of a Kafka partition: see kafka_log"),
        Column("offset", "int8", "", "Kafka offset"),
        Column("ordinal", "int4", "", "place within the message"),
    ),
    key=("domain_id", "event_time", "series_id", "sample_key"),
    time_column="event_time",
)

_POSITION = (
    Column("kafka_time", "timestamptz", "", "Kafka timestamp of the message: the later of one identity wins"),
    Column("log_id", "int4", "", "number of the log of a Kafka partition: see kafka_log"),
    Column("offset", "int8", "", "Kafka offset"),
    Column("ordinal", "int4", "", "place within the message"),
)

EVENTS = TableSpec(
    name="normalized_events",
    description="One row per event: that of several with one identity whose message came last into Kafka.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("event_time", "timestamptz", "", "when it happened"),
        Column("identity", "text", "", "hash of what identifies it: tenant and id, or its content and time"),
        Column("event_id", "text", "", "its own id, where it has one", nullable=True),
        Column("tenant_id", "text", "", "tenant: the domain's, where the payload names none"),
        Column("factory_id", "text", "", "factory", nullable=True),
        Column("machine_id", "text", "", "machine", nullable=True),
        Column("entity_type", "text", "", "kind of what it happened to"),
        Column("entity_id", "text", "", "what it happened to"),
        Column("event_type", "text", "", "what happened"),
        Column("user_id", "text", "", "who did it", nullable=True),
        Column("value", "float8", "value", "a number that comes with it", nullable=True),
        Column("properties", "text", "", "everything else, as JSON with sorted keys"),
        *_POSITION,
    ),
    key=("domain_id", "event_time", "identity"),
    time_column="event_time",
)

EVENT_IDENTITIES = TableSpec(
    name="event_identities",
    description="One row per own id of an event and hour in which it was seen: the last of them all is the event.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("identity", "text", "", "as in normalized_events"),
        Column("event_time", "timestamptz", "", "time of the last one of the hour"),
        *_POSITION,
    ),
    key=("domain_id", "event_time", "identity"),
    time_column="event_time",
    counted=False,
)

STATES = TableSpec(
    name="state_changes",
    description="One row per change of state: it lasts until the next one of its series.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("event_time", "timestamptz", "", "when the state began"),
        Column("series_id", "int8", "", "number of the series: its metric is the kind of state"),
        Column("state", "text", "", "the state"),
        *_POSITION,
    ),
    key=("domain_id", "event_time", "series_id"),
    time_column="event_time",
)

SPEC = AssetSpec(
    name="normalized_measurements",
    description="Measurements, events and changes of state in canonical form, with their position in Kafka.",
    group="measurements",
    kinds=frozenset({"python", "postgres"}),
    code_version="2",
    reads=("raw_events",),
    tables=(TABLE, EVENTS, EVENT_IDENTITIES, STATES),
    edges=(Edge("window_aggregates"),),
    failed_rows="dead letter",
)
