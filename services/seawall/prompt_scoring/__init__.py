"""Scores prompts: unsealed, normalised into several views, matched with term packs, compared with anchors."""
