"""What a platform should never send, and one day does: each case makes a submission and spoils its record."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from PIL import Image

from seawall.api.generation.v1 import generation_pb2
from seawall.local import photographs
from seawall.local.platform import Submission, Upload

Generation = generation_pb2.Generation
#: Changes a well-formed generation on its way out, or replaces its bytes. None: a record without a value.
Spoil = Callable[[Generation], bytes | None]

#: Claimed width and height of the bombs; decoded they would take 12 GiB.
BOMB_SIDE = 65_500
OVERSIZED_PROMPT_CHARACTERS = 400_000


class Case(NamedTuple):
    """A submission and what is done to its record; ``spoil`` None: the submission itself is at fault."""

    make: Callable[[], Submission]
    spoil: Spoil | None = None


def _output(data: bytes, media_type: str) -> Submission:
    return Submission(
        prompt="a photograph of a garden", uploads=[Upload(data, media_type, generation_pb2.NEXUS_MODEL_OUTPUT)]
    )


def _picture() -> Submission:
    return _output(*photographs.encode(photographs.fit(photographs.picture("coins"), 384), "jpeg"))


def _half(encoding: str) -> Submission:
    data, media_type = photographs.encode(photographs.fit(photographs.picture("coins"), 384), encoding)
    return _output(data[: len(data) // 2], media_type)


def _jpeg_bomb() -> bytes:
    data, _ = photographs.encode(Image.new("RGB", (64, 64), (120, 120, 120)), "jpeg")
    size = data.index(b"\xff\xc0") + 5  # after SOF0's marker, length and precision
    return data[:size] + struct.pack(">HH", BOMB_SIDE, BOMB_SIDE) + data[size + 4 :]


def _png_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(4096))), (b"IEND", b""))
    )


def _gif_bomb() -> bytes:
    size = struct.pack("<HH", BOMB_SIDE, BOMB_SIDE)
    return b"GIF89a" + size + bytes(3) + b"," + bytes(4) + size + bytes(1) + b"\x02\x02\x4c\x01\x00\x3b"


def _oversized_prompt() -> Submission:
    words = "a long row of quiet houses "
    return Submission(prompt=words * (OVERSIZED_PROMPT_CHARACTERS // len(words)))


def _plain() -> Submission:
    return Submission(prompt="a wooden bench in a park")


def _changed(change: Callable[[Generation], object]) -> Spoil:
    def spoil(generation: Generation) -> bytes:
        change(generation)
        return generation.SerializeToString()

    return spoil


def _field(name: str, value: object) -> Spoil:
    return _changed(lambda generation: setattr(generation, name, value))


def _item(name: str, value: object) -> Spoil:
    return _changed(lambda generation: setattr(generation.media[0], name, value))


def _content(name: str, value: object) -> Spoil:
    return _changed(lambda generation: setattr(generation.media[0].content, name, value))


def _uri(rewrite: Callable[[str], str]) -> Spoil:
    def change(generation: Generation) -> None:
        content = generation.media[0].content
        content.uri = rewrite(content.uri)

    return _changed(change)


def _alter_prompt(generation: Generation) -> None:
    sealed = generation.prompt.ciphertext
    generation.prompt.ciphertext = sealed[:-1] + bytes([sealed[-1] ^ 1])


CASES: Mapping[str, Case] = {
    # Media that cannot be read safely.
    "truncated_jpeg": Case(lambda: _half("jpeg")),
    "truncated_png": Case(lambda: _half("png")),
    "truncated_webp": Case(lambda: _half("webp")),
    "no_bytes": Case(lambda: _output(b"", "image/jpeg")),
    "text_as_jpeg": Case(lambda: _output(b"This is not a picture.\n" * 40, "image/jpeg")),
    "svg_as_png": Case(lambda: _output(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/png")),
    "random_bytes": Case(lambda: _output(random.Random(1).randbytes(4096), "image/webp")),
    "jpeg_bomb": Case(lambda: _output(_jpeg_bomb(), "image/jpeg")),
    "png_bomb": Case(lambda: _output(_png_bomb(), "image/png")),
    "gif_bomb": Case(lambda: _output(_gif_bomb(), "image/gif")),
    # References that do not lead to the bytes they promise.
    "wrong_digest": Case(_picture, _content("sha256", bytes(32))),
    "outside_allow_list": Case(_picture, _content("uri", "file:///etc/hostname")),
    "parent_folder": Case(_picture, _uri(lambda uri: uri.rsplit("/", 1)[0] + "/../keys/sealing.json")),
    "plain_http": Case(_picture, _content("uri", "http://127.0.0.1/picture.jpg")),
    "absent_object": Case(_picture, _uri(lambda uri: uri + ".absent")),
    # Prompts that cannot be scored.
    "oversized_prompt": Case(_oversized_prompt),
    "altered_prompt": Case(_plain, _changed(_alter_prompt)),
    "unknown_key": Case(_plain, _changed(lambda generation: setattr(generation.prompt, "key_id", "1"))),
    # Records that decode, and break the contract in one field. Proto3 enums are open: 99 travels.
    "unknown_modality": Case(_plain, _field("modality", 99)),
    "no_modality": Case(_plain, _field("modality", 0)),
    "no_attempt": Case(_plain, _field("attempt", 0)),
    "no_generation_id": Case(_plain, _field("generation_id", "")),
    "nothing_to_scan": Case(_plain, _changed(lambda generation: generation.ClearField("prompt"))),
    "unknown_nexus": Case(_picture, _item("nexus", 99)),
    "bad_item_id": Case(_picture, _item("item_id", "Output 0")),
    "repeated_item_id": Case(_picture, _changed(lambda generation: generation.media.append(generation.media[0]))),
    "short_digest": Case(_picture, _content("sha256", bytes(20))),
    # Bytes that are no generation.
    "random_record": Case(_plain, lambda _: random.Random(2).randbytes(300)),
    "truncated_record": Case(_plain, lambda generation: generation.SerializeToString()[:-5]),
    "json_text": Case(_plain, lambda _: b'{"generation_id": "example"}'),
    "empty_value": Case(_plain, lambda _: b""),
    "no_value": Case(_plain, lambda _: None),
}
