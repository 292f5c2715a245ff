"""Seawall: finds attempts to create child sexual abuse material in a generation platform's event stream."""

import os

__version__ = "0.1.0"

# Official onnxruntime builds send events (model names, weight digests) to their maker unless this is set before they are
# loaded, and keep a device id in the home folder. Here, before any module of ours can load them, is the only safe place.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
