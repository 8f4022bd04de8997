"""Trains LoRA adapters of one base model; run as `python …/trainer` (see __main__.py)."""
