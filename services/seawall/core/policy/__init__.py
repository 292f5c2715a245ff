"""The policy: bundles of ordered rules in YAML with CEL conditions, type-checked against the protos at load.

    document        the files: read strictly, includes followed, digest over all
    expressions     CEL: compiled with line and mend, evaluated over no more evidence than is read
    reachability    conditions taken apart: rules that could never decide
    watch           what must be seen before a rule can hold: it clears nearly every generation
    evidence        what rules see of the signals
    bundle          Policy: which stages must report, and what the evidence comes to
    actor           rules over an actor's recent decisions (with actor_entry, actor_conditions, actor_cases)
    rollout         which bundle decides for whom, and which are in shadow
    cases           tests.yaml
    archive         every bundle that decided, by digest

Rooms import from here; only `expressions` and `actor_conditions` know CEL.
"""

from seawall.core.policy.actor import ActorPolicy, ActorRule
from seawall.core.policy.bundle import (
    RULE_ERRED,
    RULE_EXHAUSTED,
    RULE_INCOMPLETE,
    RULE_MALFORMED,
    RULE_NO_MATCH,
    RULE_QUARANTINED,
    RULE_UNSCANNABLE,
    Policy,
    Rule,
    Threshold,
    Verdict,
)
from seawall.core.policy.evidence import build_evidence
from seawall.core.policy.rollout import Lineup, Rollout

__all__ = [
    "RULE_ERRED",
    "RULE_EXHAUSTED",
    "RULE_INCOMPLETE",
    "RULE_MALFORMED",
    "RULE_NO_MATCH",
    "RULE_QUARANTINED",
    "RULE_UNSCANNABLE",
    "ActorPolicy",
    "ActorRule",
    "Lineup",
    "Policy",
    "Rollout",
    "Rule",
    "Threshold",
    "Verdict",
    "build_evidence",
]
