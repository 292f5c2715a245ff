"""One Apache Kafka broker as a child process, without containers.

A KRaft node that is broker and controller, bound to 127.0.0.1, with its data in one folder. It survives kill -9: a
start on the same folder takes up the same ports and the same log. Further brokers may join it: then every topic can
have copies, and the first stays the only controller.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from seawall.core.errors import Fatal
from seawall.local import kafka_jars

_HOST = "127.0.0.1"
_FORMAT_TIMEOUT_SECONDS = 60.0
_PROBE_INTERVAL_SECONDS = 0.05
_PROBE_TIMEOUT_SECONDS = 2.0
_LOG_TAIL_LINES = 5

#: Largest record batch any topic may allow, bytes: above the largest topic's own max.message.bytes.
MESSAGE_MAX_BYTES = 8 * 1024 * 1024

_PROPERTIES = """\
process.roles={roles}
node.id={node}
controller.quorum.voters=1@{host}:{controller_port}
listeners={listeners}
advertised.listeners=PLAINTEXT://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={log_dir}
auto.create.topics.enable=false
message.max.bytes={message_max_bytes}
replica.fetch.max.bytes={message_max_bytes}
default.replication.factor={copies}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={copies}
# Few partitions start faster.
offsets.topic.num.partitions=8
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor={copies}
share.coordinator.state.topic.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=2
group.initial.rebalance.delay.ms=0
# After kill -9 the node is refused until its old session ends; its own controller is in the same process.
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
# Small: this machine also runs every room.
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=2
background.threads=2
log.cleaner.dedupe.buffer.size=4194304
log.index.size.max.bytes=1048576
"""

# slf4j-simple writes to standard error, which goes to broker.log.
_LOGGING_FLAGS = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
    "-Djava.awt.headless=true",
)


class EmbeddedKafka:
    """A broker under ``data_dir`` (made if absent), owned by this process.

    Args:
        data_dir: its log, settings, ports and ``broker.log``.
        cache: where jars are kept between runs, ``$SEAWALL_HOME/cache``.
        port: client port; 0 keeps the folder's last one while it is free, else asks the OS.
        java: the Java to run it with; None finds one (``kafka_jars.find_java``).
        heap_mb: largest Java heap, MiB.
        quick_compiler: stop at Java's first compiler: half the CPU in the first minutes, since most of it is compiling.
            Turn it off for a broker that is loaded for hours.
        start_timeout: seconds until a broker that does not answer is Fatal.
        launcher: arguments put before Java's own, a program that becomes it (``supervisor.launcher``).
        node: its number in a cluster.
        joins: node 1 of that cluster, which has been started; None: it is node 1.
        copies: of internal topics, and of those that do not say; with three or more, a record is acknowledged by two.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        cache: Path,
        port: int = 0,
        java: Path | None = None,
        heap_mb: int = 512,
        quick_compiler: bool = True,
        start_timeout: float = 60.0,
        launcher: Sequence[str] = (),
        node: int = 1,
        joins: EmbeddedKafka | None = None,
        copies: int = 1,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._cache = cache.absolute()
        self._wanted_port = port
        self._java = java
        self._heap_mb = heap_mb
        self._quick_compiler = quick_compiler
        self._start_timeout = start_timeout
        self._launcher = tuple(launcher)
        self._node = node
        self._joins = joins
        self._copies = copies
        self._port = 0
        self._controller_port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """``host:port`` for clients, once started."""
        if not self._port:
            raise RuntimeError("the broker was never started, so it has no port yet")
        return f"{_HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log_path(self) -> Path:
        """What the broker said."""
        return self._data_dir / "broker.log"

    def start(self) -> None:
        """Fetch, format, start as needed; return once the broker serves clients.

        Blocks for seconds (the first time also for the jars). Raises Fatal, with the mend, when it cannot.
        """
        if self.pid is not None:
            return
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._refuse_second_broker()
        java = self._java or kafka_jars.find_java()
        classpath = os.pathsep.join(str(jar) for jar in kafka_jars.ensure_jars(self._cache))
        self._port, self._controller_port = self._choose_ports()
        properties = self._data_dir / "server.properties"
        properties.write_text(self._properties(), encoding="utf-8")
        with self.log_path.open("ab") as log:
            self._format(java, classpath, properties, log)
            self._process = subprocess.Popen(
                [*self._launcher, str(java), *self._flags(), "-cp", classpath, "kafka.Kafka", str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._data_dir,
                # Ctrl-C in a terminal must not stop the broker before the rooms that still commit to it.
                start_new_session=True,
            )
        self._pid_path.write_text(str(self._process.pid), encoding="utf-8")
        self._await_ready(self._process)

    def stop(self, timeout: float = 15.0) -> None:
        """Ask the broker to stop (SIGTERM); end it (SIGKILL) if it has not within ``timeout`` seconds."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._reap()

    def kill(self) -> None:
        """kill -9, as a fault would."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._reap()

    def suspend(self) -> None:
        """Stop the broker's clock (SIGSTOP): it holds its connections and answers nothing."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended broker go on (SIGCONT)."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGCONT)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None
        self._pid_path.unlink(missing_ok=True)

    @property
    def _pid_path(self) -> Path:
        return self._data_dir / "broker.pid"

    def _refuse_second_broker(self) -> None:
        """A broker whose starter was killed runs on; two on one folder would be refused by Kafka with less grace."""
        try:
            pid = int(self._pid_path.read_text(encoding="utf-8"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return
        if str(self._data_dir / "server.properties").encode() in command:
            raise Fatal(
                "BROKER_ALREADY_RUNS",
                f"process {pid} already runs a broker on {self._data_dir}: stop it (kill {pid}), then start again",
            )

    def _choose_ports(self) -> tuple[int, int]:
        """Client and controller port: the folder's last ones where free (clients reconnect to them), else fresh."""
        path = self._data_dir / "ports.json"
        try:
            last = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            last = {}
        wanted = self._wanted_port or int(last.get("client", 0))
        with socket.socket() as client, socket.socket() as controller:
            client_port = _bind(client, wanted)
            if self._wanted_port and client_port != self._wanted_port:
                raise Fatal(
                    "PORT_TAKEN",
                    f"port {self._wanted_port} on {_HOST} is in use: stop what listens there, or set port to 0",
                )
            ports = client_port, _bind(controller, int(last.get("controller", 0)))
        path.write_text(json.dumps({"client": ports[0], "controller": ports[1]}), encoding="utf-8")
        return ports

    def _properties(self) -> str:
        controller_port = (self._joins or self)._controller_port
        listeners = f"PLAINTEXT://{_HOST}:{self._port}"
        if self._joins is None:
            listeners += f",CONTROLLER://{_HOST}:{controller_port}"
        return _PROPERTIES.format(
            host=_HOST,
            node=self._node,
            roles="broker" if self._joins else "broker,controller",
            listeners=listeners,
            port=self._port,
            controller_port=controller_port,
            log_dir=self._data_dir / "log",
            message_max_bytes=MESSAGE_MAX_BYTES,
            copies=self._copies,
            in_sync=2 if self._copies >= 3 else 1,
        )

    def _flags(self) -> Sequence[str]:
        # Serial collection: the broker's garbage is small and short-lived, and the cores belong to the rooms.
        memory = ("-Xms128m", f"-Xmx{self._heap_mb}m", "-XX:+UseSerialGC")
        compiler = ("-XX:TieredStopAtLevel=1",) if self._quick_compiler else ()
        # A request that comes alone finds the processor's address caches (TLB) cold: 7 % less CPU with huge pages.
        pages = ("-XX:+UseTransparentHugePages",) if sys.platform == "linux" else ()
        return (*memory, *pages, *compiler, *_LOGGING_FLAGS)

    def _format(self, java: Path, classpath: str, properties: Path, log: IO[bytes]) -> None:
        """Write the storage's identity, once. ``--ignore-formatted`` makes a start cut short here harmless."""
        if (self._data_dir / "log" / "meta.properties").exists():
            return
        cluster_id_path = self._data_dir / "cluster.id"
        if not cluster_id_path.exists():
            joined = self._joins and (self._joins._data_dir / "cluster.id").read_text(encoding="utf-8")
            cluster_id_path.write_text(joined or _random_uuid(), encoding="utf-8")
        cluster_id = cluster_id_path.read_text(encoding="utf-8")
        command = [
            str(java),
            "-Xmx128m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            *_LOGGING_FLAGS,
            "-cp",
            classpath,
        ]
        command += ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster_id, "-c", str(properties)]
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=_FORMAT_TIMEOUT_SECONDS, check=False
        )
        if result.returncode != 0:
            raise self._fatal("BROKER_FORMAT_FAILED", "could not prepare its folder")

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_timeout
        while self._node not in _members(self._port):
            if process.poll() is not None:
                self._reap()
                raise self._fatal("BROKER_EXITED", "stopped while starting")
            if time.monotonic() > deadline:
                self.kill()
                raise self._fatal("BROKER_NOT_READY", f"did not answer within {self._start_timeout:.0f} s")
            time.sleep(_PROBE_INTERVAL_SECONDS)

    def _fatal(self, reason: str, what: str) -> Fatal:
        try:
            tail = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        except FileNotFoundError:
            tail = []
        return Fatal(
            reason,
            f"the embedded Kafka broker {what}: see {self.log_path}, or remove {self._data_dir} to start afresh "
            f"(its records are lost). Last lines: {' | '.join(tail) or 'none'}",
        )


