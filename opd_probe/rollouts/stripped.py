"""Prompts that were decoded without their special tokens."""

from __future__ import annotations

STRIPPED = {"special_tokens": "stripped"}
"""What importers put into ``Rollout.extra`` of such text."""
