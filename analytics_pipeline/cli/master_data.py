"""``analytics-pipeline master-data``: limits, calibration, shifts and the like as CSV files, in and out."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analytics_pipeline.cli._shared import AsJson, console, open_database, print_json, table
from analytics_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from analytics_pipeline.master_data.changes import Changes
    from analytics_pipeline.storage.master_data_import import File, Imported

#: Rows of each table that 'diff' shows; the others are counted.
SHOWN_ROWS = 50

Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", exists=True, help="CSV files named as their tables, or folders of such files."),
]
Prune = Annotated[bool, typer.Option("--prune", help="Remove stored rows that the file of their table does not have.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Master data as CSV files: import, export, compare.", no_args_is_help=True)
    group.command("import")(import_files)
    group.command("export")(export_files)
    group.command("diff")(diff)
    app.add_typer(group, name="master-data")


def import_files(
    paths: Paths,
    prune: Prune = False,
    by: Annotated[str | None, typer.Option(help="Who edits. Default: the user of this process.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write what the files say, all or nothing. What is computed from it is computed again, from valid_from on."""
    imported = _apply(paths, prune=prune, by=by, commit=True)
    if as_json:
        print_json(_summary(imported))
        return
    if not any(imported.changes):
        typer.echo("master data: nothing to change")
        return
    for one in imported.changes:
        if one:
            typer.echo(
                f"{one.table.name}: {len(one.added)} added, {len(one.changed)} changed, {len(one.removed)} removed"
            )
    typer.echo(f"computed again: {_hours(imported)}")


def diff(paths: Paths, prune: Prune = False, as_json: AsJson = False) -> None:
    """Show what an import would change, and how many hours would be computed again. Changes nothing."""
    imported = _apply(paths, prune=prune, by=None, commit=False)
    if as_json:
        print_json(_summary(imported))
        return
    for one in imported.changes:
        if one:
            console().print(table(one.table.name, ("", "row", "change"), _rows(one)))
    if any(imported.changes):
        typer.echo(f"an import would compute again: {_hours(imported)}")
    else:
        typer.echo("master data: nothing to change")


def export_files(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Made if it does not exist.")],
    only: Annotated[list[str] | None, typer.Option("--table", help="Only this table; may be given again.")] = None,
) -> None:
    """Write every table as a CSV file. Importing the files again changes nothing."""
    from analytics_pipeline.master_data.catalog import BY_NAME, MASTER_TABLES
    from analytics_pipeline.master_data.rows import text_of
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage.master_data_edits import read_rows

    unknown = [name for name in only or () if name not in BY_NAME]
    if unknown:
        raise PipelineError(f"--table: no table is named {unknown[0]!r}; takes {', '.join(sorted(BY_NAME))}")
    with open_database(load_settings()) as conn, conn.cursor() as cursor:
        # One snapshot, so that rows of several tables fit together.
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        rows = {one: read_rows(conn, one) for one in MASTER_TABLES if not only or one.name in only}
    folder.mkdir(parents=True, exist_ok=True)
    for one, its in rows.items():
        (folder / f"{one.name}.csv").write_text(text_of(one, its), "utf-8", newline="")
    typer.echo(f"exported: {sum(map(len, rows.values()))} rows of {len(rows)} tables to {folder}")


def _apply(paths: list[Path], *, prune: bool, by: str | None, commit: bool) -> Imported:
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage.master_data_import import apply

    files, settings = _files(paths), load_settings()
    with open_database(settings) as conn:
        imported = apply(
            conn,
            files,
            prune=prune,
            edited_by=by or getpass.getuser(),
            now=datetime.now(UTC),
            base_window_s=settings.base_window_s,
        )
        if commit:
            conn.commit()
        return imported


def _files(paths: list[Path]) -> list[File]:
    from analytics_pipeline.storage.master_data_import import File

    found = [file for path in paths for file in (sorted(path.glob("*.csv")) if path.is_dir() else [path])]
    if not found:
        raise PipelineError(f"{', '.join(map(str, paths))}: no *.csv there; 'analytics-pipeline master-data export' "
                            "writes files to begin with")  # fmt: skip
    return [File(str(path), _text(path)) for path in found]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: byte {error.start} is no UTF-8; save it as CSV in UTF-8") from error


def _hours(imported: Imported) -> str:
    told = ", ".join(f"{count} hour{'s' * (count != 1)} of {asset}" for asset, count in imported.hours.items())
    return told or "nothing, no figure depends on it"


def _rows(changes: Changes) -> list[tuple[str, str, str]]:
    from analytics_pipeline.master_data.cells import write
    from analytics_pipeline.master_data.spec import Row

    columns = changes.table.by_name

    def shown(row: Row, names: tuple[str, ...]) -> str:
        cells = [(name, write(columns[name], row[name])) for name in names]
        return ", ".join(f"{name}={cell}" for name, cell in cells if cell)

    key = changes.table.key
    rest = tuple(column.name for column in changes.table.in_files if column.name not in key)
    rows = [("+", shown(row, key), shown(row, rest)) for row in changes.added]
    for one in changes.changed:
        before, after = (shown(row, one.columns) or "-" for row in (one.before, one.after))
        rows.append(("~", shown(one.after, key), f"{before} -> {after}"))
    rows += [("-", shown(row, key), shown(row, rest)) for row in changes.removed]
    more = len(rows) - SHOWN_ROWS
    return rows if more <= 0 else [*rows[:SHOWN_ROWS], ("", f"and {more} more", "")]


def _summary(imported: Imported) -> dict[str, object]:
    return {
        "tables": {
            one.table.name: {
                "added": len(one.added),
                "changed": len(one.changed),
                "removed": len(one.removed),
                "same": one.same,
            }
            for one in imported.changes
        },
        "hours": dict(imported.hours),
    }
