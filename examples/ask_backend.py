"""Ask whatever backend Hydra's group names: an application of one's own over the packaged files.

    python examples/ask_backend.py backend=hf backend.model=smollm2 'prompt=Hello, my name is'
    python examples/ask_backend.py backend=llama_cpp backend.model_path=model.gguf
    python examples/ask_backend.py backend=vllm backend.model=NAME backend.port=8000

`hydra.searchpath` in hydra/application.yaml is all that finds backend/{vllm,llama_cpp,hf}.yaml;
files of your own beside it, hydra/backend/mine.yaml say, go into the same group.
"""

from __future__ import annotations

import logging
import sys

import hydra
from omegaconf import DictConfig

from enginehouse import EnginehouseError
from enginehouse.facades.agent_arena import make_backend
from enginehouse.facades.agent_arena.composing import parse_backend


@hydra.main(version_base="1.3", config_path="hydra", config_name="application")
def main(settings: DictConfig) -> None:
    """Compose, open, ask, close."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with make_backend(parse_backend(settings.backend)) as backend:
            result = backend.generate(settings.prompt)
    except EnginehouseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(result.text)
    print(f"{result.tokens_used} tokens, {result.finish_reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
