"""The one tree of errors.

    SeawallError
    ├── Retryable   later: the same input may succeed (a server is away, a budget is left)
    ├── Poison      never: this input cannot be processed, by any instance, at any time
    └── Fatal       stop: this process must not go on (bad settings, a corrupt model, a lost guarantee)

Every error carries a machine-readable ``reason`` and a ``detail`` that names the field and the mend. Neither ever
contains content (prompt text, media bytes, term-pack patterns).
"""

from __future__ import annotations


class SeawallError(Exception):
    """Base of every error Seawall raises on purpose.

    Args:
        reason: machine-readable, UPPER_SNAKE_CASE: ``"DIGEST_MISMATCH"``.
        detail: one sentence for a person: which field, what is wrong, what mends it. Never content.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Retryable(SeawallError):
    """The same input may succeed later."""


class Poison(SeawallError):
    """This input can never succeed; it is set aside and the stream moves on."""


class Fatal(SeawallError):
    """This process must stop; a person has to mend something."""
