"""Which bundle decides, for whom, and which are only tried: the rollout file.

    enforce: bundles/default                       decides
    canary:                                        decides instead, for these tenants, or for a share of generations
      - {bundle: bundles/next, percent: 5, tenants: [acme]}
    shadow:                                        is evaluated and recorded beside, and never acted on
      - {bundle: bundles/candidate, percent: 100}
    disabled: [bundles/last]                       is checked, and nothing else

Paths are relative to the file. A share is of generations, by the digest of their ids: every aggregator gives the same
answer for the same generation, in every attempt, and a share that grows keeps whom it had. With both, a tenant that is
named is in whatever its share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from seawall.api.generation.v1 import generation_pb2
from seawall.core import strict_yaml
from seawall.core.errors import Fatal
from seawall.core.policy.bundle import Policy
from seawall.core.policy.document import REASON

ROLLOUT_FILE: Final = "rollout.yaml"
_MAX_BYTES = 64 * 1024
_MAX_BUNDLES = 16
_BUCKETS = 1 << 32


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrialEntry(_Strict):
    """A bundle that is tried on some generations."""

    bundle: Path
    percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, strict=True)] | None = None
    tenants: Annotated[tuple[str, ...], Field(max_length=10_000)] = ()


class RolloutEntry(_Strict):
    """rollout.yaml."""

    enforce: Path
    canary: Annotated[tuple[TrialEntry, ...], Field(max_length=_MAX_BUNDLES)] = ()
    shadow: Annotated[tuple[TrialEntry, ...], Field(max_length=_MAX_BUNDLES)] = ()
    disabled: Annotated[tuple[Path, ...], Field(max_length=_MAX_BUNDLES)] = ()


class Trial(NamedTuple):
    """A bundle and whom it is for."""

    policy: Policy
    percent: float
    tenants: frozenset[str]

    def takes(self, generation_id: str, tenant_id: str) -> bool:
        """Whether the generation is among those it is for."""
        if tenant_id in self.tenants:
            return True
        return self.percent >= 100 or (self.percent > 0 and bucket(generation_id) < self.percent / 100 * _BUCKETS)


class Lineup(NamedTuple):
    """All that judges one generation: the bundle that decides, and those in shadow.

    ``digest`` is what decisions carry as policy digest. It covers the shadows, because the decision's bytes hold what
    they said: a decision of the same attempt and digest is the same decision, whatever was reloaded in between.
    """

    policy: Policy
    shadows: tuple[Policy, ...]
    digest: str

    @classmethod
    def of(cls, policy: Policy, shadows: Iterable[Policy] = ()) -> Lineup:
        """A lineup with its digest."""
        shadows = tuple(shadows)
        return cls(policy, shadows, lineup_digest(policy.digest, [shadow.digest for shadow in shadows]))


def lineup_digest(bundle: str, shadows: Sequence[str]) -> str:
    """The bundle's own digest, or one over it and those in shadow, in order; lower-case hex."""
    if not shadows:
        return bundle
    return hashlib.sha256("\x1f".join(("seawall policy lineup 1", bundle, *shadows)).encode()).hexdigest()


def bucket(generation_id: str) -> int:
    """Where the generation stands among all, 0 to 2^32 - 1; its own digest, so that it is the same everywhere."""
    return int.from_bytes(hashlib.sha256(f"policy\x1f{generation_id}".encode()).digest()[:4], "big")


