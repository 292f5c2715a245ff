"""Where rooms find ``core.strict_yaml``: policies, which are pure, are read with it too."""

from seawall.core.strict_yaml import Document, parse

__all__ = ["Document", "parse"]
