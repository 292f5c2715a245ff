"""Settings: one typed, commented class a room, from the environment and an optional YAML file.

    SEAWALL_<FIELD>__<SUBFIELD>=value      environment; wins over the file; lists and maps are JSON
    SEAWALL_CONFIG=/path/to/seawall.yaml   the same keys, at the top level or below a room's name (which wins)
    SEAWALL_HOME=/path                     where local state lives; ~/.seawall

A key that the file should not have is refused. No error ever repeats a value: it may be a secret.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from seawall.core.errors import Fatal
from seawall.runtime import cpus

ENV_PREFIX = "SEAWALL_"

#: Processes that `seawall run ROOM` can start; each may have a section of its own in the settings file.
ROOMS = (
    "prompt_scoring",
    "perceptual_hashing",
    "classification",
    "prompt_scoring.relay",
    "perceptual_hashing.relay",
    "perceptual_hashing.retroactive",
    "classification.relay",
    "aggregator",
    "gate",
    "actor_history",
    "enforcement",
    "casework",
    "ledger",
    "console",
    "local",
    # No process of its own: `seawall banks pull`.
    "exchanges",
)

Milliseconds = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ByteCount = Annotated[int, Field(gt=0)]


def seawall_home() -> Path:
    """The folder of local state: $SEAWALL_HOME, else ~/.seawall. It need not exist yet."""
    configured = os.environ.get("SEAWALL_HOME")
    return Path(configured).expanduser().absolute() if configured else Path.home() / ".seawall"


class Group(BaseModel):
    """A group of settings that several rooms share. Frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class KafkaSettings(Group):
    """How to reach Kafka, and how its clients behave."""

    # "host:port", several separated by commas.
    bootstrap_servers: str = Field(default="127.0.0.1:9092", min_length=1)
    # Put before every topic name and consumer group: a lane. "bulk." gives bulk.generations.v1.
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    # Put before the client ids that the broker's quotas and logs show.
    client_id: str = Field(default="seawall", min_length=1)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    # PEM file of the authorities that may sign the broker's certificate; unset: the system's.
    ssl_cafile: Path | None = None
    # PEM files of our own certificate and key, for mutual TLS; both or none.
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_key_password: SecretStr | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None

    # Static membership id, unique within the group: a restart inside the session keeps its partitions. None: dynamic.
    instance: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,128}$")
    # A member that has sent no heartbeat for so long has lost its partitions.
    session_timeout_ms: Milliseconds = 6_000
    # At most a third of the session timeout, so that two may be lost.
    heartbeat_interval_ms: Milliseconds = 1_500
    # A member that has not polled for so long leaves its group. The relay polls while it waits, so it may be short.
    max_poll_interval_ms: Milliseconds = 60_000
    # How long a rebalance waits for members to commit and rejoin.
    rebalance_timeout_ms: Milliseconds = 10_000

    # One request to the broker; after it the client reconnects and tries again.
    request_timeout_ms: Milliseconds = 10_000
    # Pause between attempts.
    retry_backoff_ms: Milliseconds = 100
    # How long `send` keeps trying before it gives up with Retryable.
    delivery_timeout_ms: Milliseconds = 30_000
    # Topic metadata older than so is asked for again: bounds how late a leader change is noticed when idle.
    metadata_max_age_ms: Milliseconds = 60_000

    # How long an idle partition waits for more records before its batch goes. 0: at once, and what comes while a batch
    # is on its way joins the next, so batches grow with the load all the same.
    linger_ms: int = Field(default=0, ge=0)
    # Upper bound of one partition's batch.
    max_batch_bytes: ByteCount = 256 * 1024
    # Upper bound of a produce request, and so of one record. Topics must accept as much (max.message.bytes).
    max_request_bytes: ByteCount = 4 * 1024 * 1024
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "zstd"

    # A fetch returns when fetch_min_bytes are there or fetch_max_wait_ms have passed. A partition that is not part of
    # the fetch on its way (it was full or held back) waits for that one's end, so this also bounds a stall.
    fetch_min_bytes: ByteCount = 1
    fetch_max_wait_ms: Milliseconds = 250
    # Upper bounds of a fetch, in all and per partition: they bound the consumer's memory.
    fetch_max_bytes: ByteCount = 16 * 1024 * 1024
    max_partition_fetch_bytes: ByteCount = 1024 * 1024

    @model_validator(mode="after")
    def _consistent(self) -> KafkaSettings:
        if self.heartbeat_interval_ms * 3 > self.session_timeout_ms:
            raise ValueError("heartbeat_interval_ms must be at most a third of session_timeout_ms: lower it")
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(f"security_protocol {self.security_protocol} needs sasl_username and sasl_password")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile belong together: set both or none")
        return self


def _default_prefixes() -> list[str]:
    return [(seawall_home() / "content").as_uri() + "/"]


