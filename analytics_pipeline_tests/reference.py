"""What the pipeline should say, computed the slow and obvious way: what the property tests compare with.

Plain Python on purpose: no numpy, no polars, and nothing of the package but the names of its formulas'
constants, repeated here by hand. One message after the other, one window after the other.

Not compared bit for bit: averages, M2 and integrals are exact sums here (`math.fsum`; see `m2_tolerance`),
percentiles exact order statistics.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MICROS = 1_000_000
HOUR_US = 3600 * MICROS


class SeriesKey(NamedTuple):
    """What a series is called, without its number in the database."""

    tenant_id: str | None
    factory_id: str | None
    machine_id: str | None
    sensor_id: str | None
    metric: str

    @property
    def machine(self) -> tuple[str | None, str | None, str | None]:
        return self.tenant_id, self.factory_id, self.machine_id


class Message(NamedTuple):
    """One measurement as Kafka brought it. ``position`` is (topic, epoch, partition, offset, ordinal)."""

    position: tuple[str, int, int, int, int]
    kafka_time_us: int
    event_time_us: int
    series: SeriesKey
    value: float


class Limit(NamedTuple):
    """Limits of one series in ``[valid_from_us, valid_to_us)``; None is no bound."""

    valid_from_us: int | None
    valid_to_us: int | None
    lsl: float | None
    usl: float | None


Limits = Mapping[SeriesKey, Sequence[Limit]]


@dataclass(frozen=True)
class Window:
    """One row of window_aggregates."""

    start_us: int
    size_s: int
    series: SeriesKey
    count_n: int
    avg_val: float
    m2: float
    min_val: float
    max_val: float
    first_val: float
    first_time_us: int
    last_val: float
    last_time_us: int
    p50: float
    p95: float
    p99: float
    base_n: int
    coverage: float
    tw_integral: float
    tw_covered_s: float


@dataclass(frozen=True)
class Anomaly:
    """One row of anomalies."""

    start_us: int
    size_s: int
    series: SeriesKey
    detector: str
    severity: str
    value: float
    score: float
    detail: dict[str, float | int | str | None]


@dataclass(frozen=True)
class Kpi:
    """One row of kpis."""

    hour_us: int
    machine: tuple[str | None, str | None, str | None]
    kpi: str
    value: float | None
    numerator: float
    denominator: float | None
    reason: str | None


def measurements(messages: Iterable[Message]) -> dict[tuple[SeriesKey, int], float]:
    """One value for each (series, event time): of the message with the latest (Kafka time, position)."""
    winner: dict[tuple[SeriesKey, int], Message] = {}
    for message in messages:
        identity = (message.series, message.event_time_us)
        known = winner.get(identity)
        if known is None or (message.kafka_time_us, message.position) > (known.kafka_time_us, known.position):
            winner[identity] = message
    return {identity: message.value for identity, message in winner.items()}


def windows(messages: Iterable[Message], size_s: int, base_s: int, gap_us: int = 0) -> list[Window]:
    """Every window of one size that holds a sample, by start and series; a value holds for at most the gap."""
    samples: dict[tuple[int, SeriesKey], list[tuple[int, float]]] = defaultdict(list)
    history: dict[SeriesKey, list[tuple[int, float]]] = defaultdict(list)
    for (series, time_us), value in sorted(measurements(messages).items(), key=lambda item: item[0][1]):
        start_us = time_us - time_us % (size_s * MICROS)
        samples[start_us, series].append((time_us, value))
        history[series].append((time_us, value))
    return [
        _window(start_us, size_s, base_s, series, samples[start_us, series], history[series], gap_us)
        for start_us, series in sorted(samples, key=_by_start)
    ]


def _by_start(key: tuple[int, SeriesKey]) -> tuple[int, tuple[str, ...]]:
    return key[0], tuple("" if part is None else part for part in key[1])


def held(start_us: int, end_us: int, history: Sequence[tuple[int, float]], gap_us: int) -> list[tuple[float, int]]:
    """(value, microseconds) of what holds in a span: each value until the next one, at most for the gap.

    ``history`` are all samples of the series as (time, value), in order.
    """
    pieces = []
    for at, (time_us, value) in enumerate(history):
        until_us = min(history[at + 1][0] if at + 1 < len(history) else end_us, time_us + gap_us, end_us)
        from_us = max(time_us, start_us)
        if until_us > from_us:
            pieces.append((value, until_us - from_us))
    return pieces


def _window(
    start_us: int,
    size_s: int,
    base_s: int,
    series: SeriesKey,
    samples: list[tuple[int, float]],
    history: list[tuple[int, float]],
    gap_us: int,
) -> Window:
    values = [value for _, value in samples]
    mean = math.fsum(values) / len(values)
    base_us = base_s * MICROS
    filled = sorted({time_us - time_us % base_us for time_us, _ in samples})
    base_n = len(filled)
    pieces = [piece for start in filled for piece in held(start, start + base_us, history, gap_us)]
    return Window(
        start_us=start_us,
        size_s=size_s,
        series=series,
        count_n=len(values),
        avg_val=mean,
        m2=math.fsum((value - mean) ** 2 for value in values),
        min_val=min(values),
        max_val=max(values),
        first_val=samples[0][1],
        first_time_us=samples[0][0],
        last_val=samples[-1][1],
        last_time_us=samples[-1][0],
        p50=percentile(values, 0.50),
        p95=percentile(values, 0.95),
        p99=percentile(values, 0.99),
        base_n=base_n,
        coverage=base_n / (size_s / base_s),
        tw_integral=math.fsum(value * us for value, us in pieces) / MICROS,
        tw_covered_s=sum(us for _, us in pieces) / MICROS,
    )


def percentile(values: Iterable[float], rank: float) -> float:
    """The least value with at least this share of all values at or below it: SQL's percentile_disc."""
    ordered = sorted(values)
    return ordered[max(math.ceil(rank * len(ordered)), 1) - 1]


