"""Logs of a service process: lines for people, or JSON for machines."""

from __future__ import annotations

import logging
import sys

import structlog

from services.core.config import CommonSettings


def configure_logging(settings: CommonSettings, service: str) -> None:
    """Sets up structlog for the process; every line names the service."""
    renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    if settings.log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.log_level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(),
    )
    structlog.contextvars.bind_contextvars(service=service)
