"""The order of stages: what to measure, where rollouts come from, what is written. No tensor maths."""
