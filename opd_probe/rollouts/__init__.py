"""Rollouts and prompts: files in, nouns out; grading."""