def m2_tolerance(n: int, m2: float, largest: float) -> float:
    """How far a merged M2 may be off: parts store their means as doubles, each rounded by half a unit.

    Moving the means by e moves ``sum n_i (mean_i - mean)^2`` by at most ``2 e sqrt(n M2) + n e^2``. Squares below the
    normal range of doubles are multiples of the smallest one.
    """
    off = 4 * math.ulp(largest)
    return 2 * off * math.sqrt(n * m2) + n * off * off + 1e-10 * m2 + (n + 3) * math.ulp(0.0)


def anomalies(messages: Iterable[Message], base_s: int, limits: Limits) -> list[Anomaly]:
    """What both detectors, with their default parameters, say of every base window."""
    found = []
    by_series: dict[SeriesKey, list[Window]] = defaultdict(list)
    for window in windows(messages, base_s, base_s):
        by_series[window.series].append(window)
    for series, its in by_series.items():
        for at, window in enumerate(its):
            flags = (
                _robust_zscore(window, its[:at]),
                _spec_limits(window, limit_at(limits, series, window.start_us)),
            )
            found += [flag for flag in flags if flag is not None]
    return sorted(found, key=lambda it: (*_by_start((it.start_us, it.series)), it.detector))


def _robust_zscore(window: Window, earlier: Sequence[Window]) -> Anomaly | None:
    day_us = 24 * HOUR_US
    baseline = [it.avg_val for it in earlier[-120:] if it.start_us >= window.start_us - day_us]
    if len(baseline) < 12:
        return None
    centre = statistics.median(baseline)
    apart = [abs(value - centre) for value in baseline]
    rounding = abs(centre) * 1e-14
    mad, mean_ad = statistics.median(apart), math.fsum(apart) / len(apart)
    if mad > rounding:
        scale = mad / 0.6745
    elif mean_ad > rounding:
        scale = 1.253314 * mean_ad
    else:
        return None
    score = (window.avg_val - centre) / scale
    if abs(score) <= 3.5:
        return None
    severity = "critical" if abs(score) > 7 else "warning"
    detail: dict[str, float | int | str | None]
    detail = {"centre": centre, "scale": scale, "threshold": 3.5, "n": len(baseline)}
    return _anomaly(window, "robust_zscore", severity, window.avg_val, score, detail)


