"""A TCP line to a server that can hang or be cut, and be mended."""

from __future__ import annotations

import asyncio
import contextlib
import socket

ANSWERS, HANGS, GONE = "answers", "hangs", "is gone"


class Line:
    """The line to a server at a port of this machine. In the context it passes everything on, until it is turned."""

    def __init__(self, port: int) -> None:
        self._far_port = port
        self._passing = asyncio.Event()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        # Bound and never listening: while the line is cut, nobody else gets its port.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self._port: int = self._place.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Line:
        await self.turn(ANSWERS)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.turn(GONE)
        self._place.close()

    async def turn(self, state: str) -> None:
        """From now on the server answers; takes connections and passes nothing on; or is gone."""
        if state == ANSWERS:
            self._passing.set()
        else:
            self._passing.clear()
        if state != GONE and self._server is None:
            self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        if state == GONE and self._server is not None:
            self._server.close()
            self._server = None
            for pump in list(self._pumps):
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._far_port)
        for one in (self._pump(reader, far_writer), self._pump(far_reader, writer)):
            task = asyncio.create_task(one)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
