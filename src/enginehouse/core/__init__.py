"""Words every room shares: errors, messages, sampling, the sampler protocol. No I/O."""
