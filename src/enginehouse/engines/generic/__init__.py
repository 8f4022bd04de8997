"""Megatron-LM's text generation server."""
