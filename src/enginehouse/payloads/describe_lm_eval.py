"""Describes a Python's lm-evaluation-harness. See describing.py."""

from __future__ import annotations

import importlib
import importlib.metadata

from describing import describe, flags_of

PACKAGES = ("datasets", "transformers", "evaluate", "torch")


def flags() -> dict[str, dict[str, object]]:
    """The options of `lm-eval run`; a version before 0.4.10 has no commands."""
    try:
        cli = importlib.import_module("lm_eval._cli.harness").HarnessCLI()
    except ImportError:
        parser = importlib.import_module("lm_eval.__main__").setup_parser()
    else:
        (commands,) = (a for a in cli._parser._actions if a.dest == "command")  # noqa: SLF001
        parser = commands.choices["run"]
    return flags_of(parser, is_deprecated=lambda _: False)


def main() -> None:
    """Import what a run needs, then describe it."""
    for name in ("transformers", "aiohttp", "tenacity", "datasets"):
        importlib.import_module(name)
    describe(
        importlib.import_module("lm_eval"),
        version=importlib.metadata.version("lm-eval"),
        variant="any",
        packages=PACKAGES,
        records="lm_eval-*",
        flags=flags,
    )


if __name__ == "__main__":
    main()
