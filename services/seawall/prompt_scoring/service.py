"""The gRPC service of this room: ``seawall run prompt_scoring``."""

from __future__ import annotations

from seawall.prompt_scoring import scorer
from seawall.prompt_scoring.settings import PromptScoringSettings
from seawall.prompt_scoring.stage import STAGE
from seawall.runtime import rpc_server
from seawall.runtime.settings import load_settings


def main() -> None:
    """Serve until SIGTERM. Raises Fatal on bad settings, or a model, pack or keyset that is missing or broken."""
    settings = load_settings(PromptScoringSettings, STAGE.name)
    rpc_server.run(
        STAGE.name,
        settings,
        STAGE.method,
        STAGE.request_type,
        STAGE.response_type,
        lambda: scorer.serve(settings),
    )


if __name__ == "__main__":
    main()
