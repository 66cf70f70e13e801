"""The work: what a request amounts to, sampling, replays, memory. No tensor maths."""
