"""Replay: alignment, batching and both forward passes. Yields states; knows nothing of where they are written."""
