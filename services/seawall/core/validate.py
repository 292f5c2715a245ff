"""What makes a record of the stream well formed. Rooms share this, so they set aside the same ones."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.core.errors import Poison

_MODALITIES = frozenset(generation_pb2.Modality.values()) - {generation_pb2.MODALITY_UNSPECIFIED}
_MEDIA_NEXUS = frozenset(
    {generation_pb2.NEXUS_UPLOADED_INPUT, generation_pb2.NEXUS_MODEL_OUTPUT, generation_pb2.NEXUS_TRAINING_DATA}
)
#: Media items of one generation; a larger set belongs in several records of one conversation.
MAX_MEDIA_ITEMS = 64
#: Earlier turns of a conversation that a record may carry.
MAX_TURNS = 16
#: A record may come compressed and yet be larger than what follows from it may be: the same generation as its next
#: attempt, and a decision that repeats its ids. Below the topic's max.message.bytes, with room for what is added.
MAX_GENERATION_BYTES = 1024 * 1024 - 16 * 1024


def parse_generation(value: bytes | None) -> generation_pb2.Generation:
    """Decode and check one value of generations.v1.

    Raises:
        Poison: UNDECODABLE, or the reason of the first malformed field; the detail names it and the mend.
    """
    if not value:
        raise Poison("UNDECODABLE", "the record has no value: send a seawall.api.generation.v1.Generation")
    if len(value) > MAX_GENERATION_BYTES:
        raise Poison(
            "TOO_LARGE",
            f"the value has {len(value)} bytes, at most {MAX_GENERATION_BYTES}: put media in the content store, and "
            "text of that length is no prompt",
        )
    try:
        generation = generation_pb2.Generation.FromString(value)
    except DecodeError as error:
        raise Poison("UNDECODABLE", "the value is not a seawall.api.generation.v1.Generation") from error
    check_generation(generation)
    return generation


def check_generation(generation: generation_pb2.Generation) -> None:
    """Raise Poison unless every field that a stage relies on is well formed."""
    if not identity.is_id(generation.generation_id):
        raise identity.bad_id("generation_id")
    if generation.attempt < 1:
        raise Poison("BAD_ATTEMPT", "attempt must be 1 or more: a platform's own record is attempt 1")
    if generation.modality not in _MODALITIES:
        raise Poison(
            "UNKNOWN_MODALITY", f"modality {generation.modality} is not known to this version: upgrade, or set it"
        )
    has_prompt = generation.HasField("prompt")
    if has_prompt and not generation.prompt.ciphertext:
        raise Poison("EMPTY_CIPHERTEXT", "prompt.ciphertext is empty: seal the text, or leave prompt unset")
    if generation.HasField("negative_prompt"):
        has_prompt = True
        if not generation.negative_prompt.ciphertext:
            raise Poison("EMPTY_CIPHERTEXT", "negative_prompt.ciphertext is empty: seal the text, or leave it unset")
    if turns := generation.turns:
        _check_turns(turns)
    if media := generation.media:
        _check_media(media)
    elif not has_prompt:
        raise Poison("NOTHING_TO_SCAN", "neither prompt nor media is set: send what was asked, or what was produced")


def _check_turns(turns: Sequence[generation_pb2.SealedText]) -> None:
    if len(turns) > MAX_TURNS:
        raise Poison("TOO_MANY_TURNS", f"turns has {len(turns)} texts: send the last {MAX_TURNS} at most")
    if any(not turn.ciphertext for turn in turns):
        raise Poison("EMPTY_CIPHERTEXT", "turns holds an empty ciphertext: seal the text, or leave the turn out")


def _check_media(media: Sequence[generation_pb2.MediaItem]) -> None:
    if len(media) > MAX_MEDIA_ITEMS:
        raise Poison(
            "TOO_MANY_ITEMS",
            f"media has {len(media)} items, at most {MAX_MEDIA_ITEMS}: send several records",
        )
    seen = set()
    for item in media:
        item_id, content = item.item_id, item.content
        identity.check_item_id("media.item_id", item_id)
        if item_id in seen:
            raise Poison("DUPLICATE_ITEM_ID", "two media items share an item_id: number them output/0, output/1, …")
        seen.add(item_id)
        if item.nexus not in _MEDIA_NEXUS:
            raise Poison("UNKNOWN_NEXUS", "media.nexus must say uploaded input, model output or training data")
        if not content.uri:
            raise Poison("NO_URI", "media.content.uri is empty: put the bytes in the content store first")
        if len(content.sha256) != 32:
            raise Poison("BAD_SHA256", "media.content.sha256 must be the 32 bytes of SHA-256 over the content")


def parse_join_record(value: bytes | None, partition: int) -> signal_pb2.Signal | control_pb2.Deadline:
    """Decode one value of signals.v1, read from this partition.

    Raises:
        Poison: UNDECODABLE, or WRONG_PARTITION if it speaks of a generation of another one.
    """
    try:
        record = control_pb2.JoinRecord.FromString(value or b"")
    except DecodeError as error:
        raise Poison("UNDECODABLE", "the value is not a seawall.api.control.v1.JoinRecord") from error
    kind = record.WhichOneof("record")
    if kind is None:
        raise Poison("UNDECODABLE", "the value is neither a signal nor a deadline this version knows")
    body = record.signal if kind == "signal" else record.deadline
    if body.generation_record.partition != partition:
        raise Poison("WRONG_PARTITION", "generation_record.partition is not the partition this was written to")
    return body


def generation_id_of(key: bytes | None, topic: str, partition: int, offset: int) -> str:
    """The id to report about a record whose value cannot be trusted: its key if that is a well-formed id."""
    text = (key or b"").decode("ascii", "replace")
    if identity.is_id(text):
        return text
    return identity.unkeyed_generation_id(topic, partition, offset)
