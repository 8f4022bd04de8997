"""Prints what a Python's SGLang is, as one JSON object on the last line of standard output.

Run by that Python itself: `python describe_sglang.py [IDENTITY]`. With the identity that an earlier
run printed, and nothing changed since, the flags are left out (null). A failed import ends with
Python's own traceback and exit status 1. No GPU is needed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "gguf",
    "accelerate",
    "sglang-kernel",
    "flashinfer-python",
    "xgrammar",
)


def build_variant() -> str:
    """The accelerator that torch was built for."""
    torch = importlib.import_module("torch")
    if torch.version.cuda:
        return "cuda"
    return "rocm" if torch.version.hip else "cpu"


def describe_flags() -> dict[str, dict[str, object]]:
    """Every spelling of every option of the server."""
    parser = argparse.ArgumentParser()
    importlib.import_module("sglang.srt.server_args").ServerArgs.add_cli_args(parser)
    flags = {}
    for action in parser._actions:  # noqa: SLF001 (argparse has no public list of its options)
        flag: dict[str, object] = {"takes_value": action.nargs != 0}
        if action.choices is not None:
            flag["choices"] = sorted(map(str, action.choices))
        if (action.help or "").lstrip(" (").lower().startswith("deprecated"):
            flag["deprecated"] = True
        flags.update(dict.fromkeys(action.option_strings, flag))
    return flags


def installed_packages() -> dict[str, str]:
    """The versions of the libraries that change what the engine gives."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def identity_of(folder: Path, version: str) -> str:
    """Changes whenever SGLang is installed anew: its version, place and installation times."""
    records = sorted(folder.parent.glob("sglang-*.dist-info"))
    times = [str(record.stat().st_mtime_ns) for record in [folder / "__init__.py", *records]]
    return "|".join([version, str(folder), *times])


def main() -> None:
    """Describe this Python's SGLang."""
    sglang = importlib.import_module("sglang")
    version = sglang.__version__
    identity = identity_of(Path(sglang.__file__).resolve().parent, version)
    unchanged = sys.argv[1:] == [identity]
    description = {
        "version": version,
        "variant": build_variant(),
        "python": platform.python_version(),
        "identity": identity,
        "packages": installed_packages(),
        "flags": None if unchanged else describe_flags(),
    }
    print(flush=True)
    print(json.dumps(description), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # The import leaves threads and exit hooks behind that take time to end.
    os._exit(0)
