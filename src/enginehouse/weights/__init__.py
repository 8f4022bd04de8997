"""Adapters and checkpoints: digest, load, prove, swap, fan out."""
