"""What the commands share: options that mean the same everywhere, and modules whose packages may be absent."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Annotated

import typer

from seawall.core.errors import Fatal

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]


def extra(module: str, what: str, name: str) -> ModuleType:
    """The module of a command that needs an extra of the distribution.

    Args:
        what: the sentence's subject, in the plural: "policies".
        name: the extra.

    Raises Fatal("EXTRA_MISSING") naming it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("seawall"):
            raise
        raise Fatal("EXTRA_MISSING", f"{what} need the package {error.name}: pip install 'seawall[{name}]'") from error
