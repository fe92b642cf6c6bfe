"""Master data about series: limits, calibration, units, detectors. Pure.

Of several rows that match a series and have begun, the one that names the most holds; among these the last to begin.
"""

from __future__ import annotations

from analytics_pipeline.master_data.spec import (
    METRIC,
    NOTE,
    SERIES_COLUMNS,
    SERIES_NAMES,
    VALID_FROM,
    Check,
    MasterColumn,
    MasterTable,
    is_above_zero,
)

_SERIES = (*SERIES_NAMES, "metric")
_LIMIT_UNIT = MasterColumn(
    "unit", "text", "", "unit in which the row is given; empty: the metric's canonical unit", nullable=True
)
#: Beyond it a value is a slip of the pen.
MAX_CORRECTION = 1e12
MAX_FACTOR = 1e30

SPEC_LIMITS = MasterTable(
    name="spec_limits",
    description="What the customer allows: a sample beyond is out of specification.",
    columns=(
        MasterColumn("spec_id", "whole number", "", "number of the row", is_remark=True, is_generated=True),
        *SERIES_COLUMNS,
        MasterColumn("lsl", "number", "unit", "lower limit; empty: none", nullable=True),
        MasterColumn("usl", "number", "unit", "upper limit; empty: none", nullable=True),
        VALID_FROM,
        _LIMIT_UNIT,
        NOTE,
    ),
    target=_SERIES,
    holds="from",
    scope=_SERIES,
    stale=("anomalies", "kpis"),
    checks=(
        Check("a number, unless usl has one", "lsl", lambda row: row["lsl"] is not None or row["usl"] is not None),
        Check(
            "a number above lsl", "usl", lambda row: row["lsl"] is None or row["usl"] is None or row["lsl"] < row["usl"]
        ),
    ),
)

CONTROL_LIMITS = MasterTable(
    name="control_limits",
    description="Centre and sigma of control charts. Without a row they are estimated from the first windows.",
    columns=(
        *SERIES_COLUMNS,
        MasterColumn("centre", "number", "unit", "centre line"),
        MasterColumn("sigma", "number", "unit", "standard deviation of a process in control"),
        VALID_FROM,
        _LIMIT_UNIT,
        NOTE,
    ),
    target=_SERIES,
    holds="from",
    scope=_SERIES,
    stale=("anomalies",),
    checks=(is_above_zero("sigma"),),
)

CALIBRATION = MasterTable(
    name="calibration",
    description="What sensors are corrected by: gain x value + offset, in the unit in which the value was sent.",
    columns=(
        *SERIES_COLUMNS,
        MasterColumn("gain", "number", "1", "what the value is multiplied by", default="1"),
        MasterColumn("offset", "number", "raw unit", "what is added then, in the unit as sent", default="0"),
        VALID_FROM,
        NOTE,
    ),
    target=_SERIES,
    holds="from",
    scope=_SERIES,
    stale=("window_aggregates",),
    checks=(
        Check(
            f"a number other than 0, of at most {MAX_CORRECTION:g}",
            "gain",
            lambda row: row["gain"] != 0 and abs(row["gain"]) <= MAX_CORRECTION,
        ),
        Check(f"a number of at most {MAX_CORRECTION:g}", "offset", lambda row: abs(row["offset"]) <= MAX_CORRECTION),
        Check(
            "a sensor, unless machine_id names a machine",
            "sensor_id",
            lambda row: row["sensor_id"] is not None or row["machine_id"] is not None,
        ),
    ),
)

UNITS = MasterTable(
    name="units",
    description="A unit in which a metric is sent, and how it becomes the one in which its figures are.",
    columns=(
        METRIC,
        MasterColumn("unit", "text", "", "unit as sent, or as limits are given in"),
        MasterColumn("canonical_unit", "text", "", "unit of the metric's figures: the same in all rows of a metric"),
        MasterColumn(
            "factor",
            "number",
            "canonical unit/unit",
            "what the value is multiplied by; empty: as the units' names say",
            is_filled_in=True,
        ),
        MasterColumn(
            "shift", "number", "canonical unit", "what is added then; empty: as the units' names say, or 0",
            is_filled_in=True,
        ),
        NOTE,
    ),
    target=("metric", "unit"),
    holds="always",
    scope=("metric",),
    stale=("window_aggregates", "anomalies", "kpis"),
    checks=(
        Check(
            f"a number above 0, of at most {MAX_FACTOR:g}", "factor", lambda row: 0 < row["factor"] <= MAX_FACTOR
        ),
        Check(f"a number of at most {MAX_CORRECTION:g}", "shift", lambda row: abs(row["shift"]) <= MAX_CORRECTION),
        Check(
            "1, and a shift of 0, for the canonical unit itself",
            "factor",
            lambda row: row["unit"] != row["canonical_unit"] or (row["factor"], row["shift"]) == (1, 0),
        ),
    ),
)

COUNTER_LIMITS = MasterTable(
    name="counter_limits",
    description="Of counters: where they roll over, and how fast they can rise. Tells a roll-over from a reset.",
    columns=(
        *SERIES_COLUMNS,
        MasterColumn("modulus", "whole number", "1", "the count at which it starts again from 0", nullable=True),
        MasterColumn("max_rate", "number", "1/s", "the most by which it can rise in a second", nullable=True),
        VALID_FROM,
        NOTE,
    ),
    target=_SERIES,
    holds="from",
    scope=_SERIES,
    stale=("window_aggregates",),
    checks=(
        Check(
            "a number, unless max_rate has one",
            "modulus",
            lambda row: row["modulus"] is not None or row["max_rate"] is not None,
        ),
        Check("a number above 1", "modulus", lambda row: row["modulus"] is None or row["modulus"] > 1),
        is_above_zero("max_rate"),
    ),
)

DETECTOR_SETTINGS = MasterTable(
    name="detector_settings",
    description="What a detector does for some series, where its defaults do not fit.",
    columns=(
        *SERIES_COLUMNS,
        MasterColumn("detector", "text", "", "name of the detector"),
        MasterColumn("enabled", "yes or no", "", "whether it looks at these series", default="yes"),
        MasterColumn(
            "raises", "yes or no", "", "whether it raises alarms or only writes evidence; empty: as by default",
            nullable=True,
        ),
        MasterColumn("parameters", "JSON object", "", "parameters of the detector, by name", default="{}"),
        VALID_FROM,
        NOTE,
    ),
    target=(*_SERIES, "detector"),
    holds="from",
    scope=_SERIES,
    stale=("anomalies",),
)

TABLES = (SPEC_LIMITS, CONTROL_LIMITS, CALIBRATION, UNITS, COUNTER_LIMITS, DETECTOR_SETTINGS)
