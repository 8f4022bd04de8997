"""Describes a Python's transformers, as the trainer uses it. See describing.py."""

from __future__ import annotations

import importlib

from describing import build_variant, describe, flags_of
from trainer.options import make_parser

NEEDED = ("msgspec", "numpy", "peft", "safetensors")
PACKAGES = ("torch", "transformers", "gguf", "accelerate", "peft")


def main() -> None:
    """Import everything that the trainer needs, then describe it."""
    variant = build_variant()
    for name in ("torch", "transformers", *NEEDED):
        importlib.import_module(name)
    transformers = importlib.import_module("transformers")
    describe(
        transformers,
        version=transformers.__version__,
        variant=variant,
        packages=PACKAGES,
        records="transformers-*",
        flags=lambda: flags_of(make_parser(), is_deprecated=lambda _: False),
    )


if __name__ == "__main__":
    main()
