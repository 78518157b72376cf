"""One log format for all services: structlog to standard error, as text or JSON lines."""

from __future__ import annotations

import logging
import os
import sys

import structlog


def configure_logging(role: str, *, json: bool = False, level: str = "INFO") -> None:
    """Sets up structlog for this process; may be called again.

    Args:
        role: Service name, in every line as `role`, beside `pid`.
        json: One JSON object a line instead of text.
        level: Least level shown: DEBUG, INFO, WARNING, ERROR.

    Raises:
        ValueError: The level is unknown.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"unknown log level {level!r}")
    text = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    shape: list[structlog.typing.Processor] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()] if json else [text]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _adder(role),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shape,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_StderrFactory(),
        cache_logger_on_first_use=False,
    )


def _adder(role: str) -> structlog.typing.Processor:
    def add(
        logger: structlog.typing.WrappedLogger, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event.setdefault("role", role)
        event.setdefault("pid", os.getpid())
        return event

    return add


class _StderrFactory:
    """Looks up sys.stderr per logger, so that a stderr replaced later is used."""

    def __call__(self, *args: object) -> structlog.WriteLogger:
        return structlog.WriteLogger(sys.stderr)
