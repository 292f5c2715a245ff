"""An encoder that remembers: the same texts come back in every evaluation, and encoding is what costs its time."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from seawall.prompt_scoring.encoder import Encoder, Vectors
from seawall.runtime.model_pack import ModelPack

#: Texts kept; 256 MB of vectors of 384 dimensions. What comes after is encoded and not kept.
_MAX_TEXTS = 150_000


class CachedEncoder(Encoder):
    """An ``Encoder`` whose first windows are kept in a file, by the digest of their text. No text is kept."""

    def __init__(self, pack: ModelPack, folder: Path, window_tokens: int = 128) -> None:
        """Args:
            folder: of the cache; the file is named by the pack's digest.

        Raises:
            Fatal: as Encoder does.
        """
        self._known: dict[bytes, Vectors] = {}
        super().__init__(pack, window_tokens)
        self._file = folder / f"{pack.digest.hex()[:16]}-{window_tokens}.npz"
        if self._file.is_file():
            with np.load(self._file, allow_pickle=False) as stored:
                rows = stored["vectors"].astype(np.float32)
                self._known = {key.tobytes(): rows[i : i + 1] for i, key in enumerate(stored["keys"])}
        self._stored = len(self._known)

    def embed(self, text: str, max_windows: int = 1) -> Vectors:
        """As ``Encoder.embed``; texts of one window are remembered."""
        key = hashlib.sha256(b"whole\0" + text.encode()).digest()
        if key in self._known:
            return self._known[key]
        vectors = super().embed(text, max_windows)
        return self._kept(key, vectors) if len(vectors) == 1 else vectors

    def embed_start(self, text: str) -> Vectors:
        """As ``Encoder.embed_start``, remembered."""
        key = hashlib.sha256(b"start\0" + text.encode()).digest()
        if key in self._known:
            return self._known[key]
        return self._kept(key, super().embed_start(text))

    def save(self) -> None:
        """Write what is new to the file, whole or not at all."""
        if len(self._known) == self._stored:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(f".{os.getpid()}.tmp")
        keys = np.frombuffer(b"".join(self._known), np.uint8).reshape(-1, 32)
        with temporary.open("wb") as out:
            np.savez(out, keys=keys, vectors=np.concatenate(list(self._known.values())))
        os.replace(temporary, self._file)
        self._stored = len(self._known)

    def _kept(self, key: bytes, vectors: Vectors) -> Vectors:
        if len(self._known) < _MAX_TEXTS:
            self._known[key] = vectors
        return vectors
