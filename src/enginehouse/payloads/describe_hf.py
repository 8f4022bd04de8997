"""Prints what a Python's transformers is, as one JSON object on the last line of standard output.

Run by that Python itself: `python describe_hf.py [IDENTITY]`. With the identity that an earlier run
printed, and nothing changed since, the flags are left out (null). A package that hf_server needs
and that cannot be imported ends it with Python's own traceback and exit status 1.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

from hf_server.options import make_parser

NEEDED = ("aiohttp", "jinja2", "peft", "xgrammar")
PACKAGES = ("torch", "transformers", "gguf", "accelerate", "peft", "xgrammar")


def build_variant() -> str:
    """The accelerator that torch was built for."""
    torch = importlib.import_module("torch")
    if torch.version.cuda:
        return "cuda"
    return "rocm" if torch.version.hip else "cpu"


def describe_flags() -> dict[str, dict[str, object]]:
    """Every option of the server."""
    flags = {}
    for action in make_parser()._actions:  # noqa: SLF001 (argparse has no public list)
        flag: dict[str, object] = {"takes_value": action.nargs != 0}
        if action.choices is not None:
            flag["choices"] = [str(choice) for choice in action.choices]
        flags.update(dict.fromkeys(action.option_strings, flag))
    return flags


def installed_packages() -> dict[str, str]:
    """The versions of the libraries that change what a conversion or the server gives."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def identity_of(folder: Path, version: str) -> str:
    """Changes whenever transformers is installed anew: its version, place and times."""
    records = sorted(folder.parent.glob("transformers-*.dist-info"))
    times = [str(record.stat().st_mtime_ns) for record in [folder / "__init__.py", *records]]
    return "|".join([version, str(folder), *times])


def main() -> None:
    """Describe this Python's transformers."""
    variant = build_variant()
    transformers = importlib.import_module("transformers")
    for name in NEEDED:
        importlib.import_module(name)
    version = transformers.__version__
    identity = identity_of(Path(transformers.__file__).resolve().parent, version)
    unchanged = sys.argv[1:] == [identity]
    description = {
        "version": version,
        "variant": variant,
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
    os._exit(0)
