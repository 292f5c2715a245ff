"""Seawall: finds attempts to create child sexual abuse material in a generation platform's event stream."""

import os

__version__ = "0.1.0"

# Official onnxruntime builds send events (model names, digests) to their maker and keep a device id in the home folder,
# unless this is set before they are loaded. This module alone runs before any of ours can load them.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
