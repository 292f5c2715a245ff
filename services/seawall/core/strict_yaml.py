"""YAML files that people write, read strictly: every refusal names the line, the field and the mend.

Refused besides what is not YAML: a key that stands twice, aliases, and whatever the schema does not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from seawall.core.errors import Fatal

Schema = TypeVar("Schema", bound=BaseModel)
#: Problems that one refusal names.
_MAX_PROBLEMS = 5


class Document(NamedTuple):
    """A parsed file. ``where`` and ``reason`` are those of its errors."""

    root: yaml.MappingNode
    content: Mapping[str, Any]
    where: str
    reason: str

    def line(self, location: Sequence[int | str]) -> int:
        """The line of the deepest part of a location that the file has."""
        node: yaml.Node = self.root
        line = 1
        for step in location:
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == str(step)), None)
                if found is None:
                    continue  # pydantic names the union's member in the location; the file has no such key
                line, node = found[0].start_mark.line + 1, found[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line + 1
        return line

    def refuse(self, location: Sequence[int | str], problem: str) -> Fatal:
        """The error to raise about a part of the file."""
        return Fatal(self.reason, f"{self.where} line {self.line(location)}: {problem}")

    def validate(self, schema: type[Schema], kind: str) -> Schema:
        """The content as ``schema``. ``kind`` is the file's own name in errors about the whole of it. Raises Fatal."""
        try:
            return schema.model_validate(self.content)
        except ValidationError as error:
            problems = [
                f"line {self.line(item['loc'])}: {'.'.join(map(str, item['loc'])) or kind}: {_message(item)}"
                for item in error.errors(include_url=False, include_input=False, include_context=False)[:_MAX_PROBLEMS]
            ]
            raise Fatal(self.reason, f"{self.where} " + "; ".join(problems)) from error


def parse(data: bytes, where: str, reason: str) -> Document:
    """Parse a file that holds a mapping.

    Args:
        where: the file's name in errors.
        reason: of the errors.

    Raises:
        Fatal: ``reason``.
    """
    try:
        text = data.decode("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise Fatal(reason, f"{where} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise Fatal(reason, f"{where}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from error
    except RecursionError as error:
        raise Fatal(reason, f"{where} is nested too deeply: a few levels are enough") from error
    if not isinstance(root, yaml.MappingNode):
        raise Fatal(reason, f"{where} line 1: must be a mapping of keys to values")
    _refuse_duplicates(root, where, reason)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise Fatal(reason, f"{where}: a value is not plain YAML (quote it)") from error
    return Document(root, content, where, reason)


def _message(item: Mapping[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key: correct its spelling or remove it"
    if item["type"] == "missing":
        return "missing: add it"
    return re.sub(r"^Value error, ", "", item["msg"])


def _refuse_duplicates(root: yaml.MappingNode, where: str, reason: str) -> None:
    pending: list[yaml.Node] = [root]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            raise Fatal(reason, f"{where} line {node.start_mark.line + 1}: write aliases (*name) out")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if key.value in keys:
                    raise Fatal(reason, f"{where} line {key.start_mark.line + 1}: a key stands twice")
                keys.add(key.value)
                pending.append(value)
        elif isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
