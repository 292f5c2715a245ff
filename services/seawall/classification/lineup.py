"""The loaded models of a rollout, and which of them a generation meets. Immutable: a new rollout is a new lineup."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from seawall.api.signal.v1 import signal_pb2
from seawall.classification.execution import ExecutionSettings
from seawall.classification.head import DRIFT_WINDOW, Head
from seawall.classification.model import CPU
from seawall.classification.rollout import Rollout, falls_in
from seawall.core.errors import Fatal
from seawall.runtime import metrics, model_pack

_TASK = "image-classification"


class Plan(NamedTuple):
    """The models that one generation meets."""

    deciding: tuple[Head, ...]
    shadows: tuple[Head, ...]
    #: SHA-256 over the packs' digests and their roles: what a result rests on.
    digest: bytes

    @property
    def heads(self) -> tuple[Head, ...]:
        """All of them."""
        return (*self.deciding, *self.shadows)


class _Share(NamedTuple):
    head: Head
    percent: float
    #: Place among the deciding heads of the one it replaces; of a canary.
    place: int = 0

    def has(self, generation_id: str) -> bool:
        return falls_in(self.percent, self.head.model_name, generation_id)


class Lineup:
    """Every pack of a rollout, loaded and proven. Safe for threads."""

    def __init__(self, heads: dict[Path, Head], rollout: Rollout) -> None:
        """Args:
            heads: by folder, one for each of ``rollout.packs``.

        Raises:
            Fatal: ``DUPLICATE_LABEL``, ``AMBIGUOUS_MODEL``, ``CANARY_REPLACES_NOTHING`` or ``TWO_CANARIES``.
        """
        self.heads = heads
        self._active = tuple(heads[folder] for folder in rollout.active)
        _one_for_each_label(self._active)
        _one_for_each_name(heads.values())
        self._canaries = tuple(self._canary(heads[trial.pack], trial.percent) for trial in rollout.canary)
        replaced = Counter(canary.place for canary in self._canaries)
        if replaced and max(replaced.values()) > 1:
            raise Fatal("TWO_CANARIES", "rollout: two canaries replace one active pack: try them one after the other")
        self._shadows = tuple(_Share(heads[trial.pack], trial.percent) for trial in rollout.shadow)
        #: What the shared decode must keep for the most demanding model.
        self.min_side = max(head.min_side for head in heads.values())
        self.artefacts = tuple(
            signal_pb2.Artefact(
                kind=signal_pb2.ARTEFACT_KIND_MODEL,
                name=head.pack.name,
                version=head.pack.version,
                sha256=head.pack.digest,
            )
            for head in dict.fromkeys(heads.values())
        )
        self._always = None if self._canaries or self._shadows else _plan(self._active, ())

    def plan(self, generation_id: str) -> Plan:
        """The models for this generation, the same in every attempt and every process."""
        if self._always is not None:
            return self._always
        deciding = list(self._active)
        for canary in self._canaries:
            if canary.has(generation_id):
                deciding[canary.place] = canary.head
        shadows = tuple(
            shadow.head for shadow in self._shadows if shadow.head not in deciding and shadow.has(generation_id)
        )
        return _plan(tuple(deciding), shadows)

    def _canary(self, head: Head, percent: float) -> _Share:
        for place, active in enumerate(self._active):
            if set(active.labels) == set(head.labels) and active is not head:
                return _Share(head, percent, place)
        raise Fatal(
            "CANARY_REPLACES_NOTHING",
            f"rollout: no other active pack has the labels of canary {head.model_name} ({', '.join(head.labels)}): "
            "name an active pack with the same labels, or run it as a shadow",
        )


class LoadOptions(NamedTuple):
    """How packs are loaded; see the settings of the same names."""

    execution: ExecutionSettings = CPU
    workers: int = 1
    max_bytes: int = model_pack.MAX_PACK_BYTES
    drift_window: int = DRIFT_WINDOW


def load(rollout: Rollout, options: LoadOptions = LoadOptions(), previous: Lineup | None = None) -> Lineup:  # noqa: B008 - immutable
    """Load the rollout's packs and have each prove itself at the decoding that all share.

    Args:
        previous: heads of packs that are unchanged are taken over from it, not loaded again.

    Raises:
        Fatal: as ``model_pack.load``, ``Head``, ``Head.prove`` and ``Lineup``.
    """
    known = {head.pack.digest: head for head in previous.heads.values()} if previous else {}
    heads: dict[Path, Head] = {}
    for folder in rollout.packs:
        pack = model_pack.load(folder, _TASK, options.max_bytes)
        # Two folders with the same pack are one model.
        head = known.get(pack.digest)
        if head is None:
            head = Head(pack, options.execution, options.workers, options.drift_window)
            metrics.MODEL_LOADED_AT.set(time.time(), {metrics.MODEL: head.model_name})
        known[pack.digest] = head
        heads[folder] = head
    lineup = Lineup(heads, rollout)
    for head in dict.fromkeys(heads.values()):
        head.prove(lineup.min_side)
    return lineup


def _plan(deciding: tuple[Head, ...], shadows: tuple[Head, ...]) -> Plan:
    digests = [b"%d" % len(deciding), *(head.pack.digest for head in (*deciding, *shadows))]
    return Plan(deciding, shadows, hashlib.sha256(b"".join(digests)).digest())


def _one_for_each_label(heads: Sequence[Head]) -> None:
    counts = Counter(label for head in heads for label in head.labels)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        detail = f"classifiers: more than one scores {', '.join(twice)}"
        raise Fatal("DUPLICATE_LABEL", f"{detail}: remove one, or rename the label in its card")


def _one_for_each_name(heads: Iterable[Head]) -> None:
    digests: dict[str, bytes] = {}
    for head in heads:
        if digests.setdefault(head.model_name, head.pack.digest) != head.pack.digest:
            detail = f"rollout: two different packs call themselves {head.model_name}"
            raise Fatal("AMBIGUOUS_MODEL", f"{detail}: give one another version in its card")
