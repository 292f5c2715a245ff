"""How a command reaches the mesh: by its settings, else by what `seawall up` left in the home folder."""

from __future__ import annotations

import os

from pydantic import Field

from seawall.core.errors import Fatal
from seawall.local.mesh import running
from seawall.runtime.settings import (
    ContentSettings,
    KafkaSettings,
    RoomSettings,
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
