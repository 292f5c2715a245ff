"""What is switched off in gRPC is still a switch of the gRPC that is installed."""

from __future__ import annotations

import os
import subprocess
import sys

_CALL = """
import seawall, grpc
channel = grpc.insecure_channel("unix:/nonexistent")
try:
    channel.unary_unary("/service/method")(b"", timeout=5)
except grpc.RpcError as error:
    print(error.code().name)
"""


def _call(**environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    return subprocess.run(
        [sys.executable, "-c", _CALL], env=kept | environment, capture_output=True, text=True, timeout=60, check=True
    )


def test_grpc_knows_what_is_switched_off() -> None:
    done = _call()
    assert done.stdout.strip() == "UNAVAILABLE"
    assert "experiment" not in done.stderr


def test_grpc_says_what_it_does_not_know_and_an_operators_choice_stands() -> None:
    assert "Unknown experiment: of_ours" in _call(GRPC_EXPERIMENTS="-of_ours").stderr
