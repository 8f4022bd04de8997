"""What the describe payloads have in common.

Each is run by the Python that it describes, `python describe_NAME.py [IDENTITY]`, and prints one
JSON object on the last line of standard output. With the identity that an earlier run printed, and
nothing changed since, the flags are left out (null), which saves half the time. A failed import
ends with Python's own traceback and exit status 1. Nothing here needs a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


def build_variant() -> str:
    """The accelerator that torch was built for; cpu without torch."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "cpu"
    if torch.version.cuda:
        return "cuda"
    return "rocm" if torch.version.hip else "cpu"


def flags_of(
    parser: argparse.ArgumentParser, *, is_deprecated: Callable[[argparse.Action], bool]
) -> dict[str, dict[str, object]]:
    """Every spelling of every option, and what it takes."""
    flags = {}
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of its options
        flag: dict[str, object] = {"takes_value": action.nargs != 0}
        if action.choices is not None:
            flag["choices"] = [str(choice) for choice in action.choices]
        if is_deprecated(action):
            flag["deprecated"] = True
        flags.update(dict.fromkeys(action.option_strings, flag))
    return flags


def installed_version(*names: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def describe(
    module: object,
    *,
    version: str,
    variant: str,
    packages: Iterable[str],
    records: str,
    flags: Callable[[], dict[str, dict[str, object]]],
    **more: object,
) -> None:
    """Print the description of an engine's imported `module`, and end the process.

    `packages` are the libraries that change what the engine answers. The identity is made of the
    version, the place, and the times of the distributions that `records` matches, so it changes
    with every new install.
    """
    folder = Path(module.__file__).resolve().parent  # type: ignore[attr-defined]
    files = [folder / "__init__.py", *folder.parent.glob(f"{records}.dist-info")]
    times = [str(file.stat().st_mtime_ns) for file in sorted(files)]
    identity = "|".join([version, str(folder), *times])
    versions = {name: installed_version(name) for name in packages}
    description = {
        "version": version,
        "variant": variant,
        "python": platform.python_version(),
        "identity": identity,
        "packages": {name: found for name, found in versions.items() if found},
        "flags": None if sys.argv[1:] == [identity] else flags(),
        **more,
    }
    print(flush=True)
    print(json.dumps(description), flush=True)
    # An engine's import leaves threads and exit hooks behind that take up to a second to end.
    os._exit(0)
