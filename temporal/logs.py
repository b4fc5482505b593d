"""The logs of the services: a JSON object a line, with the time in UTC."""

import structlog


def configure() -> None:
    """Call it first in a service's main."""
    processors = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=processors, logger_factory=structlog.PrintLoggerFactory(), cache_logger_on_first_use=True
    )
