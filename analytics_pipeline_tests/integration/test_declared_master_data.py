"""``sql/`` and the tables of master data as Python declares them say the same, both ways."""

from __future__ import annotations

from typing import Any

import pytest

from analytics_pipeline.assets.catalog import BY_NAME as ASSETS
from analytics_pipeline.master_data.catalog import MASTER_TABLES
from analytics_pipeline.master_data.spec import Holds, MasterTable
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.master_data import PG_TYPES
from analytics_pipeline_tests.integration.test_migrate import fetch

EVER = ("'-infinity'::timestamptz", "'infinity'::timestamptz")
#: From when, until when a row holds, as expressions over the row.
SPANS: dict[Holds, tuple[str, str | None]] = {
    "from": ("valid_from", None),
    "between": ("begins_at", "ends_at"),
    "always": EVER,
    "date": (
        "on_date::timestamp AT TIME ZONE factory_zone(tenant_id, factory_id, on_date::timestamptz)",
        "(on_date + 2)::timestamp AT TIME ZONE factory_zone(tenant_id, factory_id, on_date::timestamptz)",
    ),
}
#: Cells that a file may leave to the names of the units; an edit by SQL says them.
BY_NAMES_OF_UNITS = {("analytics_units", "factor")}
DECLARED = [table.table_name for table in MASTER_TABLES]


def by_table(rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, *rest in rows:
        found.setdefault(name, []).append(tuple(rest))
    return found


def test_columns_of_the_database_and_of_the_declaration_are_the_same(database_settings: Settings) -> None:
    stored = fetch(
        database_settings,
        "SELECT table_name::text, column_name::text, udt_name::text, is_nullable = 'YES' "
        "FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = ANY(%s) "
        "ORDER BY table_name, ordinal_position",
        DECLARED,
    )
    assert by_table(stored) == {
        table.table_name: [(column.name, PG_TYPES[column.kind], column.nullable) for column in table.columns]
        for table in MASTER_TABLES
    }


def test_an_empty_cell_stands_for_what_the_database_fills_in(database_settings: Settings) -> None:
    filled = fetch(
        database_settings,
        "SELECT table_name::text, column_name::text FROM information_schema.columns "
        "WHERE table_schema = current_schema() AND table_name = ANY(%s) AND column_default IS NOT NULL",
        DECLARED,
    )
    declared = {
        (table.table_name, column.name)
        for table in MASTER_TABLES
        for column in table.columns
        if column.default is not None or column.is_filled_in
    }
    assert set(filled) == declared - BY_NAMES_OF_UNITS


def test_no_two_rows_have_the_declared_key_in_common(database_settings: Settings) -> None:
    keys = fetch(
        database_settings,
        "SELECT i.indrelid::regclass::text, array_agg(a.attname ORDER BY k.at)::text[], "
        "bool_or(i.indnullsnotdistinct OR a.attnotnull) FROM pg_index i, "
        "unnest(i.indkey::int2[]) WITH ORDINALITY k (number, at), pg_attribute a "
        "WHERE i.indrelid = ANY(%s::regclass[]) AND i.indisunique AND NOT i.indisprimary "
        "AND a.attrelid = i.indrelid AND a.attnum = k.number GROUP BY i.indrelid, i.indexrelid",
        DECLARED,
    )
    assert by_table(keys) == {table.table_name: [(list(table.key), True)] for table in MASTER_TABLES}


def test_the_database_knows_what_an_edit_of_each_table_makes_stale(database_settings: Settings) -> None:
    stored = fetch(
        database_settings,
        "SELECT table_name, target, scope, begins, ends, stale, remarks FROM master_data_table",
    )
    assert by_table(stored) == {
        one.table_name: [
            (list(one.target), list(one.scope), *SPANS[one.holds], list(one.stale), list(one.remarks))
        ]
        for one in MASTER_TABLES
    }


def test_every_table_reports_its_edits(database_settings: Settings) -> None:
    triggers = fetch(
        database_settings,
        "SELECT tgrelid::regclass::text, tgname::text FROM pg_trigger "
        "WHERE tgrelid = ANY(%s::regclass[]) AND NOT tgisinternal ORDER BY 2",
        DECLARED,
    )
    kinds = [(f"master_data_{what}",) for what in ("delete", "insert", "truncate", "update")]
    assert by_table(triggers) == dict.fromkeys(DECLARED, kinds)


def test_whoever_reads_master_data_declares_it() -> None:
    assert {name for table in MASTER_TABLES for name in table.stale} == {
        name for name, spec in ASSETS.items() if spec.reads_master_data
    }


@pytest.mark.parametrize("table", MASTER_TABLES, ids=lambda table: table.name)
def test_every_column_of_master_data_is_described(table: MasterTable) -> None:
    assert table.description.endswith(".")
    for column in table.columns:
        assert column.description, column.name
        assert column.unit or column.kind not in ("number", "whole number") or column.is_generated, column.name
    assert set(table.scope) <= set(table.target) <= table.by_name.keys()
    assert table.in_files[-1].name == "note"
