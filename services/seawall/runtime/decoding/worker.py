"""The workload of a decoding worker; see `runtime.prefork`."""

from __future__ import annotations

import fcntl
import importlib
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from PIL import AvifImagePlugin, Image

from seawall.runtime.decoding import messages, pixels, video
from seawall.runtime.decoding.decoder import MAX_MEASURED, Measure, in_process
from seawall.runtime.decoding.frames import Frame
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.unscannable import Reason, Unscannable

Item = TypeVar("Item")

#: What is measured of frames, if anything; made in the helper, so that what it loads is shared.
_measure: Measure | None = None
#: A file that all workers share, locked by the one that decodes a large picture; the system frees it with its holder.
_slot = -1


def prepare(config: dict[str, Any]) -> None:
    """In the helper: import all that decoding would import on the way, while files may still be opened."""
    global _slot, _measure
    if config["measure"]:
        module, _, name = config["measure"].partition(":")
        _measure = getattr(importlib.import_module(module), name)(config["options"])
    Image.init()
    video.prepare()
    # A thread of its own could outlast the request, and its stack counts against the memory.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    _slot = os.memfd_create("seawall-large-picture", os.MFD_CLOEXEC)
    pixels.large_slot = _one_process


def serve(connection: socket.socket, memory: mmap.mmap, config: dict[str, Any], begin: Callable[[], None]) -> None:
    """Decode one file after the other until the service closes the connection."""
    limits = DecodingSettings.model_validate(config["limits"])
    shared = np.frombuffer(memory, np.uint8)
    while message := _receive(connection):
        begin()
        request = messages.Request.decode(message)
        data = memory[: request.length]
        space = shared[messages.frames_begin(request.length) :]
        wanted = request.mode, request.min_side, request.declared
        # What is measured stays in the worker: only frames are decoded where the service will read them.
        into = space if request.argument is None else None
        frames = in_process(data, *wanted, request.most, limits, into)
        try:
            if request.argument is None:
                _answer(connection, frames, lambda frame, last: messages.put_frame(frame, last, space))  # noqa: B023
            else:
                _answer(connection, _measured(frames, request.argument), messages.put_measured)
        except Unscannable as error:
            connection.send(messages.refused(error))
        except MemoryError:
            connection.send(messages.refused(_too_much_memory()))
        except ConnectionError:
            # The service is gone.
            return
        except Exception as error:
            connection.send(messages.failed(error))


def _measured(frames: Iterator[Frame], argument: str) -> Iterator[bytes]:
    if _measure is None:
        raise ValueError("this decoder was made without a measure")
    for frame in frames:
        found = _measure(frame, argument)
        if len(found) > MAX_MEASURED:
            raise ValueError("a measure is too long")
        yield found


def _answer(connection: socket.socket, items: Iterator[Item], put: Callable[[Item, bool], bytes]) -> None:
    # One ahead, so that a still is one message: its frame is known to be the last.
    item = next(items, None)
    if item is None:
        connection.send(messages.empty())
        return
    while item is not None:
        fault: Exception | None = None
        following = None
        try:
            following = next(items, None)
        except (Unscannable, MemoryError) as error:
            fault = error
        last = following is None and fault is None
        connection.send(put(item, last))
        if last or _receive(connection) != messages.NEXT:
            return
        if fault is not None:
            raise fault
        item = following


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1024)
    except ConnectionError:
        return b""


@contextmanager
def _one_process() -> Iterator[None]:
    fcntl.lockf(_slot, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(_slot, fcntl.LOCK_UN)


def _too_much_memory() -> Unscannable:
    return Unscannable(
        Reason.TOO_MUCH_MEMORY,
        "decoding it takes more than decoding.memory_bytes: send it smaller, or in another format",
    )
