"""The perceptual_hashing service's process: `seawall run perceptual_hashing`."""

from __future__ import annotations

from seawall.perceptual_hashing import scorer
from seawall.perceptual_hashing.settings import PerceptualHashingSettings
from seawall.perceptual_hashing.stage import STAGE
from seawall.runtime import rpc_server
from seawall.runtime.settings import load_settings


def main() -> None:
    """Load settings and banks, serve until SIGTERM. Raises Fatal: never ready with a bank that is broken or missing."""
    settings = load_settings(PerceptualHashingSettings, STAGE.name)
    rpc_server.run(
        STAGE.name,
        settings,
        STAGE.method,
        STAGE.request_type,
        STAGE.response_type,
        lambda: scorer.load(settings),
    )
