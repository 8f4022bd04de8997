"""The HTTP sampler: transport, retries, limits, streaming."""
