"""Serve a model with vLLM: a thin layer over `enginehouse serve`, for scripts that call this file.

    python examples/run_vllm_server.py --model meta-llama/Llama-2-7b-chat-hf --port 8000

It takes every option of `enginehouse serve`, and the spellings of Agent Arena's script of the same
name with a warning. Ctrl-C stops the server.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from enginehouse.__main__ import main

PORT = "8000"
RENAMED = {"--gpu-memory": "--gpu-memory-utilization"}
UNNEEDED = {"--enable-function-calling": "tools can be called without it"}


def serve_words(arguments: Sequence[str]) -> Iterator[str]:
    """The same as words for `enginehouse`: the model first, today's names of options."""
    yield "serve"
    given = set()
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in UNNEEDED:
            warn(f"{name} is not needed: {UNNEEDED[name]}")
            continue
        if name in RENAMED:
            warn(f"{name} is {RENAMED[name]} now")
            name = RENAMED[name]
        if name == "--dtype":
            value = value if equals else next(words, "")
            if value == "half":
                warn("half is float16 now")
                value = "float16"
            equals = "="
        given.add(name)
        if name == "--model":
            yield value if equals else next(words, "")
        else:
            yield f"{name}{equals}{value}"
    if not given & {"--port", "--config", "--help"}:
        yield f"--port={PORT}"
    if not given & {"--engine", "--config", "--help"}:
        yield "--engine=vllm"


def warn(message: str) -> None:
    """Say something that does not stop us."""
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.argv[1:] = serve_words(sys.argv[1:])
    main()
