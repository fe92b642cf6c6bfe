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

SPEC = AssetSpec(
    name="normalized_measurements",
    description="One row per measurement, in canonical form, with its position in Kafka.",
    group="measurements",
    kinds=frozenset({"python", "postgres"}),
    code_version="1",
    reads=("raw_events",),
    tables=(TABLE,),
    edges=(Edge("window_aggregates"),),
    failed_rows="dead letter",
)
