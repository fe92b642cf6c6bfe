"""What Dagster loads: ``build_defs`` puts assets, checks, sensors and schedules together. No logic."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import structlog
from dagster import (
    BetaWarning,
    Definitions,
    PreviewWarning,
    in_process_executor,
)

from analytics_pipeline.orchestration.assets import build_assets
from analytics_pipeline.orchestration.logs import configure_logs
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.orchestration.schedules import build_jobs, build_schedules
from analytics_pipeline.orchestration.sensors import build_drain_sensor
from analytics_pipeline.settings import Settings, load_settings, unused_variables


def build_defs(resource_overrides: Mapping[str, Any] | None = None) -> Definitions:
    """A fresh graph. Tests replace the resource ``pipeline``, whose settings then hold for everything."""
    resources: dict[str, Any] = {**(resource_overrides or {})}
    if "pipeline" not in resources:
        resources["pipeline"] = Pipeline(load_settings())
    settings: Settings = resources["pipeline"].settings
    with warnings.catch_warnings():
        # Partitioned checks and backfill policies are known to be young; the pinned version is the answer.
        warnings.simplefilter("ignore", PreviewWarning)
        warnings.simplefilter("ignore", BetaWarning)
        return Definitions(
            assets=build_assets(settings),
            sensors=[build_drain_sensor(settings)],
            jobs=build_jobs(),
            schedules=build_schedules(settings.retention_days),
            resources=resources,
            # Celery's prefork children may have no children of their own; and a step is not worth a process.
            executor=in_process_executor,
        )


_settings = load_settings()
configure_logs(_settings.log_level, _settings.env)
for _line in unused_variables():
    structlog.get_logger(__name__).info(_line)
defs = build_defs()
