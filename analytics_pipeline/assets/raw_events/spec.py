"""raw_events, declared: written by the drain, rebuilt from Kafka and from what is stored."""

from __future__ import annotations

from analytics_pipeline.assets.spec import AssetSpec, Edge
from analytics_pipeline.tables import Column, TableSpec

TABLE = TableSpec(
    name="raw_events",
    description="One row per message, or per element of a message that is split.",
    columns=(
        Column("topic", "text", "", "Kafka topic"),
        Column(
            "epoch", "int4", "", "life of the partition's log: grows when the topic was recreated or cut short"
        ),
        Column("partition", "int4", "", "Kafka partition"),
        Column("offset", "int8", "", "Kafka offset"),
        Column("ordinal", "int4", "", "place in a message that was split"),
        Column("domain_id", "int4", "", "number of the domain"),
        Column("kafka_time", "timestamptz", "", "Kafka timestamp of the message"),
        Column("event_time", "timestamptz", "", "when it happened, as the payload says"),
        Column("arrived_at", "timestamptz", "", "when the drain read it: plausibility is classified against this"),
        Column("batch_id", "int8", "", "the batch of the drain that wrote it"),
        Column("payload", "text", "", "the payload as it came"),
    ),
    key=("topic", "epoch", "partition", "offset", "ordinal", "event_time"),
    time_column="event_time",
)

SPEC = AssetSpec(
    name="raw_events",
    description=(
        "Every message as it came, by hour of its event time. The sensor `drain_kafka` fills it. Materializing "
        "an hour by hand reads the offsets recorded for it again, and adds what is missing."
    ),
    group="ingest",
    kinds=frozenset({"kafka", "postgres"}),
    code_version="1",
    reads=(),
    tables=(TABLE,),
    edges=(Edge("normalized_measurements"),),
    failed_rows="dead letter",
)
