"""How a command reaches the mesh: by its settings, else by what `seawall up` left in the home folder."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from seawall.core.errors import Fatal
from seawall.local.mesh import running, status_file
from seawall.oncall.rooms import Endpoint, named
from seawall.runtime.settings import (
    ContentSettings,
    KafkaSettings,
    RoomSettings,
    RpcClientSettings,
    RpcServerSettings,
    SealingSettings,
    load_settings,
    seawall_home,
)
from seawall.runtime.topics import TopicNames, TopicSettings

_BOOTSTRAP = "SEAWALL_KAFKA__BOOTSTRAP_SERVERS"


class LocalSettings(RoomSettings):
    """What a command needs to speak with a mesh as a platform does."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    content: ContentSettings = Field(default_factory=ContentSettings)
    sealing: SealingSettings = Field(default_factory=SealingSettings)
    # How `topics apply` creates them.
    topics: TopicSettings = Field(default_factory=TopicSettings)
    # Where rooms answer (telemetry.http_listen), by room: ["host:port"]; a name of several addresses is several
    # instances. Unset: those of the mesh that runs on $SEAWALL_HOME.
    rooms: dict[str, list[str]] = Field(default_factory=dict)
    # `doctor` looks when their certificates end.
    rpc_server: RpcServerSettings = Field(default_factory=RpcServerSettings)
    rpc_client: RpcClientSettings = Field(default_factory=RpcClientSettings)


def local_settings() -> LocalSettings:
    """Settings of a command: from the environment or file, else those of the mesh that runs on $SEAWALL_HOME.

    Raises Fatal("NO_MESH") if neither says where Kafka is.
    """
    if _BOOTSTRAP not in os.environ and "SEAWALL_CONFIG" not in os.environ:
        home = seawall_home()
        mesh = running(home)
        if mesh is None:
            raise Fatal("NO_MESH", f"no mesh runs on {home}: start one with `seawall up`, or set {_BOOTSTRAP}")
        os.environ[_BOOTSTRAP] = mesh.bootstrap_servers
    return load_settings(LocalSettings, "local")


def topics_of(settings: LocalSettings) -> TopicNames:
    """The topics of the settings' lane."""
    return TopicNames(settings.kafka.topic_prefix)


def endpoints(settings: LocalSettings) -> list[Endpoint]:
    """Where each room answers: as the settings say, else those of the mesh that runs on $SEAWALL_HOME.

    Raises Fatal("NO_ROOMS") if neither says which rooms there are.
    """
    if settings.rooms:
        return named(settings.rooms)
    home = seawall_home()
    mesh = running(home)
    if mesh is None:
        raise Fatal(
            "NO_ROOMS",
            f'no mesh runs on {home}, so say where rooms answer: SEAWALL_ROOMS=\'{{"aggregator": ["host:port"]}}\'',
        )
    return [_endpoint(home, room) for room in mesh.rooms]


def _endpoint(home: Path, room: str) -> Endpoint:
    try:
        return Endpoint(room, status_file(home, room).read_text(encoding="ascii").strip())
    except FileNotFoundError:
        return Endpoint(room, "", "it is not running, or has not come so far as to answer")
