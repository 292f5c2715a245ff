"""Model packs: a folder with ``model.onnx``, a ``card.yaml`` that says what it is, and the files the card lists.

A pack is verified when it is loaded: the card against its schema, every listed file against its SHA-256, and the model
file for references that leave the folder. Nothing here runs a model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from seawall.core import strict_yaml
from seawall.core.errors import Fatal
from seawall.runtime import onnx_file
from seawall.runtime.model_card import (
    CARD_FILE,
    CARDS,
    MODEL_FILE,
    Card,
    ImageClassificationCard,
    TextEmbeddingCard,
)

__all__ = ["ImageClassificationCard", "ModelPack", "TextEmbeddingCard", "load", "write_card"]

_MAX_CARD_BYTES = 256 * 1024
#: Protobuf's own limit, and so that of a model in one file.
MAX_PACK_BYTES = 2 * 1024**3
_MEND = "install the pack again (`seawall models install demo` for the demo packs)"


@dataclass(frozen=True)
class ModelPack:
    """A verified pack."""

    name: str
    version: str
    #: The folder, symbolic links resolved.
    path: Path
    card: Card
    #: SHA-256 over the lines "<sha256>  <file name>\n" of the card and every listed file, sorted by name: 32 bytes. The
    #: same as ``sha256sum card.yaml model.onnx … | sort -k2 | sha256sum``.
    digest: bytes

    def file(self, name: str) -> Path:
        """The path of a listed file.

        Raises:
            Fatal: ``MODEL_FILE_NOT_LISTED``.
        """
        if name not in self.card.files:
            raise Fatal("MODEL_FILE_NOT_LISTED", f"{self.name}/{CARD_FILE}: files does not list {name}")
        return _inside(self.path, name)

    def read_card(self) -> bytes:
        """The card's bytes, as they are now.

        Raises:
            Fatal: ``MODEL_FILE_MISSING``.
        """
        return _read_card(self.path)

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, checked against the card again, so that what is used is what was verified.

        Raises:
            Fatal: ``MODEL_FILE_NOT_LISTED``, ``MODEL_FILE_MISSING``, ``MODEL_DIGEST_MISMATCH``.
        """
        path = self.file(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Fatal(
                "MODEL_FILE_MISSING", f"{self.name}/{name} cannot be read ({error.strerror}): {_MEND}"
            ) from error
        if hashlib.sha256(data).hexdigest() != self.card.files[name]:
            raise _mismatch(self.name, name)
        return data


def load(path: Path, task: str | None = None, max_bytes: int = MAX_PACK_BYTES) -> ModelPack:
    """Load and verify a pack.

    Args:
        path: the folder.
        task: the task it must have: "text-embedding" or "image-classification"; None accepts any.
        max_bytes: upper bound of the listed files' sizes together.

    Raises:
        Fatal: ``MODEL_PACK_MISSING``, ``BAD_MODEL_CARD`` (names the line, the field and the mend),
            ``WRONG_MODEL_TASK``, ``MODEL_FILE_MISSING``, ``MODEL_FILE_OUTSIDE``, ``MODEL_TOO_LARGE``,
            ``MODEL_DIGEST_MISMATCH`` or ``BAD_MODEL``.
    """
    if not path.is_dir():
        raise Fatal("MODEL_PACK_MISSING", f"no model pack folder named {path.name}: {_MEND}")
    folder = path.resolve()
    card_bytes = _read_card(folder)
    card = _parse_card(card_bytes, f"{path.name}/{CARD_FILE}")
    if task is not None and card.task != task:
        raise Fatal("WRONG_MODEL_TASK", f"{path.name}/{CARD_FILE}: task is {card.task}, this room runs {task}")
    _verify_files(folder, card, path.name, max_bytes)
    _check_model(folder, card, path.name)
    return ModelPack(card.name, card.version, folder, card, _digest(card_bytes, card.files))


def write_card(folder: Path, card: Mapping[str, Any], files: Sequence[str]) -> ModelPack:
    """Write a pack's card, with the digests of its files computed, and load the pack.

    Args:
        folder: holds the files already.
        card: the card's content but ``files``, as plain YAML types.
        files: the pack's files, relative to the folder; ``model.onnx`` among them.

    Raises:
        Fatal: as ``load``; the card is written only if it is valid.
    """
    digests = {}
    for name in sorted(files):
        with _inside(folder.resolve(), name).open("rb") as stream:
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    # width: one item a line, whatever its length, so that a diff of two cards reads well.
    text = yaml.safe_dump({**card, "files": digests}, sort_keys=False, allow_unicode=True, width=4096)
    _parse_card(text.encode(), f"{folder.name}/{CARD_FILE}")
    temporary = folder / f".{CARD_FILE}.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, folder / CARD_FILE)
    return load(folder)


def _read_card(folder: Path) -> bytes:
    target = _inside(folder, CARD_FILE)
    try:
        with target.open("rb") as stream:
            data = stream.read(_MAX_CARD_BYTES + 1)
    except OSError as error:
        detail = f"{folder.name}/{CARD_FILE} cannot be read ({error.strerror}): {_MEND}"
        raise Fatal("MODEL_FILE_MISSING", detail) from error
    if len(data) > _MAX_CARD_BYTES:
        raise Fatal("BAD_MODEL_CARD", f"{folder.name}/{CARD_FILE} is larger than {_MAX_CARD_BYTES} bytes: shorten it")
    return data


def _parse_card(data: bytes, where: str) -> Card:
    document = strict_yaml.parse(data, where, "BAD_MODEL_CARD")
    task = document.content.get("task")
    kind = CARDS.get(task) if isinstance(task, str) else None
    if kind is None:
        raise document.refuse(("task",), f"task must be one of {', '.join(sorted(CARDS))}")
    return document.validate(kind, "card")


def _verify_files(folder: Path, card: Card, name: str, max_bytes: int) -> None:
    targets = {file: _inside(folder, file) for file in sorted(card.files)}
    total = 0
    for file, target in targets.items():
        if not target.is_file():
            raise Fatal("MODEL_FILE_MISSING", f"{name}/{file} is listed in the card but missing: {_MEND}")
        total += target.stat().st_size
    if total > max_bytes:
        detail = f"{name} holds {total} bytes, more than the {max_bytes} allowed: raise the limit or quantise the model"
        raise Fatal("MODEL_TOO_LARGE", detail)
    for file, target in targets.items():
        with target.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != card.files[file]:
                raise _mismatch(name, file)


def _check_model(folder: Path, card: Card, name: str) -> None:
    found = onnx_file.references(_inside(folder, MODEL_FILE).read_bytes(), f"{name}/{MODEL_FILE}")
    for location in sorted(found.external_locations):
        path = PurePosixPath(location)
        if path.is_absolute() or ".." in path.parts or str(path) not in card.files:
            raise Fatal(
                "MODEL_FILE_OUTSIDE",
                f"{name}/{MODEL_FILE} keeps tensor data in a file that the card does not list: put it into the pack's "
                "folder and list it in files, or export the model as one file",
            )


def _inside(folder: Path, name: str) -> Path:
    """The resolved path of a file of the pack; links may lead anywhere inside the folder, never out of it."""
    target = (folder / name).resolve()
    if not target.is_relative_to(folder):
        raise Fatal("MODEL_FILE_OUTSIDE", f"{folder.name}/{name} leads out of the pack's folder: copy the file into it")
    return target


def _mismatch(pack: str, name: str) -> Fatal:
    return Fatal("MODEL_DIGEST_MISMATCH", f"{pack}/{name} is not the file whose SHA-256 the card gives: {_MEND}")


def _digest(card: bytes, files: Mapping[str, str]) -> bytes:
    digests = {**files, CARD_FILE: hashlib.sha256(card).hexdigest()}
    return hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()).digest()
