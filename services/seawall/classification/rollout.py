"""Which models decide, which are on trial: the rollout file, and the share of generations that a version gets.

    active: [packs/explicit-1, packs/age-3]        decide
    shadow:                                        are recorded beside, and never decide
      - {pack: packs/explicit-2, percent: 25}
    canary:                                        decide instead of the active pack with the same labels, for a share
      - {pack: packs/explicit-2, percent: 5}

Paths are relative to the file. A share is of generations, by the digest of their ids: every service gives the same
answer for the same generation, in every attempt, and a share that grows keeps whom it had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from seawall.core import strict_yaml
from seawall.core.errors import Fatal

_MAX_BYTES = 64 * 1024
#: Packs of each kind, at most.
_MAX_PACKS = 16

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Trial(_Strict):
    """A pack that is tried out on a share of generations."""

    pack: Path
    percent: Percent = 100.0


class Rollout(_Strict):
    """Packs by their role. Paths are absolute once it is read."""

    active: Annotated[tuple[Path, ...], Field(min_length=1, max_length=_MAX_PACKS)]
    shadow: Annotated[tuple[Trial, ...], Field(max_length=_MAX_PACKS)] = ()
    canary: Annotated[tuple[Trial, ...], Field(max_length=_MAX_PACKS)] = ()

    @property
    def packs(self) -> tuple[Path, ...]:
        """Every pack's folder once, in the order active, canary, shadow."""
        return tuple(dict.fromkeys([*self.active, *(t.pack for t in self.canary), *(t.pack for t in self.shadow)]))


def read(path: Path) -> Rollout:
    """Read a rollout file.

    Raises:
        Fatal: ``BAD_ROLLOUT``, naming the line, the field and the mend.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        detail = f"rollout: {path.name} cannot be read ({error.strerror}): check the path and its mode"
        raise Fatal("BAD_ROLLOUT", detail) from error
    if len(data) > _MAX_BYTES:
        raise Fatal("BAD_ROLLOUT", f"{path.name} is larger than {_MAX_BYTES} bytes: shorten it")
    found = strict_yaml.parse(data, path.name, "BAD_ROLLOUT").validate(Rollout, "rollout")

    # By the folder's own name, links not followed: a link that is set to another pack is how some deployments switch.
    def absolute(pack: Path) -> Path:
        return path.absolute().parent / pack.expanduser()

    def trials(given: Sequence[Trial]) -> tuple[Trial, ...]:
        return tuple(Trial(pack=absolute(trial.pack), percent=trial.percent) for trial in given)

    return Rollout(
        active=tuple(absolute(pack) for pack in found.active),
        shadow=trials(found.shadow),
        canary=trials(found.canary),
    )


def falls_in(percent: float, model_name: str, generation_id: str) -> bool:
    """Whether a generation belongs to the share of ``percent`` of all that this model is given."""
    digest = hashlib.sha256(f"{model_name}\n{generation_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < percent / 100 * 2**64
