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
    description="One row per series and window that holds a sample; of one with only bad samples, figures are NaN.",
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
        Column("count_n", "int8", "1", "samples that are not bad: those in the figures"),
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
        Column("base_n", "int4", "1", "base windows that hold a sample that is not bad"),
        Column("coverage", "float8", "1", "base_n over the base windows that fit"),
        Column("tw_integral", "float8", "value·s", "integral of the value, held up to the longest gap"),
        Column("tw_covered_s", "float8", "s", "seconds that the integral covers"),
        Column("bad_n", "int4", "1", "bad samples, beside count_n"),
        Column("uncertain_n", "int4", "1", "uncertain samples, of count_n"),
        Column("censored_n", "int4", "1", "samples of count_n whose true value lies below or above the one given"),
        Column("late_n", "int4", "1", "samples, bad ones too, that came when their base window may have been final"),
        Column("ends_bad", "bool", "", "whether the last sample is bad, so that no value holds at the end"),
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

INCREMENTS = TableSpec(
    name="counter_increments",
    description="One row per series and window that holds a reading: what was counted up to its readings.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("window_s", "int4", "s", "length of the window"),
        Column("bucket_start", "timestamptz", "", "begin of the window; the end is exclusive"),
        Column("series_id", "int8", "", "number of the series: its metric is what is counted"),
        Column("increment", "int8", "value", "what was counted, as far as it is known; else NULL", nullable=True),
        Column("reason", "text", "", "why nothing is known: first_reading, swap, overflow", nullable=True),
        Column("readings", "int8", "1", "readings: each counts from the one before it, of whatever window"),
        Column("resets", "int8", "1", "falls to near zero: what is shown was counted since"),
        Column("roll_overs", "int8", "1", "falls across the modulus"),
        Column("swaps", "int8", "1", "changes that no counting explains: another meter"),
        Column("unknown_n", "int8", "1", "readings whose increment is unknown: swaps, and the first one of all"),
        Column("gaps_spanned", "int8", "1", "readings whose last one before is older than the longest gap"),
        Column("last_time", "timestamptz", "", "event time of the last reading"),
        Column("last_reading", "int8", "value", "the last reading, from which the next window counts on"),
    ),
    key=("domain_id", "window_s", "bucket_start", "series_id"),
    time_column="bucket_start",
    bookkeeping=_BOOKKEEPING,
    touched_sql=", updated_at = clock_timestamp()",
)

#: What is computed of states, and of nothing else.
STATE_TABLES = (DURATIONS, CARRIED)

SPEC = AssetSpec(
    name="window_aggregates",
    description="Per window: count, mean, deviation, extremes and percentiles of series; events; states; counters.",
    group="measurements",
    kinds=frozenset({"polars", "postgres"}),
    code_version="2",
    reads=("normalized_measurements",),
    reads_master_data=True,
    tables=(TABLE, ROLLUPS, DURATIONS, CARRIED, INCREMENTS),
    edges=(
        Edge("anomalies"),
        Edge("anomalies", "look-back"),
        Edge("kpis"),
        Edge("window_aggregates", "longer windows"),
        Edge("window_aggregates", "carried state"),
        Edge("window_aggregates", "next reading"),
    ),
    plot="window_s = (SELECT min(window_s) FROM window_aggregates)",
)
