"""``analytics-pipeline migrate``: bring the database up to ``sql/``."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    app.command()(migrate)


def migrate() -> None:
    """Create or update tables, views, hypertables and roles. Safe to repeat and to run from several machines."""
    from analytics_pipeline.domains import registry_for
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage import migrate as migrations

    settings = load_settings()
    registry = registry_for(settings)
    applied = migrations.migrate(
        settings, registry.domain_topics, on_notice=lambda text: typer.echo(text, err=True)
    )
    where = f"schema {settings.db_schema} of {settings.db_name} at {settings.db_host}:{settings.db_port}"
    typer.echo(f"{where}: applied {', '.join(applied)}" if applied else f"{where}: up to date, nothing to apply")
