"""Hashes media and matches the hashes against banks of known material.

A room of its own: gRPC service ``seawall.api.perceptual_hashing.v1.PerceptualHashingService``.
"""
