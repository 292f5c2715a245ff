"""Runs one room in this process."""

from __future__ import annotations

from importlib import import_module

from seawall.core.errors import Fatal
from seawall.local.supervisor import bind_to_parent

_STAGES = ("prompt_scoring", "perceptual_hashing", "classification")
_RELAY = ".relay"
ROOMS = (
    *_STAGES,
    *(stage + _RELAY for stage in _STAGES),
    "perceptual_hashing.retroactive",
    "aggregator",
    "actor_history",
    "ledger",
    "console",
)


def run(room: str) -> None:
    """Run a room of ROOMS until it is told to stop (SIGTERM). Raises Fatal if it cannot."""
    bind_to_parent()
    try:
        if room.endswith(_RELAY):
            stage = import_module(f"seawall.{room.removesuffix(_RELAY)}.stage").STAGE
            import_module("seawall.relay.run").run(stage)
        else:
            import_module(f"seawall.{room}.service").main()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("seawall"):
            raise
        extra = room.partition(".")[0]
        raise Fatal(
            "EXTRA_MISSING", f"{room} needs the package {error.name}: pip install 'seawall[{extra}]'"
        ) from error
