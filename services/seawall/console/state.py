"""What every request needs: one a process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Request
from sqlalchemy import Engine

from seawall.console import now
from seawall.console.lookup import LookUp
from seawall.console.settings import ConsoleSettings
from seawall.console.shapes import Artefacts
from seawall.console.watch import Watch
from seawall.core.errors import SeawallError
from seawall.ledger import queries


@dataclass(frozen=True)
class State:
    """The console's parts."""

    settings: ConsoleSettings
    db: Engine
    watch: Watch
    look_up: LookUp

    def behind(self) -> float | None:
        """Seconds that the ledger is behind; None where nobody knows."""
        try:
            lag, known = now.ledger_lag(queries.state(self.db), self.watch, time.time_ns())
        except SeawallError:
            return None
        return lag if known else None

    def artefacts(self) -> Artefacts:
        """Versions of models, lists and packs. Raises as `ledger.database.retryable`."""
        return Artefacts(artefacts=now.artefacts(self.db, time.time_ns()))

    def link(self, template: str | None, **values: str | None) -> str | None:
        """An address outside, its values filled in; None without a template or one of the values."""
        if template is None:
            return None
        for name, value in values.items():
            placeholder = f"{{{name}}}"
            if placeholder in template:
                if not value:
                    return None
                template = template.replace(placeholder, quote(value, safe=""))
        return template


def state_of(request: Request) -> State:
    """The process's."""
    state: State = request.app.state.console
    return state
