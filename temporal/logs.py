"""Logs of the services: one JSON object per line, with the time in UTC."""

import structlog
from structlog.typing import Processor


def configure() -> None:
    """Configure structlog. A service calls this first."""
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=processors, logger_factory=structlog.PrintLoggerFactory(), cache_logger_on_first_use=True
    )
