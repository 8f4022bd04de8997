"""Describes a Python's SGLang. See describing.py."""

from __future__ import annotations

import argparse
import importlib

from describing import build_variant, describe, flags_of

PACKAGES = (
    *("torch", "transformers", "gguf", "accelerate"),
    *("sglang-kernel", "flashinfer-python", "xgrammar"),
)


def is_deprecated(action: argparse.Action) -> bool:
    """Whether the option's help says so."""
    return (action.help or "").lstrip(" (").lower().startswith("deprecated")


def describe_flags() -> dict[str, dict[str, object]]:
    """The flags of the server."""
    parser = argparse.ArgumentParser()
    importlib.import_module("sglang.srt.server_args").ServerArgs.add_cli_args(parser)
    flags = flags_of(parser, is_deprecated=is_deprecated)
    for flag in flags.values():
        if "choices" in flag:  # some come from sets, in another order each time
            flag["choices"] = sorted(flag["choices"])  # type: ignore[call-overload]
    return flags


def main() -> None:
    """Describe this Python's SGLang."""
    sglang = importlib.import_module("sglang")
    describe(
        sglang,
        version=sglang.__version__,
        variant=build_variant(),
        packages=PACKAGES,
        records="sglang-*",
        flags=describe_flags,
    )


if __name__ == "__main__":
    main()
