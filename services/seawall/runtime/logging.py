"""Logs: JSON lines on standard error, redacted by construction.

What may enter a line: short strings, numbers, booleans and short lists of ids. Bytes, protobuf messages and anything
else are replaced by the name of their type, so that content cannot be formatted into a log by mistake. An exception is
logged as its class, with reason and detail if it is ours; a foreign exception's message is left out (a decoder may
quote what it could not decode) and its frames are kept.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import MutableMapping
from pathlib import PurePath
from typing import Any, TextIO, cast

import structlog

from seawall.core.errors import SeawallError
from seawall.runtime.settings import TelemetrySettings

_ID = re.compile(r"[A-Za-z0-9._:/=-]{1,160}\Z")
_MAX_TEXT = 400
_MAX_IDS = 16
_MAX_FRAMES = 12

#: Libraries whose messages are ids and addresses alone. Of others only the first line of the template is logged.
_PLAIN_SPOKEN = ("aiokafka",)

Logger = structlog.typing.FilteringBoundLogger


def get_logger(name: str) -> Logger:
    """A logger; ``name`` is the module's. Call as ``log.info("what happened", field=value)``."""
    return cast(Logger, structlog.get_logger(module=name))


def setup(settings: TelemetrySettings, room: str, instance: str, stream: TextIO | None = None) -> None:
    """Send this process's logs, and those of its libraries, as JSON lines to ``stream`` (standard error)."""
    level = getattr(logging, settings.log_level.upper())
    _configure(level, {"room": room, "instance": instance}, stream)
    root = logging.getLogger()
    root.handlers = [_Foreign()]
    # Libraries tell at INFO what only their own developers need.
    root.setLevel(max(level, logging.WARNING))


def _configure(level: int, names: dict[str, str], stream: TextIO | None) -> None:
    def name_us(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.update(names)
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            name_us,
            redact,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Looked up when it is used: standard error may be replaced after this.
        logger_factory=lambda *_: structlog.WriteLogger(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor that lets only harmless values through."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, tuple):
        error = error[1]
    for name, value in event.items():
        event[name] = _harmless(value)
    if isinstance(error, BaseException):
        event.update(describe(error))
    return event


def describe(error: BaseException) -> dict[str, Any]:
    """What may be said of an exception: class, reason and detail if it is ours, else class and frames."""
    if isinstance(error, SeawallError):
        return {"error": type(error).__name__, "reason": error.reason, "detail": error.detail[:_MAX_TEXT]}
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    described: dict[str, Any] = {
        "error": type(error).__qualname__,
        "frames": [f"{os.path.basename(frame.filename)}:{frame.lineno}:{frame.name}" for frame in frames],
    }
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        described["cause"] = type(cause).__qualname__
    return described


def _harmless(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, str):
        return value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "…"
    if isinstance(value, list | tuple | set | frozenset):
        shown = list(value)[:_MAX_IDS]
        if all(isinstance(item, int | float) or (isinstance(item, str) and _ID.match(item)) for item in shown):
            return shown if len(value) <= _MAX_IDS else [*shown, "…"]
    return f"<refused: {type(value).__name__}>"


class _Foreign(logging.Handler):
    """Takes what libraries log through the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        plain = record.name.startswith(_PLAIN_SPOKEN)
        text = record.getMessage() if plain else str(record.msg).partition("\n")[0]
        error = record.exc_info[1] if record.exc_info else None
        level = (
            "error" if record.levelno >= logging.ERROR else "warning" if record.levelno >= logging.WARNING else "info"
        )
        getattr(get_logger(record.name), level)(text, exc_info=error)


# A process that never calls `setup` is redacted too.
_configure(logging.INFO, {}, None)
