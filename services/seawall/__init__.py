"""Seawall: finds attempts to create child sexual abuse material in a generation platform's event stream."""

__version__ = "0.1.0"
