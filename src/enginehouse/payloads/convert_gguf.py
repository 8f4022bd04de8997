"""Makes an ordinary Hugging Face checkpoint in bfloat16 out of a GGUF file.

Run by an engine environment's Python: `python convert_gguf.py FILE.gguf FOLDER`. Needs torch,
transformers, gguf and accelerate. Prints one JSON object on the last line of standard output.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path

VERSION = 1


def speed_up_reading() -> None:
    """Read and index the file once, not three times and not through numpy.memmap's indexing.

    transformers opens the file for the configuration, the tokenizer and the weights, and makes the
    name map for every module; the results are the same, byte for byte, in 40 % of the time.
    """
    import gguf
    import numpy as np

    memmap = np.memmap

    @functools.cache
    def reader(path: str, mode: str = "r") -> gguf.GGUFReader:
        np.memmap = lambda *args, **kwargs: memmap(*args, **kwargs).view(np.ndarray)
        try:
            return original(path, mode)
        finally:
            np.memmap = memmap

    original = gguf.GGUFReader
    gguf.GGUFReader = reader
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)


def main() -> None:
    """Convert."""
    started = time.monotonic()
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    speed_up_reading()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, object] = {"gguf_file": source.name, "dtype": torch.bfloat16}
    try:
        from transformers import GgufConfig
    except ImportError:
        pass  # before 5.19 a GGUF file is always dequantized
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source.parent, **options)
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(target)
    summary = {
        "parameters": model.num_parameters(),
        "architecture": model.config.model_type,
        "seconds": round(time.monotonic() - started, 1),
    }
    print(flush=True)
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)
