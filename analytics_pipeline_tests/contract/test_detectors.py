"""What holds for every detector, present and future, and the false-alarm rates that two of them state.

A detector is found automatically, as a subclass in ``detectors/``; one whose constructor needs arguments would
have to be given here.
"""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import json
import math
import pkgutil
import sys
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_pipeline import detectors
from analytics_pipeline.detectors import Detector, Flags, RobustZScore, SpecLimits, Targets
from analytics_pipeline.detectors.base import DETAIL_KEYS

for module in pkgutil.iter_modules(detectors.__path__):
    importlib.import_module(f"{detectors.__name__}.{module.name}")

#: Those of the product: domains of the tests bring some that fail on purpose.
ALL: list[Detector] = [
    kind() for kind in Detector.__subclasses__() if kind.__module__.startswith("analytics_pipeline.")
]
every_detector = pytest.mark.parametrize("detector", ALL, ids=lambda it: it.name)


def targets(
    average: np.ndarray,
    baseline: np.ndarray,
    spread: float = 1.0,
    lsl: float = math.nan,
    usl: float = math.nan,
) -> Targets:
    rows = len(average)
    with np.errstate(over="ignore"):
        low, high = (np.clip(average + by, -1.7e308, 1.7e308) for by in (-spread, spread))
    return Targets(
        count_n=np.full(rows, 20),
        avg_val=average,
        min_val=low,
        max_val=high,
        baseline=baseline,
        lsl=np.full(rows, lsl),
        usl=np.full(rows, usl),
    )


def seeded(detector: Detector, rows: int = 300) -> Targets:
    """Windows of which some are far out, with baselines of all lengths."""
    rng = np.random.default_rng(17)
    baseline = rng.normal(20, 1, (rows, detector.baseline_windows))
    for row, missing in enumerate(rng.integers(0, detector.baseline_windows + 1, rows)):
        baseline[row, :missing] = np.nan
    return targets(rng.normal(20, 4, rows), baseline, 0.5, lsl=16.0, usl=24.0)


def figures(flags: Flags) -> list[tuple[float | bool | str, ...]]:
    columns = (flags.value.tolist(), flags.score.tolist(), flags.critical.tolist())
    return [
        (*row, json.dumps(detail, allow_nan=False)) for *row, detail in zip(*columns, flags.details, strict=True)
    ]


def test_names_are_unique() -> None:
    assert len({detector.name for detector in ALL}) == len(ALL) >= 2


@every_detector
def test_it_is_a_frozen_dataclass_with_a_bounded_look_back(detector: Detector) -> None:
    assert dataclasses.is_dataclass(detector)
    with pytest.raises(dataclasses.FrozenInstanceError):
        detector.look_back = timedelta(1)
    assert timedelta(0) <= detector.look_back <= timedelta(days=7)
    assert detector.baseline_windows >= 0
    assert (detector.look_back > timedelta(0)) == (detector.baseline_windows > 0)


@every_detector
def test_its_docstring_says_when_to_prefer_a_sibling_how_often_it_errs_and_its_source(detector: Detector) -> None:
    text = type(detector).__doc__ or ""
    order = [text.find(word) for word in ("Plainly:", "Prefer `", "False alarms", "Source:", ">>>")]
    assert min(order) > 0
    assert order == sorted(order)


@every_detector
def test_the_example_in_its_docstring_runs(detector: Detector) -> None:
    results = doctest.testmod(sys.modules[type(detector).__module__])
    assert results.attempted > 0
    assert results.failed == 0


@every_detector
def test_its_figures_are_finite_and_explained(detector: Detector) -> None:
    flags = detector.detect(seeded(detector))
    assert len(flags.row) > 0
    assert np.all(np.diff(flags.row) > 0)
    assert np.all(np.isfinite(flags.value))
    assert np.all(np.isfinite(flags.score))
    assert 0 < flags.critical.sum() < len(flags.row)
    assert all(detail.keys() >= DETAIL_KEYS for detail in flags.details)
    assert len(figures(flags)) == len(flags.row)


@every_detector
def test_each_result_depends_on_its_own_row_alone(detector: Detector) -> None:
    together = seeded(detector)
    flags = detector.detect(together)
    alone = []
    for row in range(len(together)):
        part = Targets(*(getattr(together, it.name)[row : row + 1] for it in dataclasses.fields(Targets)))
        alone += figures(detector.detect(part))
    assert alone == figures(flags)


@every_detector
def test_nothing_to_evaluate_and_nothing_known_raise_no_alarm(detector: Detector) -> None:
    unknown = np.full((3, detector.baseline_windows), np.nan)
    assert len(detector.detect(targets(np.array([1e9, 0.0, -1e9]), unknown)).row) == 0
    assert len(detector.detect(targets(np.zeros(0), unknown[:0])).row) == 0


