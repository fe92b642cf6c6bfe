"""The flow of imports: one way, so that pure code stays pure and a layer can be read without those above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import analytics_pipeline

PACKAGE = Path(analytics_pipeline.__file__).parent

#: From the bottom up: a layer may import itself and what stands before it.
LAYERS = (
    ("errors", "records", "messages", "gc_pause"),
    ("settings",),
    ("formulas",),
    ("detectors",),
    ("domains",),
    ("assets.transform", "tables"),
    ("assets.spec",),
    ("master_data",),
    ("quality", "sources", "storage"),
    ("assets",),
    ("embedded",),
    ("orchestration", "definitions"),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

#: What a pure layer may never import, directly.
IMPURE = {
    "confluent_kafka",
    "psycopg2",
    "sqlalchemy",
    "dagster",
    "dagster_celery",
    "celery",
    "os",
    "time",
    "socket",
}
PURE = (
    "formulas", "detectors", "domains", "assets.transform", "records", "errors", "messages", "tables", "assets.spec",
    "master_data",
)
#: What an asset is, and arithmetic about it, is pure and stands below storage; how it is computed stands above.
PURE_ASSET_MODULES = {"spec", "catalog", "regions", "slices", "__init__"}
#: A transform is pure wherever it stands, and knows no table.
TRANSFORMS = {"transform", "payload_bytes", "taken", "samples", "events", "series_rows", "said"}
TRANSFORMS |= {"event_rollups", "durations", "counter_increments", "sample_quality", "window_columns"}
#: Inside ``assets/``, the order of imports is the order of the data.
ASSET_FOLDERS = ("raw_events", "measurements", "windows", "anomalies", "kpis")
#: Only these know Dagster.
DAGSTER_LAYERS = ("orchestration", "definitions", "cli", "embedded")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_of(path: Path) -> str:
    return layer_named(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def layer_named(module: str) -> str:
    """The layer of a module, named without the package: ``assets.windows.spec``."""
    parts = module.split(".")
    if parts[0] == "assets" and parts[-1] in TRANSFORMS:
        return "assets.transform"
    if parts[0] == "assets" and parts[-1] in PURE_ASSET_MODULES:
        return "assets.spec"
    return parts[0]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "analytics_pipeline":
                yield from (f"analytics_pipeline.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_below_its_own(path: Path) -> None:
    layer = layer_of(path)
    for name in imported(path):
        if name.startswith("analytics_pipeline."):
            other = layer_named(name.split(".", 1)[1])
            assert RANK[other] <= RANK[layer], f"{layer} imports {other}: turn the dependency round"
            beside = RANK[other] == RANK[layer] and other != layer
            together = {"errors", "records", "messages", "gc_pause", "orchestration", "definitions"}
            assert not beside or {other, layer} <= together, (
                f"{layer} and {other} stand beside each other and must not know each other"
            )


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pure_layers_know_no_server_and_only_the_top_knows_dagster(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    layer = layer_of(path)
    if layer in PURE:
        assert not roots & IMPURE
    if layer not in DAGSTER_LAYERS:
        assert "dagster" not in roots
    if layer not in ("settings", "embedded", "cli", "orchestration", "quality", "storage"):
        assert "os" not in roots, "settings.py is the only reader of the environment"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_settings_and_what_starts_processes_read_the_environment(path: Path) -> None:
    reads = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    # The gate tells Great Expectations, which reads nothing else, to keep to itself.
    allowed = layer_of(path) in ("settings", "embedded", "cli") or path == PACKAGE / "quality" / "gates.py"
    assert allowed or not reads


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_asset_imports_only_from_assets_that_its_data_comes_from(path: Path) -> None:
    own = folder_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    if own is None:
        return
    for name in imported(path):
        other = folder_of(name.removeprefix("analytics_pipeline."))
        assert other is None or ASSET_FOLDERS.index(other) <= ASSET_FOLDERS.index(own), (
            f"{own} imports {name}: data flows from {own} to {other}, not back"
        )


def folder_of(module: str) -> str | None:
    """The asset folder that a module stands in, or None."""
    parts = module.split(".")
    return parts[1] if parts[0] == "assets" and parts[1:2] and parts[1] in ASSET_FOLDERS else None
