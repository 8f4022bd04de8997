"""Adapters and checkpoints: digest, check, load, prove, swap."""