class ContentSettings(Group):
    """Where media may be read from, and how much of it."""

    # A ContentRef must lie below one of these; each ends in "/": "file:///…/", "s3://bucket/…/", "gs://…/", "az://…/".
    allowed_prefixes: list[str] = Field(default_factory=_default_prefixes, min_length=1)
    # Where `put` writes: one of the prefixes; unset: the first of them.
    write_prefix: str | None = None
    # A larger object is refused before it is read.
    max_bytes: ByteCount = 64 * 1024 * 1024
    # How long one read or write of an object store may take.
    timeout_seconds: Seconds = 10.0
    # Options handed to the object store's client as they are (region, endpoint, credentials): see obstore's names.
    # Most deployments leave it empty and let the workload identity speak.
    store_options: dict[str, SecretStr] = Field(default_factory=dict)

    @field_validator("allowed_prefixes")
    @classmethod
    def _prefixes(cls, prefixes: list[str]) -> list[str]:
        for prefix in prefixes:
            if prefix.startswith(("http://", "https://")):
                raise ValueError("plain http(s) is never fetched: name a file://, s3://, gs:// or az:// prefix")
            if not prefix.startswith(("file:///", "s3://", "gs://", "az://")):
                raise ValueError("a prefix must begin with file:///, s3://, gs:// or az://")
            if not prefix.endswith("/"):
                raise ValueError('a prefix must end in "/", else "…/media" would also allow "…/media-private"')
            if ".." in prefix.split("/"):
                raise ValueError('a prefix must not contain ".."')
        return prefixes

    @model_validator(mode="after")
    def _writable(self) -> ContentSettings:
        if self.write_prefix is not None and not self.write_prefix.startswith(tuple(self.allowed_prefixes)):
            raise ValueError("write_prefix must lie below one of allowed_prefixes, else what is put cannot be read")
        return self


class SealingSettings(Group):
    """The keyset that seals prompts and dead letters."""

    # A Tink JSON keyset of AES-256-GCM keys, readable by its owner alone.
    keyset: Path = Field(default_factory=lambda: seawall_home() / "keys" / "sealing.json")
    # Make the keyset if it is absent. Off in production: a room with a keyset of its own could open nothing.
    create: bool = True


class RpcServerSettings(Group):
    """A gRPC service."""

    # Address to listen on; "0.0.0.0" or "[::]" for every interface.
    host: str = Field(default="127.0.0.1", min_length=1)
    # 0: the system chooses; the bound port is printed and, if set, written to port_file.
    port: int = Field(default=0, ge=0, le=65535)
    # A Unix socket instead of host and port.
    uds: Path | None = None
    # The bound port is written here once the service is ready, and the file removed when it stops.
    port_file: Path | None = None
    # Threads that score; as many as the CPUs that affinity and the container's quota allow. Each may hold two items'
    # media in memory, or small ones of 2 MB in all and one more, and has a decoding process where a stage decodes.
    workers: int = Field(default_factory=lambda: min(cpus.available(), 256), ge=1, le=256)
    # Batches in progress or waiting; one more is answered RESOURCE_EXHAUSTED at once. The limit adapts below it.
    max_concurrent_rpcs: int = Field(default=16, ge=1)
    # Items of one batch; more are INVALID_ARGUMENT.
    max_items: int = Field(default=256, ge=1)
    # Used when a caller sets no deadline.
    default_timeout_seconds: Seconds = 10.0
    # The adaptive limit falls while a batch waits longer than this for its first item to start.
    queue_target_seconds: Seconds = 1.0
    # A worker on one item for so long is stuck; with all of them stuck, health says NOT_SERVING.
    stuck_seconds: Seconds = 30.0
    # After SIGTERM: how long health says NOT_SERVING before new calls are refused, so that balancers turn away.
    linger_seconds: float = Field(default=0.25, ge=0, allow_inf_nan=False)
    # After SIGTERM: how long calls in progress may take to end.
    drain_seconds: Seconds = 10.0
    max_message_bytes: ByteCount = 16 * 1024 * 1024
    # PEM files. Certificate and key: TLS. With client_ca as well: callers must show a certificate it signed.
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    @model_validator(mode="after")
    def _tls(self) -> RpcServerSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: set both or none")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self


class RpcClientSettings(Group):
    """A client of a gRPC service."""

    # "host:port", "dns:///service.namespace:50051" (every address it resolves to is used) or "unix:/path".
    target: str = Field(default="127.0.0.1:50051", min_length=1)
    # Upper bound of one call; the event's own budget may be shorter.
    timeout_seconds: Seconds = 5.0
    # Attempts inside one call when a server is UNAVAILABLE, the first included. gRPC allows at most 5. The relay tries
    # again by itself, and each attempt here is another server that one deadly item may take with it.
    max_attempts: int = Field(default=1, ge=1, le=5)
    # Longest pause between reconnections: a service that is back waits so long for its first call.
    max_reconnect_backoff_seconds: Seconds = 0.3
    # An idle connection is pinged so often, and given up when a ping stays unanswered for as long as the second.
    keepalive_seconds: Seconds = 20.0
    keepalive_timeout_seconds: Seconds = 5.0
    max_message_bytes: ByteCount = 16 * 1024 * 1024
    # PEM file of the authorities that may sign the server's certificate: TLS. Unset: plain text.
    tls_ca: Path | None = None
    # PEM files of our own certificate and key, for mutual TLS; both or none.
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    # The name in the server's certificate, if the target does not say it.
    tls_server_name: str | None = None

    @model_validator(mode="after")
    def _tls(self) -> RpcClientSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: set both or none")
        if self.tls_certificate is not None and self.tls_ca is None:
            raise ValueError("tls_certificate needs tls_ca")
        return self


