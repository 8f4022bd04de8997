"""A sampler under load: random prompts, a closed loop of requests, and their latencies."""
