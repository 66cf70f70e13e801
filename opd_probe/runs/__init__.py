"""What lies on disk of a run: its checkpoints, its trainer's logs, its stored traces. No model is loaded."""
