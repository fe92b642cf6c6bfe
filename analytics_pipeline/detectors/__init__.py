"""Detectors of anomalies in windows, one a file. Pure numpy.

Adding one: a file with a frozen dataclass that extends `base.Detector`, and its instance in the domain that
wants it. The tests in ``contract/`` find it automatically. Not here: which windows are evaluated and how
their baselines are gathered (assets/anomalies/), and where anomalies are stored.
"""

from analytics_pipeline.detectors.base import Detector, Flags, Targets
from analytics_pipeline.detectors.robust_zscore import RobustZScore
from analytics_pipeline.detectors.spec_limits import SpecLimits

__all__ = ["Detector", "Flags", "RobustZScore", "SpecLimits", "Targets"]
