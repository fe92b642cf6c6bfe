"""``analytics-pipeline …``: the command line. Each file beside this one holds commands and ``register(app)``.

No logic of the pipeline lives here: commands call flow and storage, and say what came of it.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from dotenv import load_dotenv

from analytics_pipeline.errors import PipelineError

HELP = "From Kafka messages to trustworthy, recomputable numbers in TimescaleDB."


def build_app() -> typer.Typer:
    """The application with the commands of every module of this package.

    A module gives its commands through ``register(app)``; it imports what is heavy inside its commands. Modules
    whose name begins with an underscore hold what commands share.
    """
    app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

    @app.callback()
    def _root(
        env_file: Annotated[
            Path | None,
            typer.Option(
                help="Variables that win over all others: .state/environment leads to a running demo.",
                exists=True,
                dir_okay=False,
            ),
        ] = None,
    ) -> None:
        if env_file:
            load_dotenv(env_file, override=True)

    for module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}").register(app)
    return app


def main() -> None:
    """Run a command. What a person can put right ends in one line and code 1, never in a stack trace."""
    try:
        build_app()()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
