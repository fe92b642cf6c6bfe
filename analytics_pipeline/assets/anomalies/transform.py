"""Windows in, anomalies out: gathers each window's baseline and limits and asks the detectors. Pure.

A target's baseline is the stored windows of its series before it, whether they were read as history or are
targets of the same call. Whether it is an anomaly therefore does not depend on what is evaluated at once. Targets
are taken in chunks: memory grows with the number of windows, not with windows times baselines.

What an anomaly means is a detector's business; which windows are read and stored is not decided here.
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
from analytics_pipeline.formulas.as_of import last_at, order_by
from analytics_pipeline.formulas.limits import in_force
from analytics_pipeline.records import MICROSECOND

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ANOMALY_SCHEMA: dict[str, pl.DataType] = {
    "bucket_start_us": pl.Int64(),
    "window_s": pl.Int32(),
    "series_id": pl.Int64(),
    "detector": pl.String(),
    "anomaly_id": pl.String(),
    "severity": pl.String(),
    "value": pl.Float64(),
    "score": pl.Float64(),
    "detail": pl.String(),
}

#: Made once for this project: version 5 UUIDs of anomalies are names within it.
ANOMALY_NAMESPACE = uuid.UUID("5f0d2a6e-7c3b-5d41-9a8e-1f6b0c4d2e97")


#: Bytes of one chunk's baselines. Detectors sort and subtract: they hold some five copies of it, 40 MB.
CHUNK_BYTES = 8_000_000


def detect(windows: pl.DataFrame, limits: pl.DataFrame, detectors: Sequence[Detector]) -> pl.DataFrame:
    """The anomalies among the targets, which may lie in several hours and stretches of them.

    Args:
        windows: base windows, in any order, each once: bucket_start_us, window_s, series_id, count_n, avg_val,
            min_val, max_val and ``is_target``, whether it is evaluated. Before each target stand the windows of
            its series that its baseline needs: for each series and stretch of targets the last
            `baseline_windows` of the most demanding detector that are not older than its look-back, or more. Of
            a window that is no target only bucket_start_us, series_id and avg_val are read: the rest may be null.
        limits: as `formulas.limits.in_force` takes them.

    Returns:
        `ANOMALY_SCHEMA`, sorted by (bucket_start_us, series_id, detector), one row for each of these. The id
        is that of (series, window, size, detector), the same in each rebuild. ``detail`` is JSON, the same
        text in each rebuild.

    Raises:
        ValueError: a window that is given twice.
    """
    line = _Line(windows)
    targets = windows[line.rows].drop("is_target")
    lsl, usl = in_force(line.series[line.places], line.time_us[line.places], limits)
    found = [pl.DataFrame(schema=ANOMALY_SCHEMA)]
    for detector in detectors:
        first = line.first_within(detector.look_back)
        at_once = max(1, CHUNK_BYTES // (8 * max(detector.baseline_windows, 1)))
        for part in (slice(at, at + at_once) for at in range(0, len(targets), at_once)):
            chunk = targets[part]
            flags = detector.detect(
                Targets(
                    count_n=chunk["count_n"].to_numpy(),
                    avg_val=chunk["avg_val"].to_numpy(),
                    min_val=chunk["min_val"].to_numpy(),
                    max_val=chunk["max_val"].to_numpy(),
                    baseline=line.baselines(line.places[part], first[part], detector.baseline_windows),
                    lsl=lsl[part],
                    usl=usl[part],
                )
            )
            found.append(_rows(chunk, detector, flags))
    return pl.concat(found).sort("bucket_start_us", "series_id", "detector")


class _Line:
    """All windows in one line by series and time, and where the targets stand in it.

    Attributes:
        series, time_us: of each window in the line.
        places: of each target in the line, ascending.
        rows: of each target in the frame.
    """

    def __init__(self, windows: pl.DataFrame) -> None:
        series, time_us = _column(windows, "series_id"), _column(windows, "bucket_start_us")
        order = order_by(series, time_us)
        self.series, self.time_us = series[order], time_us[order]
        self._average = windows["avg_val"].to_numpy()[order]
        again = (self.series[1:] == self.series[:-1]) & (self.time_us[1:] == self.time_us[:-1])
        if again.any():
            at = int(np.argmax(again))
            raise ValueError(
                f"series {self.series[at]} has two windows that begin at {self.time_us[at]} us: "
                "give each window once, as a target or as history"
            )
        self.places: Ints = np.flatnonzero(windows["is_target"].to_numpy()[order])
        self.rows: Ints = order[self.places]

    def first_within(self, look_back: timedelta) -> Ints:
        """For each target the place of its series' first window that is not older than the look-back."""
        series, time_us = self.series[self.places], self.time_us[self.places]
        too_old = last_at(series, time_us - look_back // MICROSECOND - 1, self.series, self.time_us)
        return np.where(too_old >= 0, too_old + 1, np.searchsorted(self.series, series))

    def baselines(self, places: Ints, first: Ints, windows: int) -> Floats:
        """For each place the averages of so many windows before it, NaN for those before its ``first``."""
        if not windows:
            return np.zeros((len(places), 0))
        begin, end = int(places[0]) - windows, int(places[-1])
        padded = np.concatenate([np.full(max(-begin, 0), np.nan), self._average[max(begin, 0) : end]])
        baseline: Floats = np.lib.stride_tricks.sliding_window_view(padded, windows)[places - places[0]]
        missing = first - (places - windows)
        baseline[np.arange(windows) < missing[:, None]] = np.nan
        return baseline


def _rows(targets: pl.DataFrame, detector: Detector, flags: Flags) -> pl.DataFrame:
    """The flagged targets as rows: only these get an id and a detail."""
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