@every_detector
@pytest.mark.parametrize("size", [1.7e308, 5e-324, 1e-300])
def test_extreme_magnitudes_give_no_nan(detector: Detector, size: float) -> None:
    rng = np.random.default_rng(2)
    baseline = rng.choice([-size, 0.0, size], (50, detector.baseline_windows))
    it = targets(rng.choice([-size, size], 50), baseline, size, lsl=-size / 2, usl=size / 3)
    figures(detector.detect(it))


# --- robust z-score


def z_flags(x: float, baseline: list[float], **parameters: int) -> Flags:
    detector = RobustZScore(baseline_windows=len(baseline), **parameters)
    return detector.detect(targets(np.array([x]), np.array([baseline])))


def test_robust_zscore_is_that_of_iglewicz_and_hoaglin() -> None:
    # Median 5.5, MAD 2.5 of 1..10: M = 0.6745 (19 - 5.5) / 2.5.
    flags = z_flags(19.0, [float(it) for it in range(1, 11)], min_windows=10)
    assert flags.score[0] == pytest.approx(0.6745 * 13.5 / 2.5)
    assert (flags.value[0], bool(flags.critical[0])) == (19.0, False)
    detail = {"centre": 5.5, "scale": pytest.approx(2.5 / 0.6745), "threshold": 3.5, "n": 10}
    assert flags.details[0] == detail
    assert z_flags(-100.0, [float(it) for it in range(1, 11)], min_windows=10).score[0] < -7


def test_a_mean_of_exactly_zero_alarms_like_any_other() -> None:
    baseline = [-1.0, 0.0, 1.0] * 4
    assert len(z_flags(30.0, baseline).row) == 1
    assert len(z_flags(0.0, [it + 30 for it in baseline]).row) == 1


def test_a_constant_baseline_gives_no_anomaly_not_even_at_its_last_bit() -> None:
    assert len(z_flags(5.0, [1.0] * 120).row) == 0
    wiggle = [20.1, np.nextafter(20.1, 21)] * 60
    assert len(z_flags(20.100001, wiggle).row) == 0


def test_where_the_mad_is_zero_the_mean_absolute_deviation_is_the_scale() -> None:
    baseline = [10.0] * 15 + [9.0, 11.0, 12.0, 8.0, 10.0]
    flags = z_flags(14.0, baseline)
    assert flags.score[0] == pytest.approx((14 - 10) / (1.253314 * 6 / 20))
    assert len(z_flags(10.5, baseline).row) == 0


def test_too_few_windows_never_alarm_and_the_least_number_does() -> None:
    few = [math.nan] * 109 + [1.0, 2.0, 3.0] * 3 + [1.0, 2.0]
    assert sum(not math.isnan(it) for it in few) == 11
    assert len(z_flags(1e6, few).row) == 0
    assert len(z_flags(1e6, [*few[1:], 2.0]).row) == 1


@given(st.integers(0, 49), st.floats(1e3, 1e9))
def test_up_to_half_of_a_baseline_may_be_wrong_without_hiding_an_anomaly(wrong: int, size: float) -> None:
    usual = np.random.default_rng(0).normal(10, 1, 100 - wrong).tolist()
    assert len(z_flags(10.0 + 40 * 5, usual + [size] * wrong).row) == 1


