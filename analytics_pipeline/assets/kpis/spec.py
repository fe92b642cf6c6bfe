"""kpis, declared."""

from __future__ import annotations

from analytics_pipeline.assets.spec import AssetSpec
from analytics_pipeline.tables import Column, TableSpec

TABLE = TableSpec(
    name="kpis",
    description="One row per machine, period and KPI. Unknown is NULL with a reason, never zero.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("bucket_start", "timestamptz", "", "begin of the period"),
        Column("window_s", "int4", "s", "length of the period"),
        Column("tenant_id", "text", "", "tenant", nullable=True),
        Column("factory_id", "text", "", "factory", nullable=True),
        Column("machine_id", "text", "", "machine", nullable=True),
        Column("kpi", "text", "", "name of the KPI"),
        Column("value", "float8", "unit", "NULL where it is unknown: reason says why", nullable=True),
        Column("numerator", "float8", "1", "what longer periods sum", nullable=True),
        Column("denominator", "float8", "1", "what longer periods sum", nullable=True),
        Column("unit", "text", "", "unit of the value"),
        Column("reason", "text", "", "why there is no value", nullable=True),
    ),
    key=("domain_id", "bucket_start", "window_s", "tenant_id", "factory_id", "machine_id", "kpi"),
    time_column="bucket_start",
)

SPEC = AssetSpec(
    name="kpis",
    description="Key figures per machine and hour. Unknown is NULL with a reason, never zero.",
    group="insight",
    kinds=frozenset({"polars", "postgres"}),
    code_version="2",
    reads=("window_aggregates", "anomalies"),
    tables=(TABLE,),
    reads_master_data=True,
    plot=None,
)
