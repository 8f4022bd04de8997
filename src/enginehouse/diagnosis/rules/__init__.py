"""The rules that all engines share: torch, CUDA, NCCL, compilers, the loader, the hub, the disk.

Their order is that of how specific they are: within one traceback the first that fits decides, so a
missing library comes before the kernels that could not be loaded without it. Each rule has a text
in tests/diagnosis that it must know, and one that resembles it and that it must not.
"""

from __future__ import annotations

from pathlib import Path

from enginehouse.diagnosis.rule_file import RuleFiles
from enginehouse.diagnosis.rules import details

_FILES = (
    "command_line", "devices", "system", "libraries", "toolchain", "packages", "cuda", "memory",
    "hub", "model", "communication", "general", "refusals",
)  # fmt: skip
_FRAGMENTS = {
    "ERROR": r"(?:^|\n)(?:\w+\.){0,8}(?:\w{0,40}Error|AssertionError|Exception): ",
    # Words of an error that is about something else than what was asked for.
    "NOT_OF_VERSIONS": (
        r"(?![^\n]{0,300}(?:[Pp]ython ?\d|[Vv]ersion \d|transformers[ <>=]{1,2}\d|numpy|[Dd]river"
        r"|torch(?:vision)?[ <>=]{1,2}\d|CUDA \d|model type|architecture|sharding))"
    ),
    "DTYPE": r"(?i:(?:torch\.)?(?:b?float16|bf16|fp16|float32|half))",
    "SIZE": details.SIZE,
}


RULES = RuleFiles(
    *(Path(__file__).with_name(f"{name}.yaml") for name in _FILES),
    fragments=_FRAGMENTS,
    details=details.DETAILS,
)
