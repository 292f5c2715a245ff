"""Settings of the prompt_scoring service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from seawall.runtime.settings import (
    ByteCount,
    Group,
    RoomSettings,
    RpcServerSettings,
    SealingSettings,
    seawall_home,
)


class PackSettings(Group):
    """A term pack of the operator's: pinned, or signed."""

    # The pack's folder.
    path: Path
    # The pack's digest, 64 hex digits (`seawall packs check` prints it): any other pack is refused. Unset: the pack
    # must be signed by a key of pack_keys, and may then change while the service runs.
    sha256: str | None = Field(default=None, pattern=r"^[0-9A-Fa-f]{64}$")


class PolicyPromptSettings(Group):
    """An operator's own safety LLM behind an OpenAI-compatible endpoint. Prompts leave this process in clear: keep it
    on a host of yours."""

    # The server's base address, up to and with "/v1". Redirects are not followed and no proxy is used.
    url: str = Field(pattern=r"^https?://[^\s@?#]+$")
    # The model's name, as the server knows it.
    model: str = Field(min_length=1, max_length=256)
    # A text file: the policy that the model is to judge by. It is the system message.
    policy: Path
    # A file that holds the server's key; sent as a bearer token.
    api_key_file: Path | None = None
    # Ask only about prompts that terms detect, or about every one.
    ask: Literal["detected", "always"] = "detected"
    # From the first byte sent to the last one read, waiting for a place included.
    timeout_seconds: float = Field(default=5.0, gt=0, le=120, allow_inf_nan=False)
    # Requests at a time; more wait, within the timeout.
    max_concurrency: int = Field(default=4, ge=1, le=256)
    # A prompt and its negative prompt together; longer ones are UNSCANNABLE "TOO_LONG".
    max_prompt_bytes: ByteCount = 16 * 1024
    # Answers kept, by a keyed digest of the text. 0: none.
    cache_entries: int = Field(default=10_000, ge=0, le=1_000_000)


class PromptScoringSettings(RoomSettings):
    """The service that scores prompts."""

    rpc_server: RpcServerSettings = Field(default_factory=RpcServerSettings)
    sealing: SealingSettings = Field(default_factory=SealingSettings)

    # The sentence encoder: a model pack of task text-embedding.
    model: Path = Field(default_factory=lambda: seawall_home() / "models" / "minilm")
    # Sentences that prompts are compared with. Unset: those that ship with Seawall.
    anchors: Path | None = None
    # What turns the encoder's vectors into the block grade. Unset: the one that ships, for the demo encoder.
    head: Path | None = None
    # Classifiers besides: model packs of task text-classification.
    classifiers: list[Path] = Field(default_factory=list, max_length=8)
    # An operator's own safety LLM. Unset: none is asked.
    policy_prompt: PolicyPromptSettings | None = None
    # Use the term packs that ship with Seawall.
    bundled_packs: bool = True
    # Term packs besides those, as a list of {path, sha256}.
    packs: list[PackSettings] = Field(default_factory=list, max_length=256)
    # Tink JSON keyset of the public Ed25519 keys that may sign term packs (`seawall packs keys` makes a pair).
    pack_keys: Path | None = None
    # Look so often whether packs, the model or the anchors have changed, in seconds. What has changed is loaded beside
    # what serves, verified, and swapped in; what cannot be loaded is refused. 0: never look.
    reload_seconds: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    # So many of the last turns of a conversation are read with the prompt; 0: none.
    turns: int = Field(default=6, ge=0, le=16)

    # A prompt, its negative prompt and the turns before it together, as UTF-8; longer ones are UNSCANNABLE "TOO_LONG".
    max_prompt_bytes: ByteCount = 32 * 1024
    # A prompt is encoded in windows of so many tokens, and has at most so many of them; more are "TOO_LONG" as well.
    window_tokens: int = Field(default=128, ge=16, le=512)
    max_windows: int = Field(default=64, ge=1, le=1024)
    # Words on either side of two concepts that are encoded with them, and how many such stretches of a prompt.
    around_words: int = Field(default=4, ge=0, le=32)
    max_pairs: int = Field(default=4, ge=1, le=32)
    # Memory that RE2 may use for a set of patterns. A prompt that needs more is ERROR "MATCH_FAILED", never clean.
    re2_max_mem_bytes: ByteCount = 64 * 1024 * 1024
    # Results kept for prompts seen before, by a keyed digest of their text and the digests of packs and models; a
    # prompt that comes many times at once is scored once. 0: none.
    cache_entries: int = Field(default=4096, ge=0, le=1_000_000)
