"""Seawall: finds attempts to create child sexual abuse material in a generation platform's event stream."""

import os

__version__ = "0.1.0"

# Official onnxruntime builds send events (model names, digests) to their maker and keep a device id in the home folder,
# unless this is set before they are loaded. This module alone runs before any of ours can load them.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# gRPC hands each packet of a connection through threads of its "event engine": for one call at a time that is twice the
# wake-ups, on both sides, of the poller it has had before. Read when gRPC is first used.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
