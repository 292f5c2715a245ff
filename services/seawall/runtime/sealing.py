"""Sealing: prompts and dead letters travel as AES-256-GCM ciphertext (Tink), bound to what they belong to.

Associated data of a prompt is "<generation_id>/<field>", of a dead letter "<topic>/<partition>/<offset>": a ciphertext
that is moved elsewhere does not open. A keyset may hold several keys: the primary seals, all of them open, which is
how keys are rotated.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Self

import tink
from tink import aead, json_proto_keyset_format, secret_key_access

from seawall.api.generation.v1 import generation_pb2
from seawall.core.errors import Fatal, Poison
from seawall.runtime.settings import SealingSettings

#: Associated data of a keyset that is itself wrapped by a key service.
_KEYSET_ASSOCIATED_DATA = b"seawall.sealing"

aead.register()


class Sealer:
    """Seals and opens with one keyset: Tink AEAD keys with a primary. Safe for threads."""

    def __init__(self, keyset: tink.KeysetHandle) -> None:
        info = keyset.keyset_info()
        self._aead = keyset.primitive(aead.Aead)
        self._key_id = str(info.primary_key_id)
        self._key_ids = frozenset(str(key.key_id) for key in info.key_info)

    @classmethod
    def from_settings(cls, settings: SealingSettings) -> Self:
        """The sealer of ``settings.keyset``, which is made first if it is absent and ``settings.create`` is on.

        Raises Fatal as `load` does.
        """
        return cls.load_or_create(settings.keyset) if settings.create else cls.load(settings.keyset)

    @classmethod
    def load(cls, path: Path, wrapping_key: aead.Aead | None = None) -> Self:
        """The sealer of the JSON keyset at ``path``.

        Args:
            wrapping_key: the remote key that the keyset itself is encrypted with (Tink's encrypted keyset format,
                associated data "seawall.sealing"): ``kms_client.get_aead(uri)``. None: the keyset is in clear, and then
                nobody but its owner and group may read the file.

        Raises Fatal("BAD_KEYSET") if the file cannot be read, is open to others, or holds no usable keyset.
        """
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise Fatal(
                "BAD_KEYSET", f"sealing.keyset: there is no file {path}: mount the keyset there, or set sealing.create"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise Fatal("BAD_KEYSET", f"sealing.keyset: {path} cannot be read ({type(error).__name__})") from None
        if wrapping_key is None and mode & 0o007:
            raise Fatal("BAD_KEYSET", f"sealing.keyset: {path} has mode {mode:04o}, open to everybody: chmod 0600 it")
        # Tink raises TinkError for most faults and lets those of its C++ core and of its JSON reader through as others.
        try:
            if wrapping_key is None:
                keyset = json_proto_keyset_format.parse(text, secret_key_access.TOKEN)
            else:
                keyset = json_proto_keyset_format.parse_encrypted(text, wrapping_key, _KEYSET_ASSOCIATED_DATA)
            return cls(keyset)
        except Exception as error:
            raise Fatal(
                "BAD_KEYSET",
                f"sealing.keyset: {path} is not a Tink JSON keyset of AEAD keys ({type(error).__name__}): "
                "restore it, or make one with tinkey create-keyset --key-template AES256_GCM",
            ) from None

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """The sealer of the keyset at ``path``, made with mode 0600 if it is absent.

        Of several processes that start at once, exactly one makes it and all use that one.
        """
        if not path.exists():
            _create(path)
        return cls.load(path)

    @property
    def key_id(self) -> str:
        """Id of the key that seals, decimal."""
        return self._key_id

    def seal(self, text: str, generation_id: str, field: str) -> generation_pb2.SealedText:
        """``text`` sealed for ``field`` ("prompt", "negative_prompt", "turns/0") of one generation.

        Raises Poison("NOT_UTF8") for text that UTF-8 cannot carry (lone surrogates).
        """
        try:
            plain = text.encode()
        except UnicodeEncodeError:
            raise Poison("NOT_UTF8", f"{field} holds a lone surrogate: send text that UTF-8 can carry") from None
        ciphertext = self._aead.encrypt(plain, f"{generation_id}/{field}".encode())
        return generation_pb2.SealedText(key_id=self._key_id, ciphertext=ciphertext)

    def open(self, sealed: generation_pb2.SealedText, generation_id: str, field: str) -> str:
        """The text of ``sealed``. Raises Poison("UNSEAL_FAILED") that names the field, never what it holds."""
        plain = self._open(sealed.key_id, sealed.ciphertext, f"{generation_id}/{field}".encode(), field)
        try:
            return plain.decode()
        except UnicodeDecodeError:
            raise Poison("UNSEAL_FAILED", f"{field} opened to bytes that are not UTF-8: seal text as UTF-8") from None

    def seal_bytes(self, plain: bytes, associated_data: str) -> tuple[str, bytes]:
        """``plain`` sealed under ``associated_data``: the key's id and the ciphertext."""
        return self._key_id, self._aead.encrypt(plain, associated_data.encode())

    def open_bytes(self, key_id: str, ciphertext: bytes, associated_data: str) -> bytes:
        """What `seal_bytes` sealed. Raises Poison("UNSEAL_FAILED")."""
        return self._open(key_id, ciphertext, associated_data.encode(), "sealed_value")

    def _open(self, key_id: str, ciphertext: bytes, associated_data: bytes, field: str) -> bytes:
        if key_id not in self._key_ids:
            # The id itself is not repeated: a sender may have put anything there.
            raise Poison(
                "UNSEAL_FAILED",
                f"{field}.key_id names no key of this keyset ({', '.join(sorted(self._key_ids))}): "
                "seal with one of them, or add the key",
            )
        try:
            plain: bytes = self._aead.decrypt(ciphertext, associated_data)
        except tink.TinkError:
            raise Poison(
                "UNSEAL_FAILED",
                f"{field}.ciphertext does not open: it was altered, cut, or sealed for another record or field",
            ) from None
        return plain


def _create(path: Path) -> None:
    """Write a new keyset to ``path`` unless another process was first."""
    keyset = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
    text = json_proto_keyset_format.serialize(keyset, secret_key_access.TOKEN)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, fails when the name is taken: the first keyset stays, and what it sealed opens.
            os.link(name, path)
        finally:
            os.unlink(name)
    except FileExistsError:
        return
    except OSError as error:
        raise Fatal("BAD_KEYSET", f"sealing.keyset: {path} cannot be made ({error.strerror})") from None
