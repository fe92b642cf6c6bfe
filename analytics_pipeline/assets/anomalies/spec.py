"""anomalies, declared."""

from __future__ import annotations

from analytics_pipeline.assets.spec import AssetSpec, Edge
from analytics_pipeline.tables import Column, TableSpec

TABLE = TableSpec(
    name="anomalies",
    description="One row per window that a detector flagged.",
    columns=(
        Column("domain_id", "int4", "", "number of the domain"),
        Column("bucket_start", "timestamptz", "", "begin of the flagged window"),
        Column("window_s", "int4", "s", "length of the window"),
        Column("series_id", "int8", "", "number of the series: see measurement_series"),
        Column("detector", "text", "", "name of the detector"),
        Column("anomaly_id", "text", "", "from series, window and detector: the same on every rebuild"),
        Column("severity", "text", "", "warning or critical"),
        Column("value", "float8", "value", "the figure that was evaluated"),
        Column("score", "float8", "1", "how far it is out, in the detector's measure"),
        Column("detail", "text", "", "the figures that explain it, as JSON"),
    ),
    key=("domain_id", "bucket_start", "window_s", "series_id", "detector"),
    time_column="bucket_start",
)

SPEC = AssetSpec(
    name="anomalies",
    description="What the detectors found in the windows, with the figures that explain it.",
    group="insight",
    kinds=frozenset({"numpy", "postgres"}),
    code_version="2",
    reads=("window_aggregates",),
    tables=(TABLE,),
    reads_master_data=True,
    edges=(Edge("kpis"),),
)
