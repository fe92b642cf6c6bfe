"""How the pipeline's own log lines look in a worker and in a code location."""

from __future__ import annotations

import structlog


def configure_logs(level: str, environment: str) -> None:
    """One plain line an event from ``level`` on (DEBUG, INFO, WARNING, ERROR), which names the environment.

    Tracebacks come without the values of variables, which structlog shows by default where rich is installed:
    among them are passwords.
    """
    structlog.configure(
        processors=[
            lambda _logger, _method, event: {**event, "env": environment},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(),
    )