class Rollout:
    """Chooses the lineup of each generation. Immutable."""

    def __init__(
        self, enforce: Policy, canary: Sequence[Trial] = (), shadow: Sequence[Trial] = (), files: Sequence[Path] = ()
    ) -> None:
        self._enforce = enforce
        self._canary = tuple(canary)
        self._shadow = tuple(shadow)
        #: What is to be watched for changes.
        self.files = tuple(files)
        self._lineups = lru_cache(maxsize=1024)(Lineup.of)
        # One lineup for all: the common case, and the quick one.
        everyone = all(trial.percent >= 100 for trial in self._shadow)
        self._sole = (
            None
            if canary or not everyone
            else Lineup.of(enforce, (trial.policy for trial in self._shadow if trial.policy is not enforce))
        )

    @classmethod
    def load(cls, path: Path) -> Rollout:
        """Read a rollout's folder or file, a bundle's folder, or a lone policy file.

        Raises:
            Fatal: BAD_POLICY, naming the file, the line and the mend.
        """
        if path.is_dir() and (path / ROLLOUT_FILE).is_file():
            path = path / ROLLOUT_FILE
        if path.name != ROLLOUT_FILE:
            return cls(Policy(path), files=(path,))
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_BYTES + 1)
        except OSError as error:
            raise Fatal(REASON, f"{path}: cannot be read ({error.strerror}): check the path and its mode") from error
        if len(data) > _MAX_BYTES:
            raise Fatal(REASON, f"{path.name}: more than {_MAX_BYTES} bytes: it only names bundles")
        document = strict_yaml.parse(data, path.name, REASON)
        entry = document.validate(RolloutEntry, "rollout")
        loaded: dict[Path, Policy] = {}

        def bundle(named: Path, *location: int | str) -> Policy:
            found = path.parent / named
            if not found.exists():
                raise document.refuse(location, f"{'.'.join(map(str, location))}: there is no {named} beside this file")
            if found not in loaded:
                loaded[found] = Policy(found)
            return loaded[found]

        def trials(kind: str, entries: Sequence[TrialEntry]) -> list[Trial]:
            made = []
            for number, one in enumerate(entries):
                policy = bundle(one.bundle, kind, number)
                # Of neither: everybody for a shadow, and for a canary nobody could mean that.
                if one.percent is None and not one.tenants and kind == "canary":
                    raise document.refuse((kind, number), f"{kind}.{number}: say for whom: percent, tenants or both")
                percent = (0.0 if one.tenants else 100.0) if one.percent is None else one.percent
                made.append(Trial(policy, percent, frozenset(one.tenants)))
            return made

        enforce = bundle(entry.enforce, "enforce")
        canary, shadow = trials("canary", entry.canary), trials("shadow", entry.shadow)
        for number, named in enumerate(entry.disabled):
            bundle(named, "disabled", number)
        return cls(enforce, canary, shadow, files=(path, *loaded))

    @property
    def policy(self) -> Policy:
        """The bundle that decides where no canary does."""
        return self._enforce

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Every bundle that is evaluated, once."""
        return tuple(
            dict.fromkeys((self._enforce, *(t.policy for t in self._canary), *(t.policy for t in self._shadow)))
        )

    @property
    def digest(self) -> str:
        """Tells one rollout from another: over bundles and shares."""
        trials = [
            f"{kind}\x1f{t.policy.digest}\x1f{t.percent!r}\x1f{','.join(sorted(t.tenants))}"
            for kind, of in (("canary", self._canary), ("shadow", self._shadow))
            for t in of
        ]
        return hashlib.sha256("\x1e".join((self._enforce.digest, *trials)).encode()).hexdigest()

    def choose(self, generation: generation_pb2.Generation) -> Lineup:
        """Who judges this generation, in each of its attempts alike."""
        if self._sole is not None:
            return self._sole
        return self.choose_by_id(generation.generation_id, generation.tenant_id)

    def choose_by_id(self, generation_id: str, tenant_id: str = "") -> Lineup:
        """The same, where only this is known. Of a record that cannot be read, the tenant is not."""
        if self._sole is not None:
            return self._sole
        takes = (trial.policy for trial in self._canary if trial.takes(generation_id, tenant_id))
        policy = next(takes, self._enforce)
        shadows = (t.policy for t in self._shadow if t.policy is not policy and t.takes(generation_id, tenant_id))
        return self._lineups(policy, tuple(shadows))
