"""Conditions over an actor's features, in CEL, type-checked against seawall.api.actor_standing.v1.ActorFeatures.

A condition sees ``actor`` and ``threshold``, the map of the section's named values; these are put in as literals before
it is compiled for use, so that nothing but the features need be handed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cel_expr_python import cel
from google.protobuf import descriptor_pool

from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.core.policy.document import Place
from seawall.core.policy.expressions import explain, near

_ACTOR: Final = {"actor": cel.Type(pb.ActorFeatures.DESCRIPTOR.full_name)}
_THRESHOLD: Final = {"threshold": cel.Type.Map(cel.Type.STRING, cel.Type.DOUBLE)}
#: Strings and comments, which nothing is put into, then what is replaced.
_TOKENS = re.compile(
    r"""threshold\s*\[\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\]|(?<![\w.])threshold\s*\.\s*([A-Za-z_]\w*)"""
    r"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|//[^\n]*"""
)


class ActorLanguage:
    """The language of one policy's actor rules.

    Args:
        thresholds: named values.
    """

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self._thresholds = thresholds
        self._checking = cel.NewEnv(descriptor_pool.Default(), variables={**_ACTOR, **_THRESHOLD})
        self._env = cel.NewEnv(descriptor_pool.Default(), variables=_ACTOR)

    def compile(self, text: str, at: Place, rule_id: str) -> Any:
        """Type-check a condition; what ``holds`` takes.

        Raises:
            Fatal: BAD_POLICY with file, line, rule and mend.
        """
        for found in _TOKENS.finditer(text):
            name = found[1] or found[2] or found[3]
            if name and name not in self._thresholds:
                raise at.refuse(
                    f"actor rule {rule_id!r}: threshold {name!r} is not declared under actors.thresholds"
                    f"{near(name, self._thresholds)}"
                )
        try:
            checked = self._checking.compile(text)
        except (RuntimeError, ValueError) as error:
            raise at.refuse(f"actor rule {rule_id!r}: 'when' does not compile: {explain(str(error))}") from error
        if checked.return_type() != cel.Type.BOOL:
            name = checked.return_type().name()
            raise at.refuse(
                f"actor rule {rule_id!r}: 'when' must be true or false, and is {name}: compare it with something"
            )
        try:
            return self._env.compile(_TOKENS.sub(self._literal, text))
        except (RuntimeError, ValueError) as error:
            raise at.refuse(
                f'actor rule {rule_id!r}: a threshold is read by a computed name: write threshold["name"]'
            ) from error

    def first(self, texts: Sequence[str]) -> Any:
        """One expression in place of many: the number of the first condition that holds, -1 where none does; None if
        they are too deep together. It is an error where one of those before that errs."""
        text = "-1"
        for number, condition in reversed(list(enumerate(texts))):
            text = f"({_TOKENS.sub(self._literal, condition)}\n) ? {number} : ({text})"
        try:
            return self._env.compile(text)
        except (RuntimeError, ValueError):
            return None

    def activation(self, features: pb.ActorFeatures) -> Any:
        """What conditions are evaluated over."""
        return self._env.Activation({"actor": features})

    def _literal(self, found: re.Match[str]) -> str:
        name = found[1] or found[2] or found[3]
        return f"{float(self._thresholds[name])!r}" if name else found[0]
