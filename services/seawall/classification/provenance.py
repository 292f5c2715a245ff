"""What a picture says of its own origin: its C2PA manifest as labels, because "made by a model" changes the report.

    c2pa_manifest       there is one
    c2pa_valid          its signature and its digests of the picture hold
    c2pa_trusted        and its signer is one of `provenance_anchors`
    c2pa_ai_generated   it says that a trained model made the picture, or a part of it
    c2pa_unreadable     the file cannot be searched for one, so nothing is known; the others are then left out

Each is 0 or 1. The absence of a manifest says nothing: it is lost whenever a picture is saved again. A manifest that is
not valid still counts as a claim: nobody falsely claims that a picture was generated without wanting something.

Nothing is fetched: no remote manifests, no revocation lists. Needs the extra `provenance`.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal
from seawall.runtime.decoding import Unscannable, inspect

#: Of IPTC's digital source types, those that name a trained model; the last part of their address.
_GENERATED: Final = frozenset({"trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"})
_VALID: Final = frozenset({"Valid", "Trusted"})


class Provenance:
    """Reads the labels. Safe for threads.

    Args:
        anchors: PEM file of certificates whose holders' signatures are trusted; None trusts nobody.
    """

    def __init__(self, anchors: Path | None = None) -> None:
        """Raises Fatal: ``EXTRA_MISSING``, or ``BAD_SETTINGS`` if the anchors are no certificates."""
        try:
            import c2pa
        except ModuleNotFoundError as error:
            raise Fatal("EXTRA_MISSING", "provenance needs c2pa-python: pip install 'seawall[provenance]'") from error
        self._c2pa = c2pa
        self._model = f"c2pa@{c2pa.sdk_version()}"
        self._settings: dict[str, Any] = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
        if anchors is not None:
            try:
                self._settings["trust"] = {"trust_anchors": anchors.read_text(encoding="ascii")}
            except (OSError, UnicodeDecodeError) as error:
                detail = f"provenance_anchors: {anchors.name} cannot be read as PEM"
                raise Fatal("BAD_SETTINGS", f"{detail}: check the path and the file") from error
        self._local = threading.local()
        try:
            self._context()
        except c2pa.C2paError as error:
            raise Fatal("BAD_SETTINGS", "provenance_anchors: no certificates that c2pa accepts") from error

    def __call__(self, data: bytes) -> list[signal_pb2.LabelScore]:
        """The labels of a file's manifest. Never raises for what the file holds."""
        return [
            signal_pb2.LabelScore(label=label, score=float(value), model=self._model)
            for label, value in self.labels(data).items()
        ]

    def labels(self, data: bytes) -> dict[str, bool]:
        """The labels of a file."""
        try:
            media_type = f"image/{inspect(data).type}"
            reader = self._c2pa.Reader.try_create(media_type, io.BytesIO(data), context=self._context())
            if reader is None:
                return dict.fromkeys(("c2pa_manifest", "c2pa_valid", "c2pa_trusted", "c2pa_ai_generated"), False)
            with reader:
                found = json.loads(reader.json())
        except (self._c2pa.C2paError, Unscannable, ValueError):
            return {"c2pa_unreadable": True}
        state = found.get("validation_state")
        return {
            "c2pa_manifest": True,
            "c2pa_valid": state in _VALID,
            "c2pa_trusted": state == "Trusted",
            "c2pa_ai_generated": any(kind.rsplit("/", 1)[-1] in _GENERATED for kind in _source_types(found)),
        }

    def _context(self) -> Any:
        context = getattr(self._local, "context", None)
        if context is None:
            context = self._local.context = self._c2pa.Context.from_dict(self._settings)
        return context


def _source_types(found: dict[str, Any]) -> Iterator[str]:
    """Every digital source type that any manifest of the file names, those of its ingredients included."""
    pending: list[Any] = [found.get("manifests")]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            kind = node.get("digitalSourceType")
            if isinstance(kind, str):
                yield kind
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
