"""Tensor maths: logits or hidden states in, statistics out. Imports torch alone."""
