"""Asks rooms how they are: their HTTP endpoints, all at once, each with a deadline. Silence is an answer."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

TIMEOUT_SECONDS = 2.0
#: Clocks further apart than this (seconds) make timings of a decision misleading.
CLOCK_SECONDS = 2.0
#: Of a metric by topic.
TOPIC_LABEL = "messaging_destination_name"
#: An answer that is longer is cut: no room says so much.
_MAX_BYTES = 4 * 1024 * 1024
#: Instances of one room that are asked.
_MAX_INSTANCES = 64
#: Of their own: a room that hangs holds one for some seconds, and must not keep anything else from running.
_THREADS = ThreadPoolExecutor(32, "rooms")
_T = TypeVar("_T")


class Endpoint(NamedTuple):
    """Where a room answers. ``address``: "host:port", empty where it is not known, and then ``why``."""

    room: str
    address: str
    why: str = ""


@dataclass
class Answer:
    """What one instance of a room said."""

    endpoint: Endpoint
    #: Why there is no answer; empty if there is one.
    fault: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    #: Seconds that its clock is ahead of ours, give or take half of what the answer took.
    ahead: float = 0.0
    took: float = 0.0
    #: When it was asked, monotonic seconds.
    at: float = 0.0

    @property
    def room(self) -> str:
        return self.endpoint.room

    @property
    def clock_is_off(self) -> bool:
        """Whether its clock differs from ours by more than CLOCK_SECONDS, however the answer's time is shared out."""
        return not self.fault and abs(self.ahead) - self.took / 2 > CLOCK_SECONDS

    def value(self, metric: str, **labels: str) -> float | None:
        """The sum of a metric's samples that have these labels; None if there is none. Names are Prometheus's."""
        found = [one.value for one in self.samples if one.name == metric and labels.items() <= one.labels.items()]
        return sum(found) if found else None

    def by(self, metric: str, label: str) -> dict[str, float]:
        """A metric's samples by one of their labels; of several the highest."""
        found: dict[str, float] = {}
        for one in self.samples:
            if one.name == metric:
                key = one.labels.get(label, "")
                found[key] = max(found.get(key, float("-inf")), one.value)
        return found


def named(rooms: Mapping[str, Sequence[str]]) -> list[Endpoint]:
    """The endpoints of rooms by name, each with its addresses."""
    return [Endpoint(room, address) for room, addresses in sorted(rooms.items()) for address in addresses]


async def ask(endpoints: Sequence[Endpoint], timeout: float = TIMEOUT_SECONDS) -> list[Answer]:
    """Ask every instance; an address that names several hosts is several instances."""
    resolved = await asyncio.gather(*(_resolved(endpoint, timeout) for endpoint in endpoints))
    return list(await asyncio.gather(*(_ask(one, timeout) for instances in resolved for one in instances)))


async def _resolved(endpoint: Endpoint, timeout: float) -> list[Endpoint]:
    try:
        return await _in_thread(3 * timeout, _instances, endpoint)
    except TimeoutError:
        return [Endpoint(endpoint.room, "", f"{endpoint.address} was not resolved in {3 * timeout:g} s")]


async def _ask(endpoint: Endpoint, timeout: float) -> Answer:
    if not endpoint.address:
        return Answer(endpoint, fault=endpoint.why or "its address is not known")
    try:
        return await _in_thread(3 * timeout, _fetch, endpoint, timeout)
    except TimeoutError:
        return Answer(endpoint, fault=f"no whole answer in {3 * timeout:g} s")


async def _in_thread(seconds: float, work: Callable[..., _T], *arguments: object) -> _T:
    """Raises TimeoutError; the thread ends by itself."""
    running = asyncio.get_running_loop().run_in_executor(_THREADS, partial(work, *arguments))
    return await asyncio.wait_for(running, seconds)


def _fetch(endpoint: Endpoint, timeout: float) -> Answer:
    began, wall = time.monotonic(), time.time()
    try:
        document = json.loads(_get(endpoint.address, "/status", timeout))
        if not isinstance(document, dict):
            raise ValueError("no document of a room")
        took = time.monotonic() - began
        samples = [
            sample
            for family in text_string_to_metric_families(_get(endpoint.address, "/metrics", timeout))
            for sample in family.samples
        ]
    except TimeoutError:
        return Answer(endpoint, fault=f"no answer in {timeout:g} s: it hangs, or is stopped")
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, TimeoutError):
            return Answer(endpoint, fault=f"no answer in {timeout:g} s: it hangs, or is stopped")
        said = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        return Answer(endpoint, fault=f"{said}: it is gone")
    except OSError as error:
        return Answer(endpoint, fault=f"{type(error).__name__}: it went away while it answered")
    except ValueError:
        return Answer(endpoint, fault="what answers there is no room of ours, or of another version")
    ahead = float(document.get("now", wall)) - (wall + took / 2)
    return Answer(endpoint, "", document, samples, ahead, took, began)


def _get(address: str, path: str, timeout: float) -> str:
    # No proxy: it is inside the cluster, or on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://{address}{path}", headers={"Accept": "text/plain"})
    body, ends = b"", time.monotonic() + timeout
    with opener.open(request, timeout=timeout) as response:
        # Piece by piece: each is waited for no longer than the timeout, and what trickles must end too.
        while len(body) < _MAX_BYTES and (piece := response.read1()):
            body += piece
            if time.monotonic() > ends:
                raise TimeoutError
    return body.decode()


def _instances(endpoint: Endpoint) -> list[Endpoint]:
    host, _, port = endpoint.address.rpartition(":")
    if not host:
        return [endpoint]
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        return [Endpoint(endpoint.room, "", f"{host} has no address ({error.strerror})")]
    addresses = sorted({str(entry[4][0]) for entry in found})[:_MAX_INSTANCES]
    return [Endpoint(endpoint.room, f"[{one}]:{port}" if ":" in one else f"{one}:{port}") for one in addresses]


def mend(why: str) -> str:
    """What mends a room that says why it is not ready."""
    if why.startswith("FUSE_TRIPPED"):
        return "`seawall dlq list` says what was set aside: mend or roll back, restart the room, `seawall dlq redrive`"
    if why.startswith(("NO_BANKS", "EMPTY_BANK", "BANK_MISSING")):
        return "`seawall banks stat`: pull or import the list again, or renew its card's `expires`"
    if why.startswith(("BROKER_UNAVAILABLE", "TOPIC_MISSING")):
        return "see whether Kafka is up; the room goes on by itself"
    return "look at its log; it says what mends it"
