"""Structured logging: one line per transition or effect, `verb key=value`; job and vm are bound once per message."""

import logging
import sys

import structlog


def configure(*, log_format: str, process: str) -> None:
    """Send structlog to standard error, as text or JSON lines; `process` stands in every line."""
    renderer: structlog.types.Processor
    renderer = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.processors.KeyValueRenderer(
            key_order=["at", "level", "event", "process", "job", "vm"], drop_missing=True
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)


def get() -> structlog.typing.FilteringBoundLogger:
    """Return the logger; ids are bound with `structlog.contextvars.bound_contextvars(job=..., vm=...)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
