"""The log-probabilities that transformers gives to the tokens of given sequences.

Run by an engine environment's Python: `python reference_logprobs.py MODEL TOKENS.json DTYPE
DEVICE [ADAPTER]`, where the file is a list of lists of token ids, DTYPE is auto, bfloat16, float16
or float32, and DEVICE is cpu, or auto for a GPU where there is one. Needs torch and transformers,
for an adapter peft. Prints one JSON object on the last line of standard output: `logprobs` has, for
each sequence, the natural logarithms of the second to the last token's probabilities, null for what
is not finite, and `dtype` the weights' type.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path


def main(
    model_path: str, tokens_path: str, dtype: str, device: str, adapter: str | None = None
) -> None:
    """Score every sequence by itself."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype)
    used = str(model.dtype).removeprefix("torch.")
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model.to("cuda" if device == "auto" and torch.cuda.is_available() else "cpu").eval()
    logprobs = []
    with torch.inference_mode():
        for ids in json.loads(Path(tokens_path).read_bytes()):
            tokens = torch.tensor([ids], device=model.device)
            logits = model(tokens).logits[0, :-1].float()
            chosen = torch.log_softmax(logits, dim=-1).gather(1, tokens[0, 1:, None])
            logprobs.append(finite(chosen[:, 0].tolist()))
    print(json.dumps({"logprobs": logprobs, "dtype": used}))


def finite(values: Iterable[float]) -> list[float | None]:
    """None for NaN and infinity, which JSON does not have."""
    return [value if math.isfinite(value) else None for value in values]


if __name__ == "__main__":
    main(*sys.argv[1:])
