"""Every asset, in the order in which data flows through them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from analytics_pipeline.assets.anomalies.spec import SPEC as ANOMALIES
from analytics_pipeline.assets.kpis.spec import SPEC as KPIS
from analytics_pipeline.assets.measurements.spec import SPEC as MEASUREMENTS
from analytics_pipeline.assets.raw_events.spec import SPEC as RAW_EVENTS
from analytics_pipeline.assets.spec import AssetSpec
from analytics_pipeline.assets.windows.spec import SPEC as WINDOWS

ASSETS: tuple[AssetSpec, ...] = (RAW_EVENTS, MEASUREMENTS, WINDOWS, ANOMALIES, KPIS)
BY_NAME: Mapping[str, AssetSpec] = {spec.name: spec for spec in ASSETS}
