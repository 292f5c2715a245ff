"""The audit: who signed in, searched, looked and exported. One log line each, on the room's log.

A log, not a table: it must be written while the database is away, and an operator's log store keeps it from whoever
administers the console.
"""

from __future__ import annotations

from typing import Any

from seawall.console.access import User
from seawall.runtime.logging import get_logger

_log = get_logger("console.audit")


def record(act: str, user: User | None, **about: Any) -> None:
    """Write one line.

    Args:
        act: "sign_in", "search", "export", …
        user: None: nobody that we know.
        about: ids and counts; what was searched for as name=value strings.
    """
    who = {"subject": user.subject, "user": user.name, "tenant": user.tenant or "*"} if user else {}
    _log.info("audit", act=act, **who, **about)
