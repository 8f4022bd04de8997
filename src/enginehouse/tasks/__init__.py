"""Benchmarks: what to ask, and how an answer is scored. They never see an engine."""
