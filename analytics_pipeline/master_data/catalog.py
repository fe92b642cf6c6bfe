"""Every table of master data, in the order in which files are imported. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from analytics_pipeline.master_data.measurements import TABLES as MEASUREMENTS
from analytics_pipeline.master_data.production import TABLES as PRODUCTION
from analytics_pipeline.master_data.spec import MasterTable

MASTER_TABLES: tuple[MasterTable, ...] = (*PRODUCTION, *MEASUREMENTS)
BY_NAME: Mapping[str, MasterTable] = {table.name: table for table in MASTER_TABLES}
