"""Structured logs: JSON lines for machines, colours for a terminal. Secrets never get this far."""

from __future__ import annotations

import logging
import sys

import structlog


def configure() -> None:
    """Send log events to standard error, from `info` upwards."""
    terminal = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if terminal:
        shared.append(structlog.dev.ConsoleRenderer())
    else:
        shared += [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
