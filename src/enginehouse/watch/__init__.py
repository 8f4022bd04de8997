"""Evaluates checkpoints and adapters as they appear in a folder."""
