"""A plain OpenAI-compatible server over transformers, run by an engine environment's Python."""
