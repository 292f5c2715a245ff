"""Credentials of an exchange: from a secret file or an environment variable, never from settings or arguments.

A command's arguments are in everybody's process list, and settings files end up in repositories. Both sources hold one
JSON object or ``key=value`` lines.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr

from seawall.core.errors import Fatal

_MAX_BYTES = 64 * 1024


Secrets = dict[str, SecretStr]


def load(
    name: str, keys: Sequence[str], *, optional: Sequence[str] = (), file: Path | None, variable: str | None
) -> Secrets:
    """The credentials of exchange ``name``.

    Args:
        keys, optional: which must and which may be there, no others.
        file: read first if given: ``key=value`` lines or JSON, not open to everybody.
        variable: the name of an environment variable with the same content.

    Raises:
        Fatal: ``NO_CREDENTIALS``, ``BAD_CREDENTIALS``; never with a value in it.
    """
    wanted = ", ".join(keys)
    if file is not None:
        text, where = _read(name, file), f"the file {file}"
    elif variable is not None:
        text, where = os.environ.get(variable, ""), f"the environment variable {variable}"
    else:
        text, where = "", "nothing"
    if not text.strip():
        raise Fatal(
            "NO_CREDENTIALS",
            f"exchange {name}: {where} holds no credentials: set credentials_file or credentials_variable to where "
            f"{wanted} stand as key=value lines",
        )
    found = _parse(text)
    if found is None:
        raise Fatal("BAD_CREDENTIALS", f"exchange {name}: {where} is neither key=value lines nor one JSON object")
    missing = [key for key in keys if not found.get(key)]
    if missing:
        raise Fatal("BAD_CREDENTIALS", f"exchange {name}: {where} lacks {', '.join(missing)}; it needs {wanted}")
    if found.keys() - {*keys, *optional}:
        allowed = ", ".join((*keys, *optional))
        raise Fatal("BAD_CREDENTIALS", f"exchange {name}: {where} holds more than {allowed}: leave these alone in it")
    return {key: SecretStr(value) for key, value in found.items()}


def _read(name: str, path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o007:
            raise Fatal(
                "BAD_CREDENTIALS", f"exchange {name}: {path} has mode {mode:04o}, open to everybody: chmod 0600 it"
            )
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise Fatal("BAD_CREDENTIALS", f"exchange {name}: {path} is too large to be credentials")
        return data.decode("utf-8")
    except FileNotFoundError:
        raise Fatal("NO_CREDENTIALS", f"exchange {name}: there is no file {path}: mount the secret there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal("BAD_CREDENTIALS", f"exchange {name}: {path} cannot be read ({type(error).__name__})") from None


def _parse(text: str) -> dict[str, str] | None:
    if text.lstrip().startswith("{"):
        try:
            document = json.loads(text)
        except ValueError:
            return None
        return {key: value for key, value in document.items() if isinstance(value, str)}
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            key, equals, value = line.partition("=")
            if not equals:
                return None
            found[key.strip()] = value.strip()
    return found
