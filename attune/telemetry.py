"""Logs of every program, as JSON lines in files and pipes, readable on a terminal; and metrics of those that answer no HTTP.

Prompts and replies go into neither.
"""

import logging
import sys

import structlog
from prometheus_client import start_http_server

from attune.errors import ConfigError


def setup_logging(program: str) -> None:
    """Send this process's events to stderr, each with the program's name and the time."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(program=program)


def expose(port: int, program: str) -> None:
    """Show this process's metrics on a port of this machine, unless it is 0; raises `ConfigError` if somebody listens there."""
    try:
        if port:
            start_http_server(port, "127.0.0.1")
    except OSError as error:
        raise ConfigError(f"{program}.metrics_port: cannot listen on {port} ({error.strerror}): choose another, or 0 for none") from error
