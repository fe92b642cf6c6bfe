"""KPIs of machines: numerators and denominators told, unknown kept apart from zero."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from analytics_pipeline.assets.anomalies.transform import detect
from analytics_pipeline.assets.kpis.transform import _COUNTS, _RATIOS, KPI_SCHEMA, machine_kpis
from analytics_pipeline.assets.windows.transform import EarlierSamples, base_windows
from analytics_pipeline.detectors import RobustZScore, SpecLimits
from analytics_pipeline_tests import reference
from analytics_pipeline_tests.reference import Limit, Message, SeriesKey

MINUTE_US = 60 * 1_000_000
HOUR_US = 60 * MINUTE_US
NOON_US = 494_820 * HOUR_US

#: Series 1 and 2 are of one machine, 3 of another, 4 of none; 5 is of the first machine in another domain.
SERIES = pl.DataFrame(
    [
        (1, 7, "t", "f", "m1", None, "s1", "temp", "C"),
        (2, 7, "t", "f", "m1", None, "s2", "flow", "l/s"),
        (3, 7, "t", "f", "m2", None, "s1", "temp", "C"),
        (4, 7, "t", "f", None, "st", "s1", "temp", "C"),
        (5, 3, "t", "f", "m1", None, "s1", "temp", "C"),
    ],
    schema={
        "series_id": pl.Int32,
        "domain_id": pl.Int32,
        **dict.fromkeys(
            ("tenant_id", "factory_id", "machine_id", "station_id", "sensor_id", "metric", "unit"), pl.String
        ),
    },
    orient="row",
)
LIMIT_SCHEMA = {
    "series_id": pl.Int32,
    "valid_from_us": pl.Int64,
    "valid_to_us": pl.Int64,
    "lsl": pl.Float64,
    "usl": pl.Float64,
}


def windows(*rows: tuple[int, int, int, float, float]) -> pl.DataFrame:
    """Base windows of (series, minute, samples, least, largest)."""
    return pl.DataFrame(
        [(NOON_US + minute * MINUTE_US, series, n, low, high) for series, minute, n, low, high in rows],
        schema={
            "bucket_start_us": pl.Int64,
            "series_id": pl.Int32,
            "count_n": pl.Int64,
            "min_val": pl.Float64,
            "max_val": pl.Float64,
        },
        orient="row",
    )


def anomalies(*rows: tuple[int, int, str]) -> pl.DataFrame:
    schema = {"bucket_start_us": pl.Int64, "series_id": pl.Int32, "detector": pl.String}
    return pl.DataFrame(
        [(NOON_US + minute * MINUTE_US, series, name) for series, minute, name in rows],
        schema=schema,
        orient="row",
    )


def limits(*rows: tuple[int, int | None, int | None, float | None, float | None]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=LIMIT_SCHEMA, orient="row")


def kpis(
    its: pl.DataFrame, flags: pl.DataFrame | None = None, known: pl.DataFrame | None = None, base_s: int = 60
) -> dict[tuple[str | None, str], tuple[float | None, float | None, float | None, str | None]]:
    """(value, numerator, denominator, reason) by (machine, kpi)."""
    frame = machine_kpis(
        its,
        SERIES,
        anomalies() if flags is None else flags,
        limits() if known is None else known,
        base_s=base_s,
    )
    assert frame.schema == pl.Schema(KPI_SCHEMA)
    return {
        (row["machine_id"], row["kpi"]): (row["value"], row["numerator"], row["denominator"], row["reason"])
        for row in frame.iter_rows(named=True)
    }


def test_messages_are_summed_over_the_series_of_a_machine() -> None:
    found = kpis(windows((1, 0, 5, 1, 2), (1, 1, 6, 1, 2), (2, 0, 7, 1, 2), (3, 0, 1, 1, 2)))
    assert found["m1", "messages"] == (18.0, 18.0, None, None)
    assert found["m2", "messages"] == (1.0, 1.0, None, None)


def test_coverage_counts_a_base_window_once_however_many_series_fill_it() -> None:
    its = windows((1, 0, 5, 1, 2), (2, 0, 7, 1, 2), (2, 59, 1, 1, 2))
    assert kpis(its)["m1", "coverage"] == (2 / 60, 2.0, 60.0, None)
    assert kpis(windows((1, 0, 5, 1, 2)), base_s=300)["m1", "coverage"] == (1 / 12, 1.0, 12.0, None)


def test_anomalies_are_counted_and_none_is_zero() -> None:
    its = windows((1, 0, 5, 1, 2), (2, 0, 5, 1, 2), (3, 0, 5, 1, 2))
    found = kpis(its, anomalies((1, 0, "spec_limits"), (1, 0, "robust_zscore"), (2, 0, "spec_limits")))
    assert found["m1", "anomalies"] == (3.0, 3.0, None, None)
    assert found["m2", "anomalies"] == (0.0, 0.0, None, None)


def test_share_in_spec_counts_windows_wholly_inside_their_limits() -> None:
    its = windows((1, 0, 5, 10, 20), (1, 1, 5, 9.9, 20), (1, 2, 5, 10, 20.1), (1, 3, 5, 12, 13), (2, 0, 1, 0, 99))
    assert kpis(its, known=limits((1, None, None, 10.0, 20.0)))["m1", "share_in_spec"] == (0.5, 2.0, 4.0, None)
    one_side = limits((1, None, None, None, 20.0))
    assert kpis(its, known=one_side)["m1", "share_in_spec"] == (0.75, 3.0, 4.0, None)


def test_limits_that_begin_within_the_hour_apply_only_to_what_follows() -> None:
    its = windows((1, 0, 5, 0, 99), (1, 30, 5, 0, 99), (1, 31, 5, 12, 13))
    known = limits((1, NOON_US + 30 * MINUTE_US, None, 10.0, 20.0))
    assert kpis(its, known=known)["m1", "share_in_spec"] == (0.5, 1.0, 2.0, None)


def test_without_limits_the_share_in_spec_is_unknown_and_not_zero() -> None:
    found = kpis(windows((1, 0, 5, 1, 2), (3, 0, 5, 50, 60)), known=limits((3, None, None, 0.0, 1.0)))
    assert found["m1", "share_in_spec"] == (None, 0.0, 0.0, "no_spec_limits")
    assert found["m2", "share_in_spec"] == (0.0, 0.0, 1.0, None)


def test_series_without_a_machine_have_kpis_of_their_own() -> None:
    found = kpis(windows((4, 0, 5, 1, 2)), anomalies((4, 0, "spec_limits")))
    assert found[None, "messages"][0] == 5.0
    assert found[None, "anomalies"][0] == 1.0


def test_rows_say_hour_size_domain_and_machine() -> None:
    frame = machine_kpis(windows((1, 7, 5, 1, 2)), SERIES, anomalies(), limits(), base_s=60)
    names = ["bucket_start_us", "window_s", "domain_id", "tenant_id", "factory_id", "machine_id", "unit"]
    assert frame.select(names).unique().rows() == [(NOON_US, 3600, 7, "t", "f", "m1", "1")]
    assert frame["kpi"].to_list() == sorted([*_COUNTS, *_RATIOS])
    assert {"anomalies", "coverage", "messages", "share_in_spec"} <= {*_COUNTS, *_RATIOS}


def test_an_hour_without_windows_has_no_kpis() -> None:
    assert kpis(windows()) == {}


def test_hours_and_domains_at_once_give_the_rows_of_each_alone() -> None:
    its = windows(
        *(
            (series, minute, 1 + series, minute, minute + 9)
            for series in range(1, 6)
            for minute in range(-70, 130, 7)
        )
    )
    flags = anomalies(
        (1, -61, "spec_limits"), (1, 0, "spec_limits"), (5, 0, "spec_limits"), (2, 119, "spec_limits")
    )
    known = limits((1, NOON_US, None, 0.0, 50.0), (5, None, NOON_US, None, 20.0))
    together = machine_kpis(its, SERIES, flags, known, base_s=60)
    hour = pl.col("bucket_start_us") // HOUR_US * HOUR_US
    alone = [
        machine_kpis(
            its.filter(pl.col("series_id").is_in(ids), hour == NOON_US + at * HOUR_US),
            SERIES.sample(fraction=1.0, shuffle=True, seed=at + 9),
            flags.filter(pl.col("series_id").is_in(ids), hour == NOON_US + at * HOUR_US),
            known,
            base_s=60,
        )
        for ids in ([5], [1, 2, 3, 4])
        for at in (-2, -1, 0, 1, 2)
    ]
    assert_frame_equal(together, pl.concat(alone), check_exact=True)
    assert len(together) == 4 * 4 * 5  # KPIs, machines (one of them in two domains), hours
    counted = together.filter(pl.col("kpi") == "anomalies", pl.col("machine_id") == "m1")
    by_hour = counted.select("domain_id", (pl.col("bucket_start_us") - NOON_US) // HOUR_US, "value")
    assert [row for row in by_hour.iter_rows() if row[2]] == [(3, 0, 1.0), (7, -2, 1.0), (7, 0, 1.0), (7, 1, 1.0)]


def test_anomalies_where_no_window_is_count_nowhere() -> None:
    found = kpis(windows((1, 0, 1, 0, 0)), anomalies((3, 0, "spec_limits"), (1, 60, "spec_limits")))
    assert {name: row[0] for (_, name), row in found.items()}["anomalies"] == 0.0


def test_windows_of_an_unknown_series_are_refused_and_not_left_out() -> None:
    with pytest.raises(ValueError, match="1 windows of series that are not given, the first of series 9"):
        kpis(windows((1, 0, 1, 0, 0), (9, 0, 1, 0, 0)))


KEYS = [SeriesKey("t", "f", machine, sensor, "temp") for machine in ("m1", None) for sensor in ("s1", "s2")]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(-200, 400), st.integers(0, 3), st.sampled_from([19.0, 20.0, 21.0, 90.0])
        ),
        min_size=1,
        max_size=200,
    )
)
def test_kpis_are_those_of_the_naive_reference(stream: list[tuple[int, int, int, float]]) -> None:
    messages = [
        Message(("t", 1, 0, offset, 0), kafka, NOON_US + quarter * MINUTE_US // 4, KEYS[number], value)
        for offset, (number, quarter, kafka, value) in enumerate(stream)
    ]
    half_past = NOON_US + 30 * MINUTE_US
    known = {KEYS[1]: [Limit(None, half_past, 19.5, 25.0), Limit(half_past, None, None, 20.5)]}
    table = limits((1, None, half_past, 19.5, 25.0), (1, half_past, None, None, 20.5))
    kept = [(KEYS.index(of), time, value) for (of, time), value in reference.measurements(messages).items()]
    number, time, value = (np.array(column) for column in zip(*kept, strict=True))
    frame = base_windows(
        number, time, np.zeros_like(time), value, 60, longest_gap_us=0, earlier=EarlierSamples.none()
    )
    series = pl.DataFrame(
        {"series_id": pl.Series(range(4), dtype=pl.Int32), "domain_id": [1] * 4}
        | {name: [getattr(key, name) for key in KEYS] for name in ("tenant_id", "factory_id", "machine_id")}
    )
    flags = detect(frame.with_columns(is_target=True), table, (RobustZScore(), SpecLimits()))
    found = machine_kpis(frame, series, flags, table, base_s=60)
    expected = {(kpi.hour_us, *kpi.machine, kpi.kpi): kpi for kpi in reference.kpis(messages, 60, known)}
    assert len(found) == len(expected)
    for row in found.iter_rows(named=True):
        want = expected[row["bucket_start_us"], row["tenant_id"], row["factory_id"], row["machine_id"], row["kpi"]]
        for name in ("value", "numerator", "denominator", "reason"):
            assert row[name] == getattr(want, name), (name, want)


def test_a_ratio_is_the_same_to_the_bit_alone_and_among_others() -> None:
    """Polars divides by a column of equal values through its reciprocal, which is off by a last bit at times."""
    covered = range(1, 60)
    names = pl.DataFrame(
        [(n, 7, "t", "f", f"m{n}", None, "s1", "temp", "C") for n in covered],
        schema=SERIES.schema,
        orient="row",
    )
    each = {n: windows(*((n, minute, 1, 1.0, 1.0) for minute in range(n))) for n in covered}

    def coverage(frame: pl.DataFrame) -> list[float]:
        found = machine_kpis(frame, names, anomalies(), limits(), base_s=60)
        its = found.filter(pl.col("kpi") == "coverage").sort("numerator")
        return its["value"].to_list()

    assert coverage(pl.concat(each.values())) == [n / 60 for n in covered]
    assert [coverage(each[n])[0] for n in covered] == [n / 60 for n in covered]
