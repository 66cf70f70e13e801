"""Models: recognising checkpoints, loading them, their vocabularies, and sampling from them."""
