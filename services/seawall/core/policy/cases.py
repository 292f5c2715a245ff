"""tests.yaml of a bundle: what the signals say, and the outcome and rule that must follow.

    cases:
      - name: a known picture is blocked and reported
        carries: {prompt: true, media: [model_output]}          default: a prompt
        signals: {perceptual_hashing: {matches: 1}}             stages that are not named report nothing found
        expect: {outcome: BLOCK_AND_REPORT, rule: known-hash}

Scores are made up: a case needs no text and no picture. Cases of actor rules stand beside: see `actor_cases`.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import strict_yaml
from seawall.core.errors import Fatal
from seawall.core.policy import actor_cases
from seawall.core.policy.actor_cases import ActorCase
from seawall.core.policy.bundle import Policy, Verdict
from seawall.core.policy.document import REASON, TESTS_FILE

_MAX_CASES = 2_000
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
NexusName = Literal["uploaded_input", "model_output", "training_data"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Carries(_Strict):
    """What the generation carries."""

    prompt: bool = True
    negative_prompt: bool = False
    media: Annotated[tuple[NexusName, ...], Field(max_length=64)] = ()


class SignalCase(_Strict):
    """What one stage says, of its first item unless ``items`` says otherwise."""

    status: Literal["OK", "ERROR", "UNSCANNABLE", "SKIPPED"] = "OK"
    scores: dict[str, Score] = Field(default_factory=dict)
    matches: Annotated[int, Field(ge=0, le=16)] = 0
    quarantined: Annotated[int, Field(ge=0, le=16)] = 0


class Expect(_Strict):
    """What must follow."""

    outcome: Literal["HOLD", "ALLOW", "REVIEW", "BLOCK", "BLOCK_AND_REPORT"]
    rule: str | None = None
    errors: tuple[str, ...] = ()


class Case(_Strict):
    """One case."""

    name: Annotated[str, Field(min_length=1, max_length=300)]
    modality: Literal["text", "image", "video", "dataset"] = "image"
    attempt: Annotated[int, Field(ge=1, le=10)] = 1
    tenant: str = "tenant"
    carries: Carries = Carries()
    signals: dict[str, SignalCase] = Field(default_factory=dict)
    #: Stages that have not reported when the deadline was read.
    silent: tuple[str, ...] = ()
    expect: Expect


class Cases(_Strict):
    """tests.yaml."""

    cases: Annotated[tuple[Case, ...], Field(max_length=_MAX_CASES)]
    actor_cases: Annotated[tuple[ActorCase, ...], Field(max_length=_MAX_CASES)] = ()


class Result(NamedTuple):
    """What a case came to. ``fault`` is empty if it is as expected."""

    name: str
    line: int
    outcome: str
    rule_id: str
    fault: str


def run(policy: Policy) -> list[Result]:
    """Run the bundle's own cases.

    Raises:
        Fatal: BAD_POLICY if tests.yaml cannot be read, naming the line.
    """
    data = policy.source.files.get(TESTS_FILE)
    if data is None:
        return []
    document = strict_yaml.parse(data, TESTS_FILE, REASON)
    results = []
    written = document.validate(Cases, "tests")
    for number, case in enumerate(written.cases):
        line = document.line(("cases", number))
        required = policy.required(_generation(case))
        for stage in (*case.signals, *case.silent):
            if stage not in required:
                raise Fatal(
                    REASON,
                    f"{TESTS_FILE} line {line}: case {case.name!r}: {stage!r} is not a stage that this generation "
                    f"requires ({', '.join(sorted(required)) or 'none'}): correct its spelling, or what it carries",
                )
        results.append(_run(policy, case, line))
    for number, actor_case in enumerate(written.actor_cases):
        line = document.line(("actor_cases", number))
        if policy.actors is None:
            raise Fatal(REASON, f"{TESTS_FILE} line {line}: an actor case, and the policy has no section actors")
        results.append(Result(actor_case.name, line, *actor_cases.run(policy.actors, actor_case)))
    return results


def untested(policy: Policy, results: list[Result]) -> list[str]:
    """Rules in force that no passing case ends in."""
    reached = {result.rule_id for result in results if not result.fault}
    enforced = [rule.rule_id for rule in policy.rules if not rule.shadow]
    if policy.actors is not None:
        enforced += [rule.rule_id for rule in policy.actors.rules if rule.mode == "enforce"]
    return [rule_id for rule_id in enforced if rule_id not in reached]


def _run(policy: Policy, case: Case, line: int) -> Result:
    generation, signals = make(policy, case)
    verdict = policy.judge(generation, signals, sorted(case.silent))
    outcome = decision_pb2.Outcome.Name(verdict.outcome).removeprefix("OUTCOME_")
    return Result(case.name, line, outcome, verdict.rule_id, _fault(case, verdict, outcome))


def _fault(case: Case, verdict: Verdict, outcome: str) -> str:
    expect = case.expect
    if outcome != expect.outcome:
        return f"expected {expect.outcome}, got {outcome} by {verdict.rule_id}"
    if expect.rule is not None and verdict.rule_id != expect.rule:
        return f"expected rule {expect.rule}, got {verdict.rule_id}"
    if sorted(expect.errors) != sorted(verdict.errors):
        return f"expected rule errors {sorted(expect.errors)}, got {sorted(verdict.errors)}"
    return ""


def _generation(case: Case) -> generation_pb2.Generation:
    generation = generation_pb2.Generation(
        generation_id="case",
        attempt=case.attempt,
        tenant_id=case.tenant,
        modality=generation_pb2.Modality.Value(f"MODALITY_{case.modality.upper()}"),
    )
    if case.carries.prompt:
        generation.prompt.key_id = "1"
    if case.carries.negative_prompt:
        generation.negative_prompt.key_id = "1"
    for number, nexus in enumerate(case.carries.media):
        generation.media.add(item_id=f"media/{number}", nexus=generation_pb2.Nexus.Value(f"NEXUS_{nexus.upper()}"))
    return generation


def make(policy: Policy, case: Case) -> tuple[generation_pb2.Generation, list[signal_pb2.Signal]]:
    """The case's records: every required stage reports, unless it is silent."""
    generation = _generation(case)
    items = [(item.item_id, item.nexus) for item in generation.media]
    signals = []
    for stage in sorted(policy.required(generation) - set(case.silent)):
        says = case.signals.get(stage, SignalCase())
        signal = signal_pb2.Signal(generation_id="case", attempt=case.attempt, stage=stage)
        item_id, nexus = items[0] if items and stage != "prompt_scoring" else ("prompt", generation_pb2.NEXUS_ATTEMPT)
        item = signal.items.add(
            item_id=item_id, nexus=nexus, status=signal_pb2.ItemStatus.Value(f"ITEM_STATUS_{says.status}")
        )
        for label, score in says.scores.items():
            item.labels.add(label=label, score=score)
        for number in range(says.matches):
            item.matches.add(bank="bank", entry_id=str(number), hash_type="pdq")
        for number in range(says.quarantined):
            item.held_matches.add(
                bank="bank", entry_id=str(number), disposition=signal_pb2.MATCH_DISPOSITION_QUARANTINED
            )
        signals.append(signal)
    return generation, signals
