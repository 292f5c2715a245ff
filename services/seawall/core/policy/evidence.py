"""What rules can see of a generation's signals: at a glance for the guard, and whole for the rules themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2

_OK: Final = signal_pb2.ITEM_STATUS_OK
_UNSCANNABLE: Final = signal_pb2.ITEM_STATUS_UNSCANNABLE
_SKIPPED: Final = signal_pb2.ITEM_STATUS_SKIPPED
_QUARANTINED: Final = signal_pb2.MATCH_DISPOSITION_QUARANTINED
_NOTHING: Final = decision_pb2.Evidence()
#: Stage → label → ("<stage>.<label>", the score from which on a rule may hold; infinite where none asks for it).
Wanted = Mapping[str, Mapping[str, tuple[str, float]]]


class Glance:
    """The sum of the evidence: what the engine's own rules and the guard ask for.

    Args:
        wanted: the labels that have a threshold, by stage.
    """

    __slots__ = ("alarmed", "errors", "held_matches", "matches", "missing", "nexus", "scores", "unscannable")

    def __init__(self, signals: Iterable[signal_pb2.Signal], missing: Sequence[str], wanted: Wanted) -> None:
        #: The highest score of each wanted label that an OK item was measured for.
        self.scores: dict[str, float] = {}
        self.matches: list[signal_pb2.BankMatch] = []
        self.held_matches: list[signal_pb2.BankMatch] = []
        self.errors: list[str] = []
        self.unscannable: list[str] = []
        self.missing = missing
        #: A score has reached what is watched for.
        self.alarmed = False
        #: What the items are to the generation.
        self.nexus: set[generation_pb2.Nexus.ValueType] = set()
        scores, nexus = self.scores, self.nexus
        for signal in signals:
            stage = signal.stage
            names = wanted.get(stage)
            # Slices are lists, and quicker to walk than what they are of.
            for item in signal.items[:]:
                status = item.status
                nexus.add(item.nexus)
                if matches := item.matches:
                    # A digest match stands even where the picture cannot be decoded.
                    self.matches.extend(matches)
                if held := item.held_matches:
                    self.held_matches.extend(held)
                if status == _OK:
                    if names:
                        for label in item.labels[:]:
                            found = names.get(label.label)
                            if found is not None:
                                name, watched = found
                                score = label.score
                                if score > scores.get(name, -1.0):
                                    scores[name] = score
                                    if score >= watched:
                                        self.alarmed = True
                elif status == _UNSCANNABLE:
                    if stage not in self.unscannable:
                        self.unscannable.append(stage)
                elif status != _SKIPPED and stage not in self.errors:
                    # An unknown status is one this version cannot vouch for.
                    self.errors.append(stage)
        nexus.discard(generation_pb2.NEXUS_UNSPECIFIED)

    @property
    def quarantined(self) -> bool:
        """A match that somebody must look at before it may count, or be forgotten."""
        return any(match.disposition == _QUARANTINED for match in self.held_matches)

    def evidence(self) -> decision_pb2.Evidence:
        """Evidence without items and scores. Not to be changed: it may be shared."""
        if not (self.matches or self.held_matches or self.missing or self.errors or self.unscannable):
            return _NOTHING
        return decision_pb2.Evidence(
            missing=self.missing,
            errors=sorted(self.errors),
            unscannable=sorted(self.unscannable),
            matches=self.matches,
            held_matches=self.held_matches,
        )


def build_evidence(
    signals: Sequence[signal_pb2.Signal], missing: Sequence[str], labels: Iterable[str]
) -> decision_pb2.Evidence:
    """Gather what rules can see. Only OK items contribute scores and matches; ``labels`` are present even if 0."""
    evidence = decision_pb2.Evidence(missing=missing)
    best = dict.fromkeys(labels, 0.0)
    errors, unscannable = set(), set()
    for signal in sorted(signals, key=lambda s: s.stage):
        stage = signal.stage
        for item in signal.items:
            status = item.status
            seen = evidence.items.add(
                stage=stage, item_id=item.item_id, nexus=item.nexus, status=status, reason=item.reason
            )
            if item.matches:
                # A digest match stands even where the picture cannot be decoded.
                seen.matches.extend(item.matches)
                evidence.matches.extend(item.matches)
            if item.held_matches:
                seen.held_matches.extend(item.held_matches)
                evidence.held_matches.extend(item.held_matches)
            if status == _OK:
                for label in item.labels:
                    # Of a label that stands twice the higher counts, as between items.
                    score = label.score
                    if score >= seen.score.get(label.label, 0.0):
                        seen.score[label.label] = score
                    name = f"{stage}.{label.label}"
                    if score > best.get(name, -1.0):
                        best[name] = score
            elif status == _UNSCANNABLE:
                unscannable.add(stage)
            elif status != _SKIPPED:
                errors.add(stage)
    evidence.score.update(best)
    evidence.errors.extend(sorted(errors))
    evidence.unscannable.extend(sorted(unscannable))
    return evidence