def _spec_limits(window: Window, limit: Limit | None) -> Anomaly | None:
    if limit is None:
        return None
    below = -math.inf if limit.lsl is None else limit.lsl - window.min_val
    above = -math.inf if limit.usl is None else window.max_val - limit.usl
    score = max(below, above)
    if score <= 0:
        return None
    side, value, passed = ("upper", window.max_val, limit.usl)
    if below >= above:
        side, value, passed = ("lower", window.min_val, limit.lsl)
    centre = scale = None
    width = abs(limit.usl if limit.lsl is None else limit.lsl)
    if limit.lsl is not None and limit.usl is not None:
        centre, width = (limit.lsl + limit.usl) / 2, limit.usl - limit.lsl
        scale = width
    severity = "critical" if width > 0 and score >= 0.1 * width else "warning"
    detail: dict[str, float | int | str | None]
    detail = {"centre": centre, "scale": scale, "threshold": passed, "n": window.count_n}
    detail |= {"lsl": limit.lsl, "usl": limit.usl, "side": side}
    return _anomaly(window, "spec_limits", severity, value, score, detail)


def _anomaly(
    window: Window,
    detector: str,
    severity: str,
    value: float,
    score: float,
    detail: dict[str, float | int | str | None],
) -> Anomaly:
    return Anomaly(
        start_us=window.start_us,
        size_s=window.size_s,
        series=window.series,
        detector=detector,
        severity=severity,
        value=value,
        score=score,
        detail=detail,
    )


def limit_at(limits: Limits, series: SeriesKey, time_us: int) -> Limit | None:
    """The limits of a series that hold at a time."""
    for limit in limits.get(series, ()):
        begun = limit.valid_from_us is None or limit.valid_from_us <= time_us
        if begun and (limit.valid_to_us is None or time_us < limit.valid_to_us):
            return limit
    return None


def kpis(messages: Iterable[Message], base_s: int, limits: Limits) -> list[Kpi]:
    """The four KPIs of every machine and hour that holds a sample."""
    messages = list(messages)
    per_machine: dict[tuple[int, tuple[str | None, ...]], list[Window]] = defaultdict(list)
    for window in windows(messages, base_s, base_s):
        per_machine[window.start_us // HOUR_US * HOUR_US, window.series.machine].append(window)
    flags: dict[tuple[int, tuple[str | None, ...]], int] = defaultdict(int)
    for anomaly in anomalies(messages, base_s, limits):
        flags[anomaly.start_us // HOUR_US * HOUR_US, anomaly.series.machine] += 1
    rows = []
    for (hour_us, machine), its in per_machine.items():
        rows += _machine_hour(hour_us, machine, its, flags[hour_us, machine], base_s, limits)  # type: ignore[arg-type]
    return rows


def _machine_hour(
    hour_us: int,
    machine: tuple[str | None, str | None, str | None],
    its: Sequence[Window],
    flagged: int,
    base_s: int,
    limits: Limits,
) -> list[Kpi]:
    messages = sum(window.count_n for window in its)
    covered, fits = len({window.start_us for window in its}), 3600 // base_s
    limited = inside = 0
    for window in its:
        limit = limit_at(limits, window.series, window.start_us)
        if limit is None or (limit.lsl is None and limit.usl is None):
            continue
        limited += 1
        inside += not (
            (limit.lsl is not None and window.min_val < limit.lsl)
            or (limit.usl is not None and window.max_val > limit.usl)
        )
    share = inside / limited if limited else None
    reason = None if limited else "no_spec_limits"
    return [
        Kpi(hour_us, machine, "messages", messages, messages, None, None),
        Kpi(hour_us, machine, "coverage", covered / fits, covered, fits, None),
        Kpi(hour_us, machine, "anomalies", flagged, flagged, None, None),
        Kpi(hour_us, machine, "share_in_spec", share, inside, limited, reason),
    ]
