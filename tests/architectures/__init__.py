"""Every causal type of the installed transformers, small and with its knobs off their defaults."""