def gaussian_rate(windows: int, evaluated: int) -> float:
    rng, step, flagged = np.random.default_rng(5), 20_000, 0
    detector = RobustZScore(baseline_windows=windows)
    for _ in range(evaluated // step):
        flagged += len(detector.detect(targets(rng.normal(size=step), rng.normal(size=(step, windows)))).row)
    return flagged / evaluated


def theoretical_rate(windows: int) -> float:
    """P(|M| > 3.5) with the asymptotic laws: median N(0, pi / 2n), MAD scale N(1, 1.3605 / n)."""
    scale_sd, apart_sd = math.sqrt(1.3605 / windows), math.sqrt(1 + math.pi / 2 / windows)
    steps = np.linspace(-6, 6, 2001)
    weights = np.exp(-(steps**2) / 2)
    passed = [math.erfc(3.5 * max(1 + scale_sd * step, 0) / apart_sd / math.sqrt(2)) for step in steps]
    return float(np.average(passed, weights=weights))


@pytest.mark.parametrize(("windows", "evaluated", "stated"), [(120, 400_000, 12e-4), (30, 200_000, 55e-4)])
def test_robust_zscore_errs_as_often_as_theory_and_its_docstring_say(
    windows: int, evaluated: int, stated: float
) -> None:
    rate = gaussian_rate(windows, evaluated)
    assert rate == pytest.approx(theoretical_rate(windows), rel=0.15)
    assert rate == pytest.approx(stated, rel=0.15)


def test_robust_zscore_errs_with_its_least_baseline_as_its_docstring_says() -> None:
    assert gaussian_rate(12, 200_000) == pytest.approx(240e-4, rel=0.1)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"threshold": 0.0}, "robust_zscore: threshold takes a number above 0, got 0.0"),
        ({"threshold": math.nan}, "robust_zscore: threshold takes a number above 0, got nan"),
        ({"critical_threshold": 3.0}, "critical_threshold takes a number not below threshold .*, got 3.0"),
        ({"min_windows": 2}, "min_windows takes 3 or more, got 2"),
        ({"baseline_windows": 11}, r"baseline_windows takes min_windows \(12\) or more, got 11"),
        ({"look_back": timedelta(0)}, "look_back takes more than no time, got datetime.timedelta"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_it_got(parameters: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RobustZScore(**parameters)  # type: ignore[arg-type]


# --- spec limits


@pytest.mark.parametrize(
    ("low", "high", "lsl", "usl", "expected"),
    [
        # (value, score, critical, side)
        (16.0, 24.0, 15.0, 25.0, None),
        (15.0, 25.0, 15.0, 25.0, None),  # on the limit is inside
        (16.0, 25.5, 15.0, 25.0, (25.5, 0.5, False, "upper")),
        (16.0, 26.0, 15.0, 25.0, (26.0, 1.0, True, "upper")),  # a tenth of the tolerance
        (14.5, 24.0, 15.0, 25.0, (14.5, 0.5, False, "lower")),
        (13.0, 25.5, 15.0, 25.0, (13.0, 2.0, True, "lower")),  # both: the worse side
        (14.5, 28.0, 15.0, 25.0, (28.0, 3.0, True, "upper")),
        (-99.0, 21.0, math.nan, 20.0, (21.0, 1.0, False, "upper")),  # one limit: a tenth of it
        (-99.0, 22.0, math.nan, 20.0, (22.0, 2.0, True, "upper")),
        (8.0, 99.0, 10.0, math.nan, (8.0, 2.0, True, "lower")),
        (-5.0, 99.0, 0.0, math.nan, (-5.0, 5.0, False, "lower")),  # zero gives no width
        (-99.0, 99.0, math.nan, math.nan, None),
    ],
)
def test_spec_limits_name_the_worst_sample_and_how_far_it_is_out(
    low: float, high: float, lsl: float, usl: float, expected: tuple[float, float, bool, str] | None
) -> None:
    it = Targets(
        *(np.array([value]) for value in (7, 20.0, low, high)), np.zeros((1, 0)), *np.array([[lsl], [usl]])
    )
    flags = SpecLimits().detect(it)
    found = [
        (value, score, critical, detail["side"])
        for value, score, critical, detail in zip(
            flags.value.tolist(), flags.score.tolist(), flags.critical.tolist(), flags.details, strict=True
        )
    ]
    assert found == ([] if expected is None else [expected])


def test_a_single_limit_leaves_centre_and_scale_unknown() -> None:
    flags = SpecLimits().detect(targets(np.array([5.0]), np.zeros((1, 0)), usl=3.0))
    expected = {"centre": None, "scale": None, "threshold": 3.0, "n": 20, "lsl": None, "usl": 3.0, "side": "upper"}
    assert flags.details == [expected]


@pytest.mark.parametrize(("cp", "stated"), [(1.0, 0.053), (1.33, 0.0013)])
def test_spec_limits_flag_a_process_in_control_as_often_as_its_docstring_says(cp: float, stated: float) -> None:
    n, rows = 20, 200_000
    samples = np.random.default_rng(9).normal(size=(rows, n))
    limit = np.full(rows, 3 * cp)
    it = Targets(
        np.full(rows, n), samples.mean(1), samples.min(1), samples.max(1), np.zeros((rows, 0)), -limit, limit
    )
    rate = len(SpecLimits().detect(it).row) / rows
    assert 1 - (1 - math.erfc(3 * cp / math.sqrt(2))) ** n == pytest.approx(stated, rel=0.03)
    assert rate == pytest.approx(stated, rel=0.15)


def test_a_wrong_critical_fraction_is_refused() -> None:
    with pytest.raises(ValueError, match="spec_limits: critical_fraction takes a number above 0, got -1"):
        SpecLimits(critical_fraction=-1)
