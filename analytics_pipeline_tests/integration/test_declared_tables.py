"""``sql/`` and the table specs say the same, both ways; and assets are named where they are declared."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import analytics_pipeline
from analytics_pipeline.assets.catalog import ASSETS
from analytics_pipeline.records import RAW_EVENTS
from analytics_pipeline.settings import Settings
from analytics_pipeline.tables import TableSpec
from analytics_pipeline_tests.integration.test_migrate import fetch

TABLES = [table for spec in ASSETS for table in spec.tables]
#: As the catalogue of the database calls them.
_TYPES = {"int4": "int4", "int8": "int8", "float8": "float8", "timestamptz": "timestamptz", "text": "text"}
_TYPES |= {"bool": "bool", "int2": "int2", "bytea": "bytea", "jsonb": "jsonb"}

PACKAGE = Path(analytics_pipeline.__file__).parent
DERIVED_TABLES = {table.name for spec in ASSETS if spec.name != RAW_EVENTS for table in spec.tables}
#: SQL about derived tables outside of their assets' folders, and why it is there.
EXCEPTIONS = {
    "storage/retention.py": "which column each table expires by",
    "storage/states_at_floor.py": "what retention keeps of what it deletes",
    "storage/readings_at_floor.py": "what retention keeps of what it deletes",
    "storage/profile.py": "what the pages of Dagster and doctor count, by name of the asset",
    "storage/window_sizes.py": "what the migration does to windows of sizes that are no longer wanted",
    "cli/_demo_data.py": "the demo's own questions",
    "cli/_smoke_checks.py": "the smoke test compares what was sent with what is stored",
    "cli/_smoke_watch.py": "the smoke test waits for rows",
    "cli/doctor.py": "whether tables are hypertables",
    "cli/up.py": "progress in rows",
}
#: Assets named outside of their folders and the catalogue, and why.
NAMED_ELSEWHERE = {
    "records.py": "the types that mypy holds every other name to",
    "master_data/measurements.py": "which assets read each table of master data",
    "master_data/production.py": "the same",
    "quality/suites.py": "what Great Expectations is asked of each asset, by name",
    "cli/_smoke_checks.py": "the smoke test counts tables as a stranger would",
}
_SQL = re.compile(r"\b(?:FROM|INTO|JOIN|UPDATE|COPY|TABLE)\s+(\w+)")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_columns_of_the_database_and_of_the_spec_are_the_same(database_settings: Settings, table: TableSpec) -> None:
    stored = fetch(
        database_settings,
        "SELECT column_name, udt_name, is_nullable = 'YES' FROM information_schema.columns "
        "WHERE table_schema = current_schema() AND table_name = %s ORDER BY ordinal_position",
        table.name,
    )
    declared = [(column.name, _TYPES[column.type], column.nullable) for column in table.by_name.values()]
    if table.name in DERIVED_TABLES:
        assert stored == declared
    else:  # raw events have columns of types that no frame has
        assert set(declared) <= set(stored)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_key_of_the_database_is_that_of_the_spec(database_settings: Settings, table: TableSpec) -> None:
    keys = fetch(
        database_settings,
        "SELECT array_agg(a.attname ORDER BY k.at)::text[] FROM pg_index i, "
        "unnest(i.indkey::int2[]) WITH ORDINALITY k (number, at), pg_attribute a "
        "WHERE i.indrelid = %s::regclass AND i.indisunique AND a.attrelid = i.indrelid AND a.attnum = k.number "
        "GROUP BY i.indexrelid",
        table.name,
    )
    assert [list(table.key)] == [row[0] for row in keys]


def test_every_table_of_a_derived_asset_leads_its_key_with_the_domain() -> None:
    assert {table.name: table.key[0] for table in TABLES if table.name in DERIVED_TABLES} == dict.fromkeys(
        DERIVED_TABLES, "domain_id"
    )


def test_sql_about_a_derived_table_stands_in_its_assets_folder() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).as_posix()
        if not where.startswith("assets/") and DERIVED_TABLES & set(_SQL.findall(path.read_text("utf-8"))):
            found.add(where)
    assert found <= EXCEPTIONS.keys()


def test_an_asset_is_named_in_its_own_folder_and_where_an_asset_declares_it() -> None:
    """Beside itself, an asset names what its spec says that it reads, or makes stale."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        if where not in NAMED_ELSEWHERE:
            found += [f"{where}: {name}" for name in sorted(_names_in(path) - _may_name(where))]
    assert found == []


def _may_name(where: str) -> set[str]:
    folder = PACKAGE / Path(where).parent
    if not (folder / "spec.py").exists() or folder.parent.name != "assets":
        return set()
    spec = import_module(f"analytics_pipeline.assets.{folder.name}.spec").SPEC
    return {spec.name, *spec.reads, *(edge.asset for edge in spec.edges)}


def _names_in(path: Path) -> set[str]:
    """The assets that string literals of a module are; texts that hold more than a name do not count."""
    values = {node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)}
    return values & {spec.name for spec in ASSETS}
