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
            _named(process),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _named(process: str) -> structlog.types.Processor:
    """Put the process into every line, of every thread: a bound variable would reach only the thread that bound it."""

    def add(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return {**event, "process": process}

    return add


def get() -> structlog.typing.FilteringBoundLogger:
    """Return the logger; ids are bound with `structlog.contextvars.bound_contextvars(job=..., vm=...)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
