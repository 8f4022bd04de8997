"""Jobs of a running Ray cluster."""
