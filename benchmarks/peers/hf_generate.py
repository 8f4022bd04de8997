"""Times `model.generate` on one batch: FOLDER DTYPE TOKENS, the conversations in JSON on a line.

Run by an engine environment's Python. Every further line on standard input is one measurement;
each is answered with a line, the seconds that it took.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load, then measure as often as asked."""
    folder, dtype, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    texts = tokenizer.apply_chat_template(
        json.loads(sys.stdin.readline()), add_generation_prompt=True, tokenize=False
    )
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            made = model.generate(
                **batch, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens
            )
            tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :])
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
