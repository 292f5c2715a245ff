"""The classification service's process: `seawall run classification`."""

from __future__ import annotations

from seawall.api.classification.v1 import classification_pb2
from seawall.classification import scorer
from seawall.classification.settings import ClassificationSettings
from seawall.classification.stage import STAGE
from seawall.runtime import rpc_server
from seawall.runtime.settings import load_settings


def main() -> None:
    """Load settings and models, serve until SIGTERM. Raises Fatal: never ready with a model that is not proven."""
    settings = load_settings(ClassificationSettings, STAGE.name)
    rpc_server.run(
        STAGE.name,
        settings,
        STAGE.method,
        classification_pb2.ClassifyMediaRequest,
        classification_pb2.ClassifyMediaResponse,
        lambda: scorer.load(settings),
    )
