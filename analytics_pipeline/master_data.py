"""Specification limits, matched to series: which limits hold for which series, and when. Pure: frames in, frame out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import polars as pl

#: Rows of ``analytics_spec_limits``; names that are null match any; times in microseconds, null from ever.
LIMIT_ROWS: dict[str, Any] = {
    "spec_id": pl.Int64(),
    "tenant_id": pl.String(),
    "factory_id": pl.String(),
    "machine_id": pl.String(),
    "sensor_id": pl.String(),
    "metric": pl.String(),
    "lsl": pl.Float64(),
    "usl": pl.Float64(),
    "valid_from_us": pl.Int64(),
}
#: Limits in force: spans of one series never overlap. ``valid_from_us`` null: from ever; ``valid_to_us`` null: on.
LIMIT_SPANS: dict[str, Any] = {
    "series_id": pl.Int64(),
    "valid_from_us": pl.Int64(),
    "valid_to_us": pl.Int64(),
    "lsl": pl.Float64(),
    "usl": pl.Float64(),
}
_NAMES = ("tenant_id", "factory_id", "machine_id", "sensor_id")
_FROM_EVER = -(1 << 62)


def limit_spans(series: pl.DataFrame, limits: pl.DataFrame) -> pl.DataFrame:
    """The limits in force for each series.

    Of the rows that match a series, those that name the most win; among these each holds from its ``valid_from``
    until the next one's; of two that begin together the one entered last wins.

    Args:
        series: ``series_id``, the names of `LIMIT_ROWS` and ``metric``.
        limits: `LIMIT_ROWS`.

    Returns:
        `LIMIT_SPANS`, sorted by (series_id, valid_from_us).
    """
    matches = _matches(series, limits)
    if matches.is_empty():
        return pl.DataFrame(schema=LIMIT_SPANS)
    single = matches.filter(pl.len().over("series_id") == 1)
    several = matches.filter(pl.len().over("series_id") > 1)
    found = single.select(
        "series_id",
        pl.when(pl.col("from_us") > _FROM_EVER).then("from_us").alias("valid_from_us"),
        pl.lit(None, pl.Int64).alias("valid_to_us"),
        "lsl",
        "usl",
    )
    spans = [
        (number, *span)
        for (number,), its in several.group_by("series_id", maintain_order=True)
        for span in _spans(its.select("named", "from_us", "spec_id", "lsl", "usl").rows())
    ]
    return pl.concat([found, pl.DataFrame(spans, schema=LIMIT_SPANS, orient="row")]).sort(
        "series_id", "valid_from_us", nulls_last=False
    )


def _matches(series: pl.DataFrame, limits: pl.DataFrame) -> pl.DataFrame:
    """Each series with each limit that matches it: one join for each set of names that limits give."""
    found = []
    for given in product((True, False), repeat=len(_NAMES)):
        wanted = [name for name, is_given in zip(_NAMES, given, strict=True) if is_given]
        rows = limits.filter(
            *(
                pl.col(name).is_not_null() if is_given else pl.col(name).is_null()
                for name, is_given in zip(_NAMES, given, strict=True)
            )
        )
        if rows.height:
            pairs = series.select("series_id", *wanted, "metric").join(
                rows.select(*wanted, "metric", "spec_id", "lsl", "usl", "valid_from_us"), on=[*wanted, "metric"]
            )
            found.append(
                pairs.select(
                    "series_id",
                    pl.lit(len(wanted)).alias("named"),
                    pl.col("valid_from_us").fill_null(_FROM_EVER).alias("from_us"),
                    "spec_id",
                    "lsl",
                    "usl",
                )
            )
    if not found:
        return pl.DataFrame(schema={"series_id": pl.Int64()})
    return pl.concat(found).sort("series_id", "from_us", "named", "spec_id")


def _spans(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """(valid_from_us, valid_to_us, lsl, usl) of one series, in time order; ``rows`` are sorted by their begin."""
    instants = sorted({row[1] for row in rows})
    spans: list[tuple[Any, ...]] = []
    for at, until in zip(instants, [*instants[1:], None], strict=True):
        # From each instant on the most specific row that has begun is in force, of several the latest begun.
        best = max((row for row in rows if row[1] <= at), key=lambda row: (row[0], row[1], row[2]))
        spans.append((at if at > _FROM_EVER else None, until, best[3], best[4]))
    return spans
