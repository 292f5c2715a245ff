"""The workload of a decoding worker; see `runtime.prefork`."""

from __future__ import annotations

import fcntl
import importlib
import mmap
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import numpy as np
from PIL import AvifImagePlugin, Image

from seawall.runtime.decoding import messages, pixels, video
from seawall.runtime.decoding.decoder import MAX_MEASURED, Measure, in_process
from seawall.runtime.decoding.frames import Frame
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.unscannable import Reason, Unscannable

Item = TypeVar("Item")

#: Answers that are given before the service is woken for them, where more files wait.
_ANSWERS: Final = 16

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


def serve(
    connection: socket.socket,
    memory: mmap.mmap,
    config: dict[str, Any],
    begin: Callable[[], None],
    ring: Callable[[], None],
) -> None:
    """Decode one file after the other until the service closes the connection."""
    limits = DecodingSettings.model_validate(config["limits"])
    shared = np.frombuffer(memory, np.uint8)
    service = _Service(connection, ring)
    while message := service.request():
        begin()
        request = messages.Request.decode(message)
        # A frame is worth waking for: there is more to do with it than to decode it.
        service.hurried = request.argument is None
        data = memory[request.begin : request.begin + request.length]
        end = request.begin + messages.place_bytes(limits)
        space = shared[messages.frames_begin(request.begin, request.length) : end]
        wanted = request.mode, request.min_side, request.declared
        # What is measured stays in the worker: only frames are decoded where the service will read them.
        into = space if request.argument is None else None
        frames = in_process(data, *wanted, request.most, limits, into)
        try:
            if request.argument is None:
                _answer(service, frames, lambda frame, last: messages.put_frame(frame, last, space))  # noqa: B023
            else:
                _answer(service, _measured(frames, request.argument), messages.put_measured)
        except Unscannable as error:
            service.say(messages.refused(error))
        except MemoryError:
            service.say(messages.refused(_too_much_memory()))
        except ConnectionError:
            # The service is gone.
            return
        except Exception as error:
            service.say(messages.failed(error))


class _Service:
    """What the service says. Requests may come while one is being answered, and wait for their turn."""

    def __init__(self, connection: socket.socket, ring: Callable[[], None]) -> None:
        self._connection = connection
        self._ring = ring
        #: At most as many as the service has places for.
        self._waiting: deque[bytes] = deque()
        #: Answers for which the bell has not rung.
        self._answers = 0
        #: Whether each answer to the present request is waited for.
        self.hurried = True

    def request(self) -> bytes:
        """The next; empty: the service is gone."""
        return self._waiting.popleft() if self._waiting else self._receive()

    def wish(self) -> bytes:
        """NEXT or STOP, of the request that is being answered; empty: the service is gone."""
        while (message := self._receive()) not in (messages.NEXT, messages.STOP, b""):
            self._waiting.append(message)
        return message

    def say(self, message: bytes, *, last: bool = True) -> None:
        """Answer the request, for the last time or not. Raises ConnectionError if the service is gone."""
        patient = last and not self.hurried and self._busy()
        self._connection.send(message)
        self._answers += 1
        if not patient or self._answers >= _ANSWERS:
            self._answers = 0
            self._ring()

    def _busy(self) -> bool:
        """Whether another request waits."""
        if not self._waiting:
            with suppress(BlockingIOError):
                self._waiting.append(self._receive(socket.MSG_DONTWAIT))
        return bool(self._waiting)

    def _receive(self, flags: int = 0) -> bytes:
        try:
            return self._connection.recv(1024, flags)
        except ConnectionError:
            return b""


def _measured(frames: Iterator[Frame], argument: str) -> Iterator[bytes]:
    if _measure is None:
        raise ValueError("this decoder was made without a measure")
    for frame in frames:
        found = _measure(frame, argument)
        if len(found) > MAX_MEASURED:
            raise ValueError("a measure is too long")
        yield found


def _answer(service: _Service, items: Iterator[Item], put: Callable[[Item, bool], bytes]) -> None:
    # One ahead, so that a still is one message: its frame is known to be the last.
    item = next(items, None)
    if item is None:
        service.say(messages.empty())
        return
    while item is not None:
        fault: Exception | None = None
        following = None
        try:
            following = next(items, None)
        except (Unscannable, MemoryError) as error:
            # Without the frames of the decoder that its traceback holds, and with them pixels.
            fault = error.with_traceback(None)
        last = following is None and fault is None
        service.say(put(item, last), last=last)
        if last or service.wish() != messages.NEXT:
            return
        if fault is not None:
            try:
                raise fault
            finally:
                # Its traceback holds this frame, which would hold it, and the last item, until garbage is collected.
                del fault
        item = following


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
