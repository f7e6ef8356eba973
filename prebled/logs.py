"""The one set-up of structlog, for the daemon, workers and command line alike: key-value events, JSON or for people.

Logs go to stderr: stdout belongs to what a command prints. A worker's stderr is read by the supervisor, so JSON lines
carry the bound values (the worker's id) themselves.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TypeAlias, get_args

import structlog

from prebled.errors import SettingsError

LogFormat: TypeAlias = Literal["json", "console"]

LEVELS = ("debug", "info", "warning", "error")


def configure_logging(format: LogFormat, level: str = "info", **bound: object) -> None:
    """Log to stderr in this format, from this level on; `bound` is in every line of the process.

    Records of the standard `logging` module (libraries) come out the same way. Raises SettingsError.
    """
    if format not in get_args(LogFormat):
        raise SettingsError(f"log format {format!r}: neither json nor console")
    if level not in LEVELS:
        raise SettingsError(f"log level {level!r}: not one of {', '.join(LEVELS)}")
    structlog.contextvars.clear_contextvars()
    shared = [*_shared_processors(), _binder(bound)]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *_last_processors(format)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_last_processors(format)],
        )
    )
    # Libraries' debug lines stay out even at our own debug level: they would bury it.
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)


def _shared_processors() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _binder(bound: dict[str, object]) -> structlog.typing.Processor:
    def bind(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**bound, **event}

    return bind


def _last_processors(format: LogFormat) -> list[structlog.typing.Processor]:
    if format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # Without this the renderer draws tracebacks with rich where it happens to be installed: pages per exception.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
