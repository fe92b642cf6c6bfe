"""Windows in, anomalies out: gathers each window's baseline and limits and asks the detectors. Pure.

A target's baseline is the stored windows of its series before it, whether they were read as history or are
judged in the same call. Its verdict therefore does not depend on how much of the hour is judged at once.

What a verdict means is a detector's business; which windows are read and stored is not decided here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.detectors.base import Detector, Flags, Targets
from analytics_pipeline.formulas.limits import in_force
from analytics_pipeline.records import MICROSECOND

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ANOMALY_SCHEMA: dict[str, pl.DataType] = {
    "bucket_start_us": pl.Int64(),
    "window_s": pl.Int32(),
    "series_id": pl.Int32(),
    "detector": pl.String(),
    "anomaly_id": pl.String(),
    "severity": pl.String(),
    "value": pl.Float64(),
    "score": pl.Float64(),
    "detail": pl.String(),
}

#: Made once for this project: version 5 UUIDs of anomalies are names within it.
ANOMALY_NAMESPACE = uuid.UUID("5f0d2a6e-7c3b-5d41-9a8e-1f6b0c4d2e97")


def detect(
    targets: pl.DataFrame, history: pl.DataFrame, limits: pl.DataFrame, detectors: Sequence[Detector]
) -> pl.DataFrame:
    """The anomalies among the targets.

    Args:
        targets: base windows to judge: bucket_start_us, window_s, series_id, count_n, avg_val, min_val,
            max_val; in any order.
        history: base windows before them: bucket_start_us, series_id, avg_val; for each series the last
            `baseline_windows` of the most demanding detector, or more.
        limits: as `formulas.limits.in_force` takes them.

    Returns:
        `ANOMALY_SCHEMA`, sorted by (bucket_start_us, series_id, detector), one row for each of these. The id
        is that of (series, window, size, detector), the same in each rebuild. ``detail`` is JSON.

    Raises:
        ValueError: a window that is in both frames, or twice in one.
    """
    if targets.is_empty() or not detectors:
        return pl.DataFrame(schema=ANOMALY_SCHEMA)
    targets = targets.sort("series_id", "bucket_start_us")
    series, start = _column(targets, "series_id"), _column(targets, "bucket_start_us")
    past = _Past(history, targets)
    lsl, usl = in_force(series, start, limits)
    found = []
    for detector in detectors:
        it = Targets(
            count_n=targets["count_n"].to_numpy(),
            avg_val=targets["avg_val"].to_numpy(),
            min_val=targets["min_val"].to_numpy(),
            max_val=targets["max_val"].to_numpy(),
            baseline=past.baseline(detector.baseline_windows, detector.look_back),
            lsl=lsl,
            usl=usl,
        )
        found.append(_rows(targets, detector, detector.judge(it)))
    return pl.concat(found).sort("bucket_start_us", "series_id", "detector")


class _Past:
    """All windows of all series in one line, and where the targets stand in it."""

    def __init__(self, history: pl.DataFrame, targets: pl.DataFrame) -> None:
        series, time, average = (
            np.concatenate([history[name].to_numpy(), targets[name].to_numpy()])
            for name in ("series_id", "bucket_start_us", "avg_val")
        )
        order = np.lexsort((time, series))
        self._series, self._time, self._average = series[order], time[order], average[order]
        again = (self._series[1:] == self._series[:-1]) & (self._time[1:] == self._time[:-1])
        if again.any():
            at = int(np.argmax(again))
            raise ValueError(
                f"series {self._series[at]} has two windows that begin at {self._time[at]} us: "
                "read as history only what is before the first target"
            )
        # Targets come sorted as this line is, so that their places here are in their own order.
        self._places = np.flatnonzero(order >= len(history))

    def baseline(self, windows: int, look_back: timedelta) -> Floats:
        """For each target the averages of up to so many windows before it, not older than the look-back."""
        at = self._places[:, None] + np.arange(-windows, 0)
        near = np.maximum(at, 0)
        oldest = self._time[self._places] - look_back // MICROSECOND
        holds = at >= 0
        holds &= self._series[near] == self._series[self._places][:, None]
        holds &= self._time[near] >= oldest[:, None]
        return np.where(holds, self._average[near], np.nan)


def _rows(targets: pl.DataFrame, detector: Detector, flags: Flags) -> pl.DataFrame:
    window = targets.select("bucket_start_us", "window_s", "series_id")[flags.row]
    ids = [
        str(uuid.uuid5(ANOMALY_NAMESPACE, f"{series}/{start}/{size}/{detector.name}"))
        for start, size, series in window.iter_rows()
    ]
    return window.with_columns(
        pl.lit(detector.name).alias("detector"),
        pl.Series("anomaly_id", ids, pl.String),
        pl.Series("severity", np.where(flags.critical, "critical", "warning").tolist(), pl.String),
        pl.Series("value", flags.value, pl.Float64),
        pl.Series("score", flags.score, pl.Float64),
        pl.Series("detail", [json.dumps(it, allow_nan=False) for it in flags.details], pl.String),
    ).cast(ANOMALY_SCHEMA)  # type: ignore[arg-type]


def _column(frame: pl.DataFrame, name: str) -> Ints:
    return frame[name].to_numpy().astype(np.int64)
