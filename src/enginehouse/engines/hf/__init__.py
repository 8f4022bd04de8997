"""Hugging Face transformers, behind a server of our own."""
