"""window_aggregates, declared."""

from __future__ import annotations

from analytics_pipeline.assets.spec import AssetSpec, Edge
from analytics_pipeline.tables import Column, TableSpec

_BOOKKEEPING = (
    Column("revision", "int4", "1", "how often its figures changed after it was final"),
    Column("updated_at", "timestamptz", "", "when it was written last"),
)

TABLE = TableSpec(
    name="window_aggregates",
    description="One row per series and window that holds a sample.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("window_s", "int4", "s", "length of the window"),
        Column(
            "bucket_start",
            "timestamptz",
            "",
            "begin of the window, aligned to the UTC epoch; the end is exclusive",
        ),
        Column("series_id", "int8", "", "number of the series: see measurement_series"),
        Column("count_n", "int8", "1", "samples"),
        Column("avg_val", "float8", "value", "mean of the samples"),
        Column("m2", "float8", "value²", "sum of squared deviations from the mean"),
        Column("min_val", "float8", "value", "least sample"),
        Column("max_val", "float8", "value", "greatest sample"),
        Column("first_val", "float8", "value", "first sample by event time"),
        Column("first_time", "timestamptz", "", "its event time"),
        Column("last_val", "float8", "value", "last sample by event time"),
        Column("last_time", "timestamptz", "", "its event time"),
        Column("p50", "float8", "value", "median of the samples"),
        Column("p95", "float8", "value", "95th percentile of the samples"),
        Column("p99", "float8", "value", "99th percentile of the samples"),
        Column("base_n", "int4", "1", "base windows that hold a sample"),
        Column("coverage", "float8", "1", "base_n over the base windows that fit"),
        Column("tw_integral", "float8", "value·s", "integral of the value, held up to the longest gap"),
        Column("tw_covered_s", "float8", "s", "seconds that the integral covers"),
        Column("sketch", "bytea", "", "the distribution by rank, mergeable"),
    ),
    key=("domain_id", "window_s", "bucket_start", "series_id"),
    time_column="bucket_start",
    bookkeeping=_BOOKKEEPING,
    touched_sql=", updated_at = clock_timestamp()",
)

ROLLUPS = TableSpec(
    name="event_rollups",
    description="One row per window and kind of event that happened in it.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("window_s", "int4", "s", "length of the window"),
        Column("bucket_start", "timestamptz", "", "begin of the window; the end is exclusive"),
        Column("tenant_id", "text", "", "tenant", nullable=True),
        Column("factory_id", "text", "", "factory", nullable=True),
        Column("machine_id", "text", "", "machine", nullable=True),
        Column("entity_type", "text", "", "kind of what they happened to"),
        Column("event_type", "text", "", "what happened"),
        Column("count_n", "int8", "1", "events"),
        Column("value_n", "int8", "1", "events that carry a value: the mean is over these"),
        Column("sum_val", "float8", "value", "sum of their values; NULL where none carries one", nullable=True),
    ),
    key=(
        "domain_id",
        "window_s",
        "bucket_start",
        "tenant_id",
        "factory_id",
        "machine_id",
        "entity_type",
        "event_type",
    ),
    time_column="bucket_start",
    bookkeeping=_BOOKKEEPING,
    touched_sql=", updated_at = clock_timestamp()",
)

DURATIONS = TableSpec(
    name="state_durations",
    description="One row per series, window and state that it was in: for how long, up to the state clock.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("window_s", "int4", "s", "length of the window"),
        Column("bucket_start", "timestamptz", "", "begin of the window; the end is exclusive"),
        Column("series_id", "int8", "", "number of the series: its metric is the kind of state"),
        Column("state", "text", "", "the state"),
        Column("duration_us", "int8", "µs", "time in this state within the window; whole, so that sums are exact"),
    ),
    key=("domain_id", "window_s", "bucket_start", "series_id", "state"),
    time_column="bucket_start",
    bookkeeping=_BOOKKEEPING,
    touched_sql=", updated_at = clock_timestamp()",
)

CARRIED = TableSpec(
    name="carried_states",
    description="One row per series and hour: the state at the hour's end, which the next hour begins with.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("bucket_start", "timestamptz", "", "begin of the hour"),
        Column("series_id", "int8", "", "number of the series: its metric is the kind of state"),
        Column("state", "text", "", "the state at the end of the hour"),
    ),
    key=("domain_id", "bucket_start", "series_id"),
    time_column="bucket_start",
)

#: What is computed of states, and of nothing else.
STATE_TABLES = (DURATIONS, CARRIED)

SPEC = AssetSpec(
    name="window_aggregates",
    description="Per window: count, mean, deviation, extremes and percentiles of series; events; durations of states.",
    group="measurements",
    kinds=frozenset({"polars", "postgres"}),
    code_version="1",
    reads=("normalized_measurements",),
    reads_master_data=True,
    tables=(TABLE, ROLLUPS, DURATIONS, CARRIED),
    edges=(
        Edge("anomalies"),
        Edge("anomalies", "look-back"),
        Edge("kpis"),
        Edge("window_aggregates", "longer windows"),
        Edge("window_aggregates", "carried state"),
    ),
    plot="window_s = (SELECT min(window_s) FROM window_aggregates)",
)
