"""The trainer's command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """The parsed command line; `auto`, and None for `threads`, leave the choice to the trainer."""

    descriptor: int
    model: Path
    base_model: str
    device: str
    dtype: str
    threads: int | None


def make_parser() -> argparse.ArgumentParser:
    """The parser; see Options."""
    parser = argparse.ArgumentParser(prog="trainer", allow_abbrev=False)
    add = parser.add_argument
    add("--descriptor", type=int, required=True, help="the file descriptor of a connected socket")
    add("--model", type=Path, required=True, help="a checkpoint's folder")
    add("--base-model", required=True, help="what the model is called")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto")
    add("--threads", type=int, help="of the CPU; all cores by default")
    return parser


def parse(arguments: list[str]) -> Options:
    """The options in `arguments`; argparse exits with a message for a wrong one."""
    return Options(**vars(make_parser().parse_args(arguments)))