def _bind(sock: socket.socket, wanted: int) -> int:
    """Bind to the wanted port if it is free, else to one of the OS's choice. Returns the port."""
    # As Java does: a port in TIME_WAIT counts as free, one that something listens on does not.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((_HOST, wanted))
    except OSError:
        sock.bind((_HOST, 0))
    return int(sock.getsockname()[1])


def _random_uuid() -> str:
    """A cluster id as Kafka writes them: 16 random bytes in URL-safe base64; a leading dash would read as an option."""
    while (text := base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")).startswith("-"):
        pass
    return text


def _members(port: int) -> set[int]:
    """The brokers that take requests, as the one at this port tells in answer to a Metadata request (v1, no topics)."""
    header = struct.pack(">hhih", 3, 1, 0, -1)
    request = header + struct.pack(">i", 0)
    members = set()
    try:
        with socket.create_connection((_HOST, port), timeout=_PROBE_TIMEOUT_SECONDS) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as reply:
                _size, _correlation, count = struct.unpack(">iii", reply.read(12))
                for _ in range(count):
                    node, host_bytes = struct.unpack(">ih", reply.read(6))
                    # Host, port, and the rack, which is not set: a length of -1.
                    reply.read(host_bytes + 4 + 2)
                    members.add(node)
    except (OSError, struct.error):
        return set()
    return members