class TelemetrySettings(Group):
    """Logs, spans and metrics. None of them may slow or stop the work: what does not fit is dropped and counted."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    # An OTLP/gRPC collector: "http://collector:4317". Unset: spans and metrics are not sent. Needs the extra `otlp`.
    otlp_endpoint: str | None = None
    # Longest time one export may take.
    export_timeout_seconds: Seconds = 5.0
    # Spans as JSON lines, for a machine without a collector. One file a process.
    spans_file: Path | None = None
    # The file is turned over to <name>.1 at this size: twice as much is the most it takes.
    spans_file_max_bytes: ByteCount = 32 * 1024 * 1024
    # Batches that get a span, so many a second; those that fail get one always. A span is one in eleven of the function
    # calls that carry a batch of one. Decisions have traces of their own: see the aggregator's `traces`.
    batch_spans_per_second: float = Field(default=5.0, ge=0)
    # Spans that wait for export; more are dropped and counted.
    span_queue_size: int = Field(default=4096, ge=64)
    # Metrics are exported so often.
    metrics_interval_seconds: Seconds = 15.0
    # The room's own HTTP endpoint, "host:port" (port 0: any): /metrics for Prometheus, /status, /ready. Unset: none. It
    # asks nobody who they are: keep it inside the cluster's network.
    http_listen: str | None = Field(default=None, pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")
    # The bound "host:port" is written here, and the file removed when the room stops.
    http_port_file: Path | None = None


#: Groups that any room may have; at the top level of the file they are allowed for every room.
SHARED_GROUPS: Mapping[str, type[Group]] = {
    "kafka": KafkaSettings,
    "content": ContentSettings,
    "sealing": SealingSettings,
    "rpc_server": RpcServerSettings,
    "rpc_client": RpcClientSettings,
    "telemetry": TelemetrySettings,
}


class RoomSettings(BaseSettings):
    """Base of every room's settings. A room adds the shared groups it needs, under their names in SHARED_GROUPS."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        nested_model_default_partial_update=True,
    )

    # Names this process in signals, dead letters, logs and spans. In Kubernetes: the pod's name.
    instance: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}", pattern=r"^[A-Za-z0-9._-]{1,128}$"
    )
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)


Settings = TypeVar("Settings", bound=RoomSettings)


def load_settings(cls: type[Settings], room: str) -> Settings:
    """The settings of ``room`` from the environment over the file named by SEAWALL_CONFIG.

    Raises Fatal("BAD_SETTINGS") that names each field and its mend, never a value.
    """
    path = os.environ.get(f"{ENV_PREFIX}CONFIG")
    values = _from_file(cls, room, Path(path)) if path else {}
    try:
        return cls(**_merge(values, EnvSettingsSource(cls)()))
    except ValidationError as error:
        raise Fatal("BAD_SETTINGS", _readable(room, error)) from None
    except SettingsError as error:
        raise Fatal("BAD_SETTINGS", f"{room}: {error}: lists and maps are given as JSON") from None


def _from_file(cls: type[RoomSettings], room: str, path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Fatal("BAD_SETTINGS", f"SEAWALL_CONFIG names {path}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Fatal("BAD_SETTINGS", f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Fatal("BAD_SETTINGS", f"{path} is not valid YAML{where}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise Fatal("BAD_SETTINGS", f"{path} must hold a map of settings at its top level")
    known = {*cls.model_fields, *SHARED_GROUPS, *ROOMS, room}
    unknown = sorted(str(key) for key in document if key not in known)
    if unknown:
        raise Fatal(
            "BAD_SETTINGS",
            f"{path}: unknown key {', '.join(unknown)}: the top level holds shared groups "
            f"({', '.join(SHARED_GROUPS)}), settings of {room} ({', '.join(cls.model_fields)}) or a room's name",
        )
    section = document.get(room) or {}
    if not isinstance(section, dict):
        raise Fatal("BAD_SETTINGS", f"{path}: {room} must be a map of settings")
    # A field named like a room would make the file ambiguous; none is.
    shared = {key: value for key, value in document.items() if key in cls.model_fields and key not in ROOMS}
    return _merge(shared, {str(key): value for key, value in section.items()})


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _readable(room: str, error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in item["loc"]) or "(settings)"
        variable = ENV_PREFIX + "__".join(str(part) for part in item["loc"]).upper()
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such setting: remove it or mend its spelling"
        elif item["type"] == "missing":
            message = f"must be set, in the file or as {variable}"
        problems.append(f"{field}: {message}")
    return f"settings of {room}: " + "; ".join(problems)
