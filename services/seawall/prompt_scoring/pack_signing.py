"""Signatures of term packs: Ed25519, with Tink keysets, so that keys can be rotated.

``pack.sig`` beside the card signs the pack's digest, which covers the card and every file it lists. A signed pack may
be replaced by another signed one while the service runs; a pinned one may not.
"""

from __future__ import annotations

import os
from pathlib import Path

import tink
from tink import json_proto_keyset_format, secret_key_access, signature

from seawall.core.errors import Fatal
from seawall.prompt_scoring.term_packs import TermPack

SIGNATURE_FILE = "pack.sig"
#: What is signed begins with this, so that a signature of ours is never one of anything else.
_CONTEXT = b"seawall.term_pack.v1\n"
_MAX_SIGNATURE_BYTES = 1024

signature.register()


class Verifier:
    """Knows the public keys that may sign packs."""

    def __init__(self, keyset: Path) -> None:
        """Raises Fatal("BAD_PACK_KEYS") unless the file is a Tink JSON keyset of public signature keys."""
        try:
            handle = json_proto_keyset_format.parse_without_secret(keyset.read_text(encoding="utf-8"))
            self._verify: signature.PublicKeyVerify = handle.primitive(signature.PublicKeyVerify)
        except Exception as error:
            # Tink raises TinkError for most faults and lets those of its C++ core and JSON reader through as others.
            raise Fatal(
                "BAD_PACK_KEYS",
                f"pack_keys: {keyset.name} is no Tink JSON keyset of public signature keys ({type(error).__name__}): "
                "make a pair with seawall packs keys, and name the public one",
            ) from None

    def check(self, folder: Path, pack: TermPack) -> None:
        """Raise Fatal("TERM_PACK_BAD_SIGNATURE") unless ``folder`` holds a signature of ``pack`` by one of the keys."""
        try:
            with (folder / SIGNATURE_FILE).open("rb") as file:
                signed = file.read(_MAX_SIGNATURE_BYTES)
            self._verify.verify(signed, _CONTEXT + pack.digest)
        except OSError as error:
            detail = (
                f"{folder.name}/{SIGNATURE_FILE} cannot be read ({error.strerror}): sign the pack, or pin its sha256"
            )
            raise Fatal("TERM_PACK_BAD_SIGNATURE", detail) from None
        except tink.TinkError:
            detail = f"{folder.name}/{SIGNATURE_FILE} is not this pack's signature by a key of pack_keys: sign it anew"
            raise Fatal("TERM_PACK_BAD_SIGNATURE", detail) from None


def require(verifier: Verifier | None, folder: Path, pack: TermPack) -> None:
    """Raise Fatal unless ``pack`` is signed by a key that ``verifier`` knows."""
    if verifier is None:
        detail = f"packs: {folder.name} is neither pinned nor signed: give its sha256, or sign it and set pack_keys"
        raise Fatal("TERM_PACK_UNVERIFIED", detail)
    verifier.check(folder, pack)


def sign(folder: Path, pack: TermPack, keyset: Path) -> None:
    """Write ``pack.sig``. Raises Fatal("BAD_PACK_KEYS")."""
    try:
        text = keyset.read_text(encoding="utf-8")
        signer: signature.PublicKeySign = json_proto_keyset_format.parse(text, secret_key_access.TOKEN).primitive(
            signature.PublicKeySign
        )
    except Exception as error:
        raise Fatal(
            "BAD_PACK_KEYS",
            f"{keyset.name} is no Tink JSON keyset of private signature keys ({type(error).__name__}): "
            "make one with seawall packs keys",
        ) from None
    (folder / SIGNATURE_FILE).write_bytes(signer.sign(_CONTEXT + pack.digest))


def make_keys(private: Path, public: Path) -> None:
    """Write a new pair of keysets, the private one with mode 0600. Raises Fatal("KEYS_EXIST") rather than replace."""
    handle = tink.new_keyset_handle(signature.signature_key_templates.ED25519)
    secret = json_proto_keyset_format.serialize(handle, secret_key_access.TOKEN)
    try:
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secret)
        with public.open("x", encoding="utf-8") as file:
            file.write(json_proto_keyset_format.serialize_without_secret(handle.public_keyset_handle()))
    except FileExistsError as error:
        raise Fatal("KEYS_EXIST", f"{Path(error.filename).name} is there already: choose another name") from None
