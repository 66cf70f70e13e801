"""What was asked for: the request, the options of each run and their defaults, manifests, names."""
