"""The hashing scorer over a content folder and a bank of stand-ins, in the test's own process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seawall.api.generation.v1 import generation_pb2
from seawall.api.perceptual_hashing.v1 import perceptual_hashing_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.perceptual_hashing import banks, scorer
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.bank_entries import Entry
from seawall.perceptual_hashing.settings import BankSettings, PerceptualHashingSettings
from seawall.runtime.decoding import DecodingSettings
from seawall.runtime.settings import ContentSettings
from tests.support import images

#: The pictures that the test bank lists, and one that it does not.
LISTED = ("chelsea", "coffee", "rocket")
SIZE = (600, 460)
UNLISTED = "camera"


def card(name: str, pipeline: Pipeline, radius: int = 31, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "source": "benign stand-ins",
        "version": "1",
        "category": f"stand-in of {name}",
        "pipeline": pipeline,
        "radius": radius,
        "licence": "CC0-1.0",
        **more,
    }


def original(name: str) -> bytes:
    return images.encode(images.photograph(name, SIZE), "PNG")


class Room:
    """The scorer over a content folder and a bank of stand-ins."""

    def __init__(self, root: Path, pipeline: Pipeline = "512", **options: Any) -> None:
        self.content = root / "content"
        self.content.mkdir()
        entries = [entry for name in LISTED for entry in banks.entries_of(name, original(name), pipeline)]
        self.bank = banks.write(root / "banks" / "demo", card("demo", pipeline), entries)
        # The process's tests decode in workers; here each test would start its own.
        options.setdefault("decoding", DecodingSettings(isolated=False))
        self.settings = PerceptualHashingSettings(
            banks=BankSettings(folder=root / "banks", store=root / "store", required=["demo"]),
            content=ContentSettings(allowed_prefixes=[self.content.as_uri() + "/"]),
            **options,
        )
        self.scorer = scorer.load(self.settings)

    def list_bank(self, name: str, entries: Iterable[Entry], pipeline: Pipeline = "512", **more: Any) -> None:
        """Have a bank more, and the scorer anew."""
        banks.write(self.settings.banks.folder / name, card(name, pipeline, **more), entries)
        self.scorer = scorer.load(self.settings)

    def item(self, data: bytes, media_type: str = "") -> perceptual_hashing_pb2.HashItem:
        digest = hashlib.sha256(data)
        path = self.content / digest.hexdigest()
        path.write_bytes(data)
        ref = generation_pb2.ContentRef(
            uri=path.as_uri(), sha256=digest.digest(), media_type=media_type, size_bytes=len(data)
        )
        return perceptual_hashing_pb2.HashItem(content=ref)

    def score(self, data: bytes, media_type: str = "") -> signal_pb2.ItemResult:
        return self.scorer.score(self.item(data, media_type))
