"""The workload of a decoding worker; see `runtime.prefork`."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image

from seawall.runtime.decoding import messages, pixels
from seawall.runtime.decoding.decoder import in_process
from seawall.runtime.decoding.frames import Frame
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.unscannable import Reason, Unscannable

#: A file that all workers share, locked by the one that decodes a large picture; the system frees it with its holder.
_slot = -1


def prepare() -> None:
    """In the helper: import all that decoding would import on the way, while files may still be opened."""
    global _slot
    Image.init()
    # A thread of its own could outlast the request, and its stack counts against the memory.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    _slot = os.memfd_create("seawall-large-picture", os.MFD_CLOEXEC)
    pixels.large_slot = _one_process


def serve(connection: socket.socket, memory: mmap.mmap, config: dict[str, Any], begin: Callable[[], None]) -> None:
    """Decode one file after the other until the service closes the connection."""
    limits = DecodingSettings.model_validate(config)
    shared = np.frombuffer(memory, np.uint8)
    while message := _receive(connection):
        begin()
        request = messages.Request.decode(message)
        data = memory[: request.length]
        space = shared[messages.frames_begin(request.length) :]
        wanted = request.mode, request.min_side, request.declared
        frames = in_process(data, *wanted, request.most, limits, space)
        try:
            _answer(connection, frames, space)
        except Unscannable as error:
            connection.send(messages.refused(error))
        except MemoryError:
            connection.send(messages.refused(_too_much_memory()))
        except ConnectionError:
            # The service is gone.
            return
        except Exception as error:
            connection.send(messages.failed(error))


def _answer(connection: socket.socket, frames: Iterator[Frame], shared: pixels.Pixels) -> None:
    # One frame ahead, so that a still is one message: its frame is known to be the last.
    frame = next(frames, None)
    if frame is None:
        connection.send(messages.empty())
        return
    while frame is not None:
        fault: Exception | None = None
        following = None
        try:
            following = next(frames, None)
        except (Unscannable, MemoryError) as error:
            fault = error
        last = following is None and fault is None
        connection.send(messages.put_frame(frame, last, shared))
        if last or _receive(connection) != messages.NEXT:
            return
        if fault is not None:
            raise fault
        frame = following


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
