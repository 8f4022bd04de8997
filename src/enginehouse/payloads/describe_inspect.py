"""Describes a Python's Inspect. See describing.py."""

from __future__ import annotations

import importlib
import importlib.metadata

from describing import describe

PACKAGES = ("inspect-evals", "openai", "datasets")


def flags() -> dict[str, dict[str, object]]:
    """The options of `inspect eval`."""
    command = importlib.import_module("inspect_ai._cli.eval").eval_command
    options = (parameter for parameter in command.params if parameter.param_type_name == "option")
    return {
        spelling: {"takes_value": not option.is_flag}
        for option in options
        for spelling in (*option.opts, *option.secondary_opts)
    }


def main() -> None:
    """Import what a run needs, then describe it."""
    importlib.import_module("openai")
    describe(
        importlib.import_module("inspect_ai"),
        version=importlib.metadata.version("inspect_ai"),
        variant="any",
        packages=PACKAGES,
        records="inspect_ai-*",
        flags=flags,
    )


if __name__ == "__main__":
    main()
